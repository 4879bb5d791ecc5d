"""Average precision and AUROC of one ranking, for all draws of a bootstrap at once."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.errors import BadInputError
from zoo.evaluation.robustness.resampling import Estimate

Values: TypeAlias = NDArray[np.float64]


def bootstrap_counts(items: int, draws: int, seed: int) -> Values:
    """How often each item is drawn, `[1 + draws, items]`: the first row is the sample itself, once each."""
    if draws < 100:
        raise BadInputError(f"draws must be at least 100 for the ends of an interval to mean anything, got {draws}")
    generator = np.random.default_rng(seed)
    counts = np.ones((1 + draws, items))
    for draw in range(1, 1 + draws):
        counts[draw] = np.bincount(generator.integers(items, size=items), minlength=items)
    return counts


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


def estimate(values: Values, count: int) -> Estimate:
    """The figure of the sample, the first of `values` `[1 + D]`, with the 95 % percentile interval of the draws."""
    own, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    if np.isnan(own) or len(drawn) <= (len(values) - 1) / 2:
        return Estimate(None if np.isnan(own) else own, None, None, count)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(own, float(low), float(high), count)
