"""Areas by counting pairs by hand, intervals against published values and plain loops, recall on real embeddings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zoo.contract.verdict import Decision, Verdict, unjudged
from zoo.errors import BadInputError
from zoo.metrics import Draws, Interval, Ranking, auroc, average_precision, estimate, rates, recall_at_k, roc, wilson


def _verdict(decision: Decision) -> Verdict:
    if decision == "unknown":
        return unjudged("unreadable", "broken", policy="p", model="m.t")
    return Verdict("ok", decision, "forbidden", {"forbidden": 0.5}, "p", "m.t")


def _pairs(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    """The share of pairs in the right order, ties half."""
    pairs = itertools.product(scores[labels == 1], scores[labels == 0])
    values = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs]
    return float(np.mean(values)) if values else None


def _precision(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    """The mean over the positives of the precision among what scores at least as high."""
    if len(set(labels.tolist())) < 2:
        return None
    return float(np.mean([labels[scores >= score].mean() for score in scores[labels == 1]]))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("levels", [1, 5, 10_000])
@pytest.mark.parametrize("size", [0, 1, 2, 40, 200])
def test_areas_equal_the_counts_with_and_without_ties(size: int, levels: int, share: float) -> None:
    rng = np.random.default_rng([size, levels])
    scores = rng.integers(0, levels, size) * 3.0 / levels - 1  # also below 0 and above 1
    labels = (rng.random(size) < share).astype(np.int64)
    for ours, oracle in ((auroc, _pairs), (average_precision, _precision)):
        expected = oracle(scores, labels)
        value = ours(scores.tolist(), labels.tolist())
        assert value is None if expected is None else value == pytest.approx(expected, abs=1e-12)


def test_areas_equal_those_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(7)
    for levels in (3, 50, 10_000):
        scores, labels = rng.integers(0, levels, 300).astype(float), rng.integers(0, 2, 300)
        assert auroc(scores.tolist(), labels.tolist()) == pytest.approx(sklearn.roc_auc_score(labels, scores))
        precision = average_precision(scores.tolist(), labels.tolist())
        assert precision == pytest.approx(sklearn.average_precision_score(labels, scores))
        curve = roc(scores.tolist(), labels.tolist())
        assert curve is not None
        fpr, tpr, _ = sklearn.roc_curve(labels, scores, drop_intermediate=False)
        assert np.allclose(curve.fpr, fpr)
        assert np.allclose(curve.tpr, tpr)


def test_a_weight_counts_as_copies_of_the_item() -> None:
    rng = np.random.default_rng(8)
    scores, labels = rng.integers(0, 6, 30) / 6, rng.integers(0, 2, 30)
    weights = rng.integers(0, 4, 30)
    copies = np.repeat(np.arange(30), weights)
    ranking = Ranking(scores, labels)
    assert ranking.auroc(weights[None])[0] == pytest.approx(_pairs(scores[copies], labels[copies]))
    assert ranking.average_precision(weights[None])[0] == pytest.approx(_precision(scores[copies], labels[copies]))
    assert np.isnan(ranking.auroc(np.zeros((1, 30)))).all()


@pytest.mark.parametrize(
    ("scores", "labels", "named"),
    [([0.1], [0, 1], r"\[1\] and \[2\]"), ([0.1], [2], "got 2"), ([float("inf")], [1], "got inf")],
)
def test_a_ranking_refuses(scores: list[float], labels: list[int], named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        Ranking(scores, labels)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_wilson_covers_the_truth_as_often_as_it_says(share: float) -> None:
    """The exact coverage: over all outcomes of 60 trials, weighted by the binomial distribution."""
    trials, covered = 60, 0.0
    for successes in range(trials + 1):
        ends = wilson(successes, trials)
        assert ends is not None
        chance = math.comb(trials, successes) * share**successes * (1 - share) ** (trials - successes)
        covered += chance * (ends.low <= share <= ends.high)
    assert 0.93 <= covered <= 0.98


def test_auroc_keeps_the_order_of_scores_that_float32_cannot_tell_apart() -> None:
    scores = [1.0 - 1e-12, 1.0 - 2e-12, 1.0 - 3e-12, 1.0 - 4e-12]
    assert auroc(scores, [1, 1, 0, 0]) == 1.0
    assert auroc([900.0, 800.0, 700.0, -1.0], [1, 1, 0, 0]) == 1.0  # logits, far beyond a float32 sigmoid
    assert auroc(scores, [0, 0, 1, 1]) == 0.0


def test_auroc_leaves_out_what_has_no_score_or_no_label() -> None:
    assert auroc([0.9, None, 0.1, 0.95, 0.2], [1, 0, 0, None, 1]) == 1.0
    assert auroc([0.3, None], [1, 0]) is None
    assert auroc([0.3, 0.4], [0, 0]) is None
    assert auroc([], []) is None


def test_the_roc_curve_runs_from_corner_to_corner() -> None:
    curve = roc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    assert curve is not None
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
    assert (0.5, 1.0) in set(zip(curve.fpr.tolist(), curve.tpr.tolist(), strict=True))


@pytest.mark.parametrize(
    ("scores", "labels", "named"),
    [([0.1], [0, 1], "1 scores and 2 labels"), ([0.1], [2], "got 2"), ([float("nan")], [1], "nan")],
)
def test_auroc_refuses(scores: list[float | None], labels: list[int | None], named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        auroc(scores, labels)


def test_rates_count_review_as_flagged_and_unjudged_apart() -> None:
    decisions: list[Decision] = ["unsafe", "review", "safe", "safe", "unsafe", "safe", "unknown", "unsafe"]
    found = rates([_verdict(d) for d in decisions], [1, 1, 1, 0, 0, 0, 1, None])
    counts = (found.true_positives, found.false_negatives, found.false_positives, found.true_negatives)
    assert counts == (2, 1, 1, 2)
    assert found.unjudged == 1
    assert found.tpr == pytest.approx(2 / 3)
    assert found.fpr == pytest.approx(1 / 3)


def test_rates_without_a_class_are_none() -> None:
    found = rates([_verdict("safe"), _verdict("unknown")], [0, 1])
    assert found.tpr is None
    assert found.fpr == 0.0
    with pytest.raises(BadInputError, match="2 verdicts"):
        rates([_verdict("safe")] * 2, [0])


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_the_published_values(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson(successes, trials)
    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_wilson_at_the_ends_has_its_closed_form() -> None:
    z2 = 1.959963984540054**2
    none, every = wilson(0, 50), wilson(50, 50)
    assert none is not None
    assert every is not None
    assert (none.low, every.high) == (0.0, 1.0)
    assert none.high == pytest.approx(z2 / (50 + z2), abs=1e-12)
    assert every.low == pytest.approx(50 / (50 + z2), abs=1e-12)


def test_wilson_solves_the_score_equation() -> None:
    found = wilson(7, 31, 0.9)
    assert found is not None
    for end in (found.low, found.high):  # |p - end| is z standard errors, computed at the end itself
        assert abs(7 / 31 - end) / math.sqrt(end * (1 - end) / 31) == pytest.approx(1.6448536269514722, abs=1e-9)


def test_wilson_without_trials_or_with_impossible_counts() -> None:
    assert wilson(0, 0) is None
    with pytest.raises(BadInputError, match="got 5 of 3"):
        wilson(5, 3)
    with pytest.raises(BadInputError, match=r"level must lie in \(0, 1\), got 95"):
        wilson(1, 3, 95)


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = Draws(range(400), seed=0, draws=4000).mean(values).interval
    assert found is not None
    error = values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_items_of_one_group_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(2).normal(size=50), 16)  # sixteen equal items an image: 50 facts, not 800
    by_item = Draws(range(800), seed=0).mean(values).interval
    by_image = Draws([i // 16 for i in range(800)], seed=0).mean(values).interval
    assert by_item is not None
    assert by_image is not None
    assert (by_image.high - by_image.low) / (by_item.high - by_item.low) == pytest.approx(4.0, rel=0.1)


def test_the_seed_decides_and_the_order_of_names_does_not() -> None:
    values = np.random.default_rng(3).normal(size=60)
    names = [f"image {i % 20}" for i in range(60)]

    def run(seed: int, groups: list[str]) -> object:
        return Draws(groups, seed=seed).mean(values)

    assert run(0, names) == run(0, names) == run(0, [name.upper() for name in names])
    assert run(0, names) != run(1, names)


def test_undefined_draws_are_left_out_and_too_many_of_them_give_nothing() -> None:
    scores, labels = np.array([0.9, 0.1, 0.4]), np.array([1, 0, 0])
    draws = Draws(range(3), seed=0)
    assert draws.auroc(scores, labels).interval is not None
    assert draws.auroc(scores, [1, 1, 1]).interval is None
    mostly_undefined = np.array([0.5, *[np.nan] * 60, *[0.5] * 60])
    assert estimate(mostly_undefined, 3).interval is None
    assert estimate(np.append(mostly_undefined, 0.5), 3).interval == Interval(0.5, 0.5)
    assert Draws([], seed=0).mean([]).interval is None
    with pytest.raises(BadInputError, match="at least 100"):
        Draws([1], seed=0, draws=10)


def test_the_interval_of_auroc_covers_the_truth() -> None:
    # Two normals one deviation apart: the area is Phi(1 / sqrt 2). Of 60 samples, about 57 intervals should hold it.
    truth = 0.5 * (1 + math.erf(0.5))
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(60):
        labels = np.repeat([0, 1], 60)
        scores = generator.normal(size=120) + labels
        found = Draws(range(120), seed=0, draws=400).auroc(scores, labels).interval
        assert found is not None
        held += found.low <= truth <= found.high
    assert 52 <= held <= 60


def _plain_bootstrap(
    statistic: Callable[[NDArray[np.int64]], float | None], groups: Sequence[Hashable], seed: int, draws: int
) -> tuple[float, float]:
    """The same draws in a loop over lists of items."""
    names = list(dict.fromkeys(groups))
    members = [[place for place, group in enumerate(groups) if group == name] for name in names]
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = generator.integers(len(names), size=len(names))
        value = statistic(np.array([place for number in drawn for place in members[number]]))
        if value is not None:
            values.append(value)
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def test_draws_give_the_intervals_of_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(0)
    groups = [f"image {number // 2}" for number in range(70)]
    labels = rng.integers(0, 2, 70)
    scores = np.round(rng.normal(labels, 1.0), 1)  # with ties
    draws = Draws(groups, seed=5, draws=300)
    plain = _plain_bootstrap(lambda index: _pairs(scores[index], labels[index]), groups, 5, 300)
    found = draws.auroc(scores, labels)
    assert (found.low, found.high) == pytest.approx(plain)
    assert found.value == pytest.approx(_pairs(scores, labels))
    hits = scores > 0.5

    def recall(index: NDArray[np.int64]) -> float | None:
        return float(hits[index][labels[index] == 1].mean())

    share = draws.share(hits, labels == 1)
    assert (share.low, share.high) == pytest.approx(_plain_bootstrap(recall, groups, 5, 300))

    def precision(index: NDArray[np.int64]) -> float | None:
        return _precision(scores[index], labels[index])

    area = draws.average_precision(scores, labels)
    assert (area.low, area.high) == pytest.approx(_plain_bootstrap(precision, groups, 5, 300))
    assert draws.share(hits, np.zeros(70, dtype=bool)).value is None
    assert draws.auroc(scores, np.ones(70, dtype=np.int64)).value is None


SIMILARITY = np.array(
    [
        [0.9, 0.1, 0.0],  # text 0 of image 0: first
        [0.8, 0.7, 0.0],  # text 1 of image 1: second
        [0.5, 0.6, 0.4],  # text 2 of image 2: third
        [0.2, 0.3, 0.1],  # text 3 of image 0: second
    ]
)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_recall_by_hand(convert: type) -> None:
    found = recall_at_k(convert(SIMILARITY), convert(np.array([0, 1, 2, 0])), ks=(1, 2, 3))
    assert found == {
        "text_to_image_r1": 0.25,
        "text_to_image_r2": 0.75,
        "text_to_image_r3": 1.0,
        # Image 0 finds text 0, image 1 finds text 1 (0.7 is the most of its column), image 2 finds text 2.
        "image_to_text_r1": 1.0,
        "image_to_text_r2": 1.0,
        "image_to_text_r3": 1.0,
    }


def test_an_image_counts_by_its_best_caption_and_only_if_it_has_one() -> None:
    table = np.array([[0.1, 0.9], [0.2, 0.0], [0.3, 0.0]])
    found = recall_at_k(table, [0, 0, 0], ks=(1,))
    assert found["image_to_text_r1"] == 1.0  # image 1 has no caption, so nothing it could find
    assert found["text_to_image_r1"] == pytest.approx(2 / 3)


def test_a_collapsed_model_scores_nothing() -> None:
    found = recall_at_k(np.ones((6, 6)), np.arange(6), ks=(1, 5, 6))
    assert found["text_to_image_r1"] == found["text_to_image_r5"] == found["image_to_text_r5"] == 0.0
    assert found["text_to_image_r6"] == 1.0


@pytest.mark.parametrize(
    ("table", "own", "ks", "named"),
    [
        (np.ones((2, 2)), [0], (1,), r"\[2, 2\] and int64 \[1\]"),
        (np.ones((2, 2)), [0.0, 1.0], (1,), "float64"),
        (np.ones((2, 2)), [0, 2], (1,), r"\[0, 2\)"),
        (np.ones((2, 2)), [0, 1], (0,), "k be 1"),
        (np.ones((0, 2)), [], (1,), r"\[0, 2\]"),
        (np.array([[np.nan, 1.0]]), [0], (1,), "NaN"),
    ],
)
def test_recall_refuses(table: np.ndarray, own: list[int], ks: tuple[int, ...], named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        recall_at_k(table, own, ks)


@pytest.mark.shared_data
def test_recall_of_clip_vit_b32_on_flickr8k(shared: Path) -> None:
    data = np.load(shared / "flickr8k_small" / "clip_vit_b32_embeddings.npz")
    names, first, own = np.unique(data["pair_image"], return_index=True, return_inverse=True)
    images, texts = data["pair_image_embed"][first].astype(np.float32), data["pair_text_embed"].astype(np.float32)
    assert (len(names), len(texts)) == (94, 470)
    found = recall_at_k(texts @ images.T, own)
    assert round(found["text_to_image_r1"], 3) == 0.843
    assert round(found["image_to_text_r1"], 3) == 0.936
    assert found["text_to_image_r1"] < found["text_to_image_r5"] < found["text_to_image_r10"] <= 1
