"""The bootstrap for many figures of one set of items: drawn once, every figure a product with the same counts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic.dataclasses import dataclass

from zoo import schema
from zoo.errors import BadInputError
from zoo.evaluation.intervals import wilson
from zoo.evaluation.metrics import auroc, average_precision


@dataclass(frozen=True, config=schema.STRICT)
class Estimate:
    """A figure in [0, 1] over `count` items with the ends of its 95 % interval; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None
    count: int


class Draws:
    """Percentile bootstrap (Efron 1979) of whole groups, as `zoo.evaluation.intervals.bootstrap` draws them.

    `groups[i]` is the group of item i, such as its image: items of a group are drawn together, since they depend on
    each other. The same seed gives the same intervals.
    """

    def __init__(self, groups: Sequence[Hashable], *, seed: int, draws: int = 2000, level: float = 0.95) -> None:
        if draws < 100:
            raise BadInputError(f"draws must be at least 100 for the ends of an interval to mean anything, got {draws}")
        numbers: dict[Hashable, int] = {}
        group = np.array([numbers.setdefault(name, len(numbers)) for name in groups], dtype=np.int64)
        generator = np.random.default_rng(seed)
        self.tail, self.draws, self.level = (1 - level) / 2, draws, level
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
            ends = wilson(successes, count, self.level)
            assert ends is not None  # there are trials
            return Estimate(successes / count, ends.low, ends.high, count)
        counts = self.counts.astype(np.float64)
        below = counts @ chosen.astype(np.float64)
        with np.errstate(invalid="ignore"):
            values = np.where(below > 0, (counts @ found.astype(np.float64)) / below, np.nan)
        return self._estimate(successes / count, values, count)

    def auroc(self, scores: ArrayLike, labels: ArrayLike) -> Estimate:
        """Area under the ROC curve of scores `[N]` against labels `[N]` in {0, 1}; a tie counts half."""
        score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.int64)
        value = auroc(score.tolist(), label.tolist())
        positive, negative = self._by_rank(score, label)
        below = np.cumsum(negative, axis=1) - negative
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.where(pairs > 0, (positive * (below + negative / 2)).sum(axis=1) / pairs, np.nan)
        return self._estimate(value, values, len(score))

    def average_precision(self, scores: ArrayLike, labels: ArrayLike) -> Estimate:
        """Area under the precision-recall curve, as average precision, of scores `[N]` against labels `[N]`."""
        score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.int64)
        value = average_precision(score.tolist(), label.tolist())
        positive, negative = (part[:, ::-1] for part in self._by_rank(score, label))
        hits = np.cumsum(positive, axis=1)
        flagged = hits + np.cumsum(negative, axis=1)
        total = positive.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(flagged > 0, hits / flagged, 0.0)
            defined = (total > 0) & (negative.sum(axis=1) > 0)
            values = np.where(defined, (precision * positive).sum(axis=1) / total, np.nan)
        return self._estimate(value, values, len(score))

    def _by_rank(self, scores: NDArray[np.float64], labels: NDArray[np.int64]) -> list[NDArray[np.float64]]:
        """How many positives and negatives `[D, R]` each draw has at each distinct score, lowest first."""
        place = np.unique(scores, return_inverse=True)[1].reshape(-1)
        found = []
        for label in (1, 0):
            table = np.zeros((self.draws, int(place.max(initial=-1)) + 1))
            own = labels == label
            np.add.at(table.T, place[own], self.counts[:, own].T)
            found.append(table)
        return found

    def _estimate(self, value: float | None, values: NDArray[np.float64], count: int) -> Estimate:
        kept = values[~np.isnan(values)]
        if value is None or len(kept) <= self.draws / 2:
            return Estimate(value, None, None, count)
        low, high = np.quantile(kept, [self.tail, 1 - self.tail])
        return Estimate(float(value), float(low), float(high), count)
