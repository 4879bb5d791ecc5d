"""Intervals that say how far a measured figure may be from the truth: Wilson's for rates, bootstrap for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from zoo.errors import BadInputError

Statistic = Callable[[NDArray[np.int64]], float | None]


@dataclass(frozen=True)
class Interval:
    """Both ends of an interval, in the unit of the figure that it belongs to."""

    low: float
    high: float


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval | None:
    """Wilson's score interval of a share of independent trials (Wilson 1927), without continuity correction.

    It keeps a sensible width where none or all succeed, and never leaves [0, 1]. None without trials. Raises
    BadInputError for counts that make no share, or a level outside (0, 1).
    """
    if not 0 <= successes <= trials:
        raise BadInputError(f"successes must lie in [0, trials], got {successes} of {trials}")
    if trials == 0:
        return None
    z = NormalDist().inv_cdf(0.5 + _checked(level) / 2)
    share = successes / trials
    denominator = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # At the ends the bound is exact; the formula misses it by a rounding.
    return Interval(
        0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == trials else min(1.0, centre + half)
    )


def bootstrap(
    statistic: Statistic, groups: Sequence[Hashable], *, seed: int, draws: int = 2000, level: float = 0.95
) -> Interval | None:
    """Percentile bootstrap (Efron 1979) that redraws whole groups, so that items of a group may depend on each other.

    `groups[i]` is the group of item i (the image that a question is about, say). `statistic` takes the indices
    `[n]` of the drawn items, repeated where a group was drawn more than once, and returns the figure, or None where
    it is undefined for them (one class only). Such draws are left out; None when more than half of them are, or
    without items. The same seed gives the same interval. Where all items agree the interval has no width: then
    Wilson's says more. Raises BadInputError for fewer than 100 draws, or a level outside (0, 1).
    """
    if draws < 100:
        raise BadInputError(f"draws must be at least 100 for the ends of an interval to mean anything, got {draws}")
    tail = (1 - _checked(level)) / 2
    numbers: dict[Hashable, int] = {}
    group = np.array([numbers.setdefault(name, len(numbers)) for name in groups], dtype=np.int64)
    if len(group) == 0:
        return None
    members = [np.flatnonzero(group == number) for number in range(len(numbers))]
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = generator.integers(len(members), size=len(members))
        value = statistic(np.concatenate([members[number] for number in drawn]))
        if value is not None:
            values.append(value)
    if len(values) <= draws / 2:
        return None
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))


def rank_auroc(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    """Area under the ROC curve by ranks (Mann and Whitney 1947), as `metrics.auroc`, quick enough to be redrawn.

    `scores [n]` finite, `labels [n]` 1 unsafe or 0 safe; a tie counts half. None where a class is missing.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    above = mean_rank[place][labels == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise BadInputError(f"level must lie in (0, 1), got {level}")
    return level
