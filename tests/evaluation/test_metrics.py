"""AUROC and rates by counting pairs by hand; recall at k on small cases and on real CLIP embeddings."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.contract.verdict import Decision, Verdict, unjudged
from zoo.errors import BadInputError
from zoo.evaluation.metrics import auroc, rates, recall_at_k, roc


def _verdict(decision: Decision) -> Verdict:
    if decision == "unknown":
        return unjudged("unreadable", "broken", policy="p", model="m.t")
    return Verdict("ok", decision, "forbidden", {"forbidden": 0.5}, "p", "m.t")


def test_auroc_is_the_share_of_pairs_in_the_right_order_ties_half() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, 60) / 12  # many ties
    labels = [int(value) for value in rng.integers(0, 2, 60)]
    positives = [s for s, y in zip(scores, labels, strict=True) if y]
    negatives = [s for s, y in zip(scores, labels, strict=True) if not y]
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positives, negatives)]
    assert auroc([float(s) for s in scores], labels) == pytest.approx(np.mean(pairs), abs=1e-6)


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
