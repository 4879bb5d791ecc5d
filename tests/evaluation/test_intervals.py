"""Intervals against published values, closed forms, and how often they hold what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zoo.errors import BadInputError
from zoo.evaluation.intervals import bootstrap, rank_auroc, wilson
from zoo.evaluation.metrics import auroc


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
    found = bootstrap(lambda index: float(values[index].mean()), range(400), seed=0, draws=4000)
    assert found is not None
    error = values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_items_of_one_group_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(2).normal(size=50), 16)  # sixteen equal items an image: 50 facts, not 800
    by_item = bootstrap(lambda index: float(values[index].mean()), range(800), seed=0)
    by_image = bootstrap(lambda index: float(values[index].mean()), [i // 16 for i in range(800)], seed=0)
    assert by_item is not None
    assert by_image is not None
    assert (by_image.high - by_image.low) / (by_item.high - by_item.low) == pytest.approx(4.0, rel=0.1)


def test_the_seed_decides_and_the_order_of_names_does_not() -> None:
    values = np.random.default_rng(3).normal(size=60)
    names = [f"image {i % 20}" for i in range(60)]

    def run(seed: int, groups: list[str]) -> object:
        return bootstrap(lambda index: float(values[index].mean()), groups, seed=seed)

    assert run(0, names) == run(0, names) == run(0, [name.upper() for name in names])
    assert run(0, names) != run(1, names)


def test_undefined_draws_are_left_out_and_too_many_of_them_give_nothing() -> None:
    scores, labels = np.array([0.9, 0.1, 0.4]), np.array([1, 0, 0])
    assert bootstrap(lambda index: rank_auroc(scores[index], labels[index]), range(3), seed=0) is not None
    one_class = np.array([1, 1, 1])
    assert bootstrap(lambda index: rank_auroc(scores[index], one_class[index]), range(3), seed=0) is None
    assert bootstrap(lambda index: 1.0, [], seed=0) is None
    with pytest.raises(BadInputError, match="at least 100"):
        bootstrap(lambda index: 1.0, [1], seed=0, draws=10)


def test_rank_auroc_equals_the_area_under_the_curve_ties_included() -> None:
    generator = np.random.default_rng(4)
    for size in (2, 5, 40, 500):
        scores = generator.integers(0, 12, size) / 12
        labels = generator.integers(0, 2, size)
        labels[:2] = (0, 1)
        found = rank_auroc(scores, labels)
        expected = auroc(scores.tolist(), labels.tolist())
        assert found == pytest.approx(expected, abs=1e-6)  # torchmetrics counts in float32


def test_the_interval_of_auroc_covers_the_truth() -> None:
    # Two normals one deviation apart: the area is Phi(1 / sqrt 2). Of 60 samples, about 57 intervals should hold it.
    truth = 0.5 * (1 + math.erf(0.5))
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(60):
        labels = np.repeat([0, 1], 60)
        scores = generator.normal(size=120) + labels
        found = bootstrap(lambda i, s=scores, y=labels: rank_auroc(s[i], y[i]), range(120), seed=0, draws=400)  # type: ignore[misc]
        assert found is not None
        held += found.low <= truth <= found.high
    assert 52 <= held <= 60
