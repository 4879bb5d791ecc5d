"""Every figure of merit, on numpy and scipy alone: AUROC, average precision, rates, recall at k, intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.contract.verdict import Verdict
from zoo.errors import BadArgumentError, BadDataError, quoted

Values: TypeAlias = NDArray[np.float64]
#: The scores or labels of items in order, a list or an array; None if an item lacks its own.
Scores: TypeAlias = Sequence[float | None] | NDArray[Any]
Labels: TypeAlias = Sequence[int | None] | NDArray[Any]

#: Decisions that keep an item from passing as safe.
FLAGGED = ("unsafe", "review")


@dataclass(frozen=True, config=schema.STRICT)
class Interval:
    """Both ends of an interval, in the unit of its figure."""

    low: float
    high: float


@dataclass(frozen=True, config=schema.STRICT)
class Estimate:
    """A figure over `count` items with the ends of its 95 % interval; None if it is undefined."""

    value: float | None
    low: float | None
    high: float | None
    count: int

    @property
    def interval(self) -> Interval | None:
        """Both ends; None if the interval is undefined."""
        return None if self.low is None or self.high is None else Interval(self.low, self.high)

    @property
    def span(self) -> tuple[float, float, float]:
        """Value, low and high end to be drawn: an undefined value is 0, an undefined end is the value."""
        value = self.value or 0.0
        return value, value if self.low is None else self.low, value if self.high is None else self.high


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval | None:
    """Wilson's score interval of a share of independent trials (Wilson 1927), without continuity correction.

    The interval keeps a sensible width if none or all trials succeed, and never leaves [0, 1]. None without trials.
    Raises BadArgumentError for counts that are not a share, or a level outside (0, 1).
    """
    from scipy.stats import binomtest  # takes most of a second to import

    if not 0 <= successes <= trials:
        raise BadArgumentError(f"successes must lie in [0, trials], got {successes} of {trials}")
    if not 0 < level < 1:
        raise BadArgumentError(f"level must lie in (0, 1), got {level}")
    if trials == 0:
        return None
    ends = binomtest(successes, trials).proportion_ci(level, method="wilson")
    # The bound of an end is exact; the formula misses it by a rounding.
    return Interval(0.0 if successes == 0 else float(ends.low), 1.0 if successes == trials else float(ends.high))


class Ranking:
    """Items in descending order of their scores `[N]`, with labels `[N]` of 1 or 0; equal scores are ties.

    The figures take `counts` `[D, N]` of how often each item was drawn and return `[D]` values, NaN where a class is
    missing. Raises BadInputError for lengths that differ, scores that are not finite, and other labels.
    """

    def __init__(self, scores: ArrayLike, labels: ArrayLike) -> None:
        score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.int64)
        if score.shape != label.shape or score.ndim != 1:
            raise BadArgumentError(f"need a score and a label an item, got {list(score.shape)} and {list(label.shape)}")
        if not np.isfinite(score).all():
            raise BadArgumentError(f"a score must be finite, got {score[~np.isfinite(score)][0]}")
        if not np.isin(label, (0, 1)).all():
            raise BadArgumentError(f"a label must be 1 or 0, got {label[~np.isin(label, (0, 1))][0]}")
        self.order = np.argsort(-score, kind="stable")
        ranked = score[self.order]
        #: The last place of each run of equal scores.
        self.ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, int)
        self.labels = label[self.order]

    def auroc(self, counts: ArrayLike) -> Values:
        """How often a positive outranks a negative, in [0, 1]; a tie counts half (Mann and Whitney 1947)."""
        hits, misses = self.passed(counts)
        gained, lost = np.diff(hits, axis=1), np.diff(misses, axis=1)
        outranked = (gained * (misses[:, -1:] - misses[:, 1:] + lost / 2)).sum(axis=1)
        return _ratio(outranked, hits[:, -1] * misses[:, -1])

    def average_precision(self, counts: ArrayLike) -> Values:
        """The mean of the precision at each positive, in [0, 1]: the area under the precision-recall curve."""
        hits, misses = self.passed(counts)
        below = hits[:, 1:] + misses[:, 1:]
        precision = np.divide(hits[:, 1:], below, out=np.zeros_like(below), where=below > 0)
        both = np.where(misses[:, -1] > 0, hits[:, -1], 0.0)
        return _ratio((np.diff(hits, axis=1) * precision).sum(axis=1), both)

    def passed(self, counts: ArrayLike) -> tuple[Values, Values]:
        """Positives and negatives `[D, 1 + R]` down to the end of each run of equal scores, beginning with none."""
        drawn = np.asarray(counts, dtype=np.float64)[:, self.order]
        start = np.zeros((len(drawn), 1))
        hits, misses = (np.cumsum(drawn * (self.labels == label), axis=1)[:, self.ends] for label in (1, 0))
        return np.concatenate([start, hits], axis=1), np.concatenate([start, misses], axis=1)


class Draws:
    """Percentile bootstrap (Efron 1979) that draws whole groups, for many figures of one set of items.

    `groups[i]` is the group of item i, such as its image: items of a group depend on each other, so they are drawn
    together. `counts` `[1 + D, N]` says how often each item is drawn; the first row is the sample itself, once each.
    The same seed gives the same intervals. Raises BadInputError for fewer than 100 draws.
    """

    def __init__(self, groups: Sequence[Hashable], *, seed: int, draws: int = 2000) -> None:
        if draws < 100:
            raise BadArgumentError(
                f"draws must be at least 100 for the ends of an interval to mean anything, got {draws}"
            )
        numbers: dict[Hashable, int] = {}
        group = np.array([numbers.setdefault(name, len(numbers)) for name in groups], dtype=np.int64)
        generator = np.random.default_rng(seed)
        self.counts: NDArray[np.float32] = np.ones((1 + draws, len(group)), dtype=np.float32)
        for draw in range(1, 1 + draws if len(group) else 0):
            drawn = generator.integers(len(numbers), size=len(numbers))
            self.counts[draw] = np.bincount(drawn, minlength=len(numbers))[group]

    def mean(self, values: ArrayLike, among: ArrayLike | None = None) -> Estimate:
        """The mean of values `[N]` over the items of `among` `[N]` bool (all by default).

        If all values agree, the interval has no width. Use `share` for the share of hits.
        """
        value = np.asarray(values, dtype=np.float64)
        chosen = np.ones(len(value)) if among is None else np.asarray(among, dtype=np.float64)
        counts = self.counts.astype(np.float64)
        return estimate(_ratio(counts @ (value * chosen), counts @ chosen), int(chosen.sum()))

    def share(self, hits: ArrayLike, among: ArrayLike | None = None) -> Estimate:
        """The share of `hits` `[N]` bool among the items of `among` `[N]` bool (all by default).

        If all or none are hits, the share does not vary between draws, so the interval is Wilson's.
        """
        own = self.mean(hits, among)
        if own.value not in (0.0, 1.0):
            return own
        ends = wilson(round(own.value * own.count), own.count)
        assert ends is not None  # there is a value, so there are trials
        return Estimate(own.value, ends.low, ends.high, own.count)

    def auroc(self, scores: ArrayLike, labels: ArrayLike) -> Estimate:
        """Area under the ROC curve of scores `[N]` against labels `[N]` in {0, 1}; raises as `Ranking`."""
        ranking = Ranking(scores, labels)
        return estimate(ranking.auroc(self.counts), len(ranking.labels))

    def average_precision(self, scores: ArrayLike, labels: ArrayLike) -> Estimate:
        """Area under the precision-recall curve, as `auroc`."""
        ranking = Ranking(scores, labels)
        return estimate(ranking.average_precision(self.counts), len(ranking.labels))


def estimate(values: Values, count: int) -> Estimate:
    """The figure of the sample, the first of `values` `[1 + D]`, with the 95 % percentile interval of the draws.

    Draws without a figure (NaN) are left out; the interval is None when more than half of them have none.
    """
    if np.isnan(values[0]):
        return Estimate(None, None, None, count)
    kept = values[1:][~np.isnan(values[1:])]
    if len(kept) <= (len(values) - 1) / 2:
        return Estimate(float(values[0]), None, None, count)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high), count)


def auroc(scores: Scores, labels: Labels) -> float | None:
    """Area under the ROC curve in [0, 1]: how often a positive outranks a negative, a tie counting half.

    Pairs without a score (unjudged) or a label are left out; None where fewer than two classes remain. Scores may
    have any finite range. Raises BadArgumentError for lists of different length, a NaN, or a label except 0, 1, None.
    """
    ranking = _ranking(scores, labels)
    return _defined(ranking.auroc(np.ones((1, len(ranking.labels)))))


def average_precision(scores: Scores, labels: Labels) -> float | None:
    """Area under the precision-recall curve in [0, 1], as average precision; None, and raises, as `auroc`."""
    ranking = _ranking(scores, labels)
    return _defined(ranking.average_precision(np.ones((1, len(ranking.labels)))))


class RocCurve(NamedTuple):
    """Points of a ROC curve, from (0, 0) to (1, 1): `fpr` and `tpr` `[P]` in [0, 1]."""

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]


def roc(scores: Scores, labels: Labels) -> RocCurve | None:
    """The ROC curve of the pairs that have both a score and a label; None, and raises, as `auroc`."""
    ranking = _ranking(scores, labels)
    hits, misses = (part[0] for part in ranking.passed(np.ones((1, len(ranking.labels)))))
    return RocCurve(misses / misses[-1], hits / hits[-1]) if hits[-1] and misses[-1] else None


def scored_pairs(scores: Scores, labels: Labels) -> list[tuple[float, int]]:
    """The (score, label) of items that have both, in order. Raises as `auroc`."""
    if len(scores) != len(labels):
        raise BadArgumentError(f"{len(scores)} scores and {len(labels)} labels: score i goes with label i")
    wrong = sorted(
        {
            quoted(label) if isinstance(label, str) else repr(label)
            for label in labels
            if label is not None and label not in (0, 1)
        }
    )
    if wrong:
        raise BadArgumentError(f"a label is 1 (unsafe), 0 (safe) or None (not known), got {', '.join(wrong[:4])}")
    broken = [score for score in scores if score is not None and not math.isfinite(score)]
    if broken:
        raise BadArgumentError(f"a score must be finite, or None for what was not judged, got {broken[0]}")
    return [(float(s), int(y)) for s, y in zip(scores, labels, strict=True) if s is not None and y is not None]


@dataclass(frozen=True)
class Rates:
    """Verdicts against labels. Counts are of labelled items; `unjudged` ones (`unknown`) are in no other count.

    A positive is an item with label 1; it is flagged when the decision is `unsafe` or `review`.
    """

    true_positives: int
    false_negatives: int
    false_positives: int
    true_negatives: int
    unjudged: int

    @property
    def positives(self) -> int:
        """Judged items with label 1."""
        return self.true_positives + self.false_negatives

    @property
    def negatives(self) -> int:
        """Judged items with label 0."""
        return self.false_positives + self.true_negatives

    @property
    def tpr(self) -> float | None:
        """Share of positives that were flagged, in [0, 1]; None without positives."""
        return self.true_positives / self.positives if self.positives else None

    @property
    def fpr(self) -> float | None:
        """Share of negatives that were flagged, in [0, 1]; None without negatives."""
        return self.false_positives / self.negatives if self.negatives else None


def rates(verdicts: Sequence[Verdict], labels: Sequence[int | None]) -> Rates:
    """Count verdicts against labels (1 unsafe, 0 safe, None left out).

    Raises BadInputError for lists of different length or another label.
    """
    if len(verdicts) != len(labels):
        raise BadArgumentError(f"{len(verdicts)} verdicts and {len(labels)} labels: verdict i goes with label i")
    scored_pairs([None] * len(labels), labels)
    table = {(flag, label): 0 for flag in (True, False) for label in (0, 1)}
    unjudged = 0
    for verdict, label in zip(verdicts, labels, strict=True):
        if label is None:
            continue
        if verdict.decision == "unknown":
            unjudged += 1
        else:
            table[verdict.decision in FLAGGED, int(label)] += 1
    return Rates(table[True, 1], table[False, 1], table[True, 0], table[False, 0], unjudged)


def recall_at_k(similarity: Any, image_of_text: Any, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Retrieval in both directions from similarities `[T, I]` of T texts with I images, higher is nearer.

    Both are arrays or tensors; `image_of_text` `[T]` holds the index of each text's own image in [0, I). Returns
    shares in [0, 1]: `text_to_image_rK`, texts whose own image is among the k nearest images, and
    `image_to_text_rK`, images with at least one own text among the k nearest texts (images without any text are left
    out). Of equally near candidates the own one counts as last, so that a collapsed model scores nothing. Raises
    BadInputError for shapes that do not fit, NaN, an index out of range, or k below 1.
    """
    table = _array(similarity).astype(np.float64)
    own = _array(image_of_text)
    if table.ndim != 2 or 0 in table.shape or own.shape != table.shape[:1] or not np.issubdtype(own.dtype, np.integer):
        given = f"{list(table.shape)} and {own.dtype} {list(own.shape)}"
        raise BadArgumentError(f"need similarity [T, I] and integer image indices [T], got {given}")
    if np.isnan(table).any():
        raise BadDataError("the similarities hold NaN: the model broke, or an embedding has norm 0")
    if own.min() < 0 or own.max() >= table.shape[1] or any(k < 1 for k in ks):
        raise BadArgumentError(f"image indices must lie in [0, {table.shape[1]}) and k be 1 or more, got k {list(ks)}")
    is_own = own[:, None] == np.arange(table.shape[1])[None, :]
    by_text = _rank_of_best(table, is_own)
    by_image = _rank_of_best(table.T, is_own.T)[is_own.any(axis=0)]
    recalls = {f"text_to_image_r{k}": float((by_text < k).mean()) for k in ks}
    return recalls | {f"image_to_text_r{k}": float((by_image < k).mean()) for k in ks}


def _rank_of_best(table: NDArray[np.float64], wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row, how many unwanted columns are at least as near as the nearest wanted one: 0 is a hit at 1."""
    best = np.where(wanted, table, -np.inf).max(axis=1, keepdims=True)
    ranks: NDArray[np.int64] = ((table >= best) & ~wanted).sum(axis=1)
    return ranks


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _ranking(scores: Scores, labels: Labels) -> Ranking:
    kept = scored_pairs(scores, labels)
    return Ranking([score for score, _ in kept], [label for _, label in kept])


def _ratio(part: Values, whole: Values) -> Values:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _defined(values: Values) -> float | None:
    return None if np.isnan(values[0]) else float(values[0])
