"""The bootstrap for many figures of one set of items: drawn once, every figure a product with the same counts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.errors import BadInputError
from zoo.evaluation.intervals import wilson
from zoo.evaluation.metrics import auroc, average_precision

Values: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, config=schema.STRICT)
class Estimate:
    """A figure in [0, 1] over `count` items with the ends of its 95 % interval; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None
    count: int


class Ranking:
    """Items in the order of their scores `[n]`, the highest first, with labels `[n]` 1 or 0; equal scores are ties.

    The figures take counts `[D, n]` of how often each item was drawn and give `[D]` values, NaN where a class is
    missing.
    """

    def __init__(self, scores: Values, labels: NDArray[np.int64]) -> None:
        self.order = np.argsort(-scores, kind="stable")
        ranked = scores[self.order]
        #: The last place of each run of equal scores.
        self.ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, int)
        self.labels = labels[self.order]

    def average_precision(self, counts: Values) -> Values:
        """The mean of the precision at each positive: the area under the precision-recall curve, in [0, 1]."""
        hits, misses = self._found(counts)
        gained = np.diff(hits, axis=1, prepend=0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(hits + misses > 0, hits / (hits + misses), 0.0)
            return _defined((gained * precision).sum(axis=1) / hits[:, -1], hits, misses)

    def auroc(self, counts: Values) -> Values:
        """How often a positive outranks a negative, a tie counting half, in [0, 1]."""
        hits, misses = self._found(counts)
        gained, lost = (np.diff(part, axis=1, prepend=0.0) for part in (hits, misses))
        with np.errstate(invalid="ignore", divide="ignore"):
            outranked = (gained * (misses[:, -1:] - misses + lost / 2)).sum(axis=1)
            return _defined(outranked / (hits[:, -1] * misses[:, -1]), hits, misses)

    def _found(self, counts: Values) -> tuple[Values, Values]:
        """Positives and negatives `[D, R]` down to the end of each run of equal scores."""
        drawn = counts[:, self.order]
        hits = np.cumsum(drawn * (self.labels == 1), axis=1)[:, self.ends]
        return hits, np.cumsum(drawn * (self.labels == 0), axis=1)[:, self.ends]


def _defined(values: Values, hits: Values, misses: Values) -> Values:
    return np.where((hits[:, -1] > 0) & (misses[:, -1] > 0), values, np.nan)


class Draws:
    """Percentile bootstrap (Efron 1979) of whole groups, as `zoo.evaluation.intervals.bootstrap` draws them.

    `groups[i]` is the group of item i, such as its image: items of a group are drawn together, since they depend on
    each other. The same seed gives the same intervals.
    """

    def __init__(self, groups: Sequence[Hashable], *, seed: int, draws: int = 2000) -> None:
        if draws < 100:
            raise BadInputError(f"draws must be at least 100 for the ends of an interval to mean anything, got {draws}")
        numbers: dict[Hashable, int] = {}
        group = np.array([numbers.setdefault(name, len(numbers)) for name in groups], dtype=np.int64)
        generator = np.random.default_rng(seed)
        #: How often each item is drawn `[D, N]`.
        self.counts = np.zeros((draws, len(group)), dtype=np.float32)
        for draw in range(draws if len(group) else 0):
            drawn = generator.integers(len(numbers), size=len(numbers))
            self.counts[draw] = np.bincount(drawn, minlength=len(numbers))[group]

    def share(self, hits: ArrayLike, among: ArrayLike | None = None) -> Estimate:
        """The share of `hits` `[N]` bool among the items of `among` `[N]` bool (all of them by default).

        Where all or none are hits a redrawn share never varies, so there the interval is Wilson's.
        """
        chosen = np.ones(self.counts.shape[1], dtype=bool) if among is None else np.asarray(among, dtype=bool)
        found = np.asarray(hits, dtype=bool) & chosen
        count, successes = int(chosen.sum()), int(found.sum())
        if not count:
            return Estimate(None, None, None, 0)
        if successes in (0, count):
            ends = wilson(successes, count)
            assert ends is not None  # there are trials
            return Estimate(successes / count, ends.low, ends.high, count)
        counts = self.counts.astype(np.float64)
        below = counts @ chosen.astype(np.float64)
        with np.errstate(invalid="ignore"):
            values = np.where(below > 0, (counts @ found.astype(np.float64)) / below, np.nan)
        return _between(successes / count, values, count)

    def auroc(self, scores: ArrayLike, labels: ArrayLike) -> Estimate:
        """Area under the ROC curve of scores `[N]` against labels `[N]` in {0, 1}; a tie counts half."""
        return self._area(scores, labels, auroc, Ranking.auroc)

    def average_precision(self, scores: ArrayLike, labels: ArrayLike) -> Estimate:
        """Area under the precision-recall curve, as average precision, of scores `[N]` against labels `[N]`."""
        return self._area(scores, labels, average_precision, Ranking.average_precision)

    def _area(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        figure: Callable[[list[float], list[int]], float | None],
        redrawn: Callable[[Ranking, Values], Values],
    ) -> Estimate:
        score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.int64)
        value = figure(score.tolist(), label.tolist())
        if value is None:
            return Estimate(None, None, None, len(score))
        return _between(value, redrawn(Ranking(score, label), self.counts.astype(np.float64)), len(score))


def bootstrap_counts(items: int, draws: int, seed: int) -> Values:
    """How often each item is drawn, `[1 + draws, items]`: the first row is the sample itself, once each."""
    return np.concatenate([np.ones((1, items)), Draws(range(items), seed=seed, draws=draws).counts])


def estimate(values: Values, count: int) -> Estimate:
    """The figure of the sample, the first of `values` `[1 + D]`, with the 95 % percentile interval of the draws."""
    own = float(values[0])
    return Estimate(None, None, None, count) if np.isnan(own) else _between(own, values[1:], count)


def _between(value: float, drawn: Values, count: int) -> Estimate:
    """A figure with the interval of its `drawn` values `[D]`; none where more than half of them are undefined."""
    kept = drawn[~np.isnan(drawn)]
    if len(kept) <= len(drawn) / 2:
        return Estimate(value, None, None, count)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high), count)
