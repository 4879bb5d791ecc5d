"""Figures of merit: AUROC and rates of verdicts against labels, recall at k of retrieval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zoo.contract.verdict import Verdict
from zoo.errors import BadInputError

if TYPE_CHECKING:
    from torch import Tensor

#: Decisions that keep an item from passing as safe.
FLAGGED = ("unsafe", "review")


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


@dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve, from (0, 0) to (1, 1): `fpr` and `tpr` `[P]` in [0, 1]."""

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]


def auroc(scores: Sequence[float | None], labels: Sequence[int | None]) -> float | None:
    """Area under the ROC curve in [0, 1]: how often a positive outranks a negative, a tie counting half.

    Pairs without a score (unjudged) or a label are left out; None where fewer than two classes remain. Scores may
    have any finite range. Raises BadInputError for lists of different length, a NaN, or a label but 0, 1, None.
    """
    curve = roc(scores, labels)
    return None if curve is None else float(np.trapezoid(curve.tpr, curve.fpr))


def roc(scores: Sequence[float | None], labels: Sequence[int | None]) -> RocCurve | None:
    """The ROC curve of the pairs that have both a score and a label; None, and raises, as `auroc`."""
    import torch
    from torchmetrics.functional.classification import binary_roc

    kept = scored_pairs(scores, labels)
    values = np.array([score for score, _ in kept], dtype=np.float64)
    truth = np.array([label for _, label in kept], dtype=np.int64)
    if len(set(truth.tolist())) < 2:
        return None
    # torchmetrics takes scores outside [0, 1] for logits, and a float32 sigmoid ties what differs: rank instead.
    ranks = np.unique(values, return_inverse=True)[1] / len(values)
    fpr, tpr, _ = binary_roc(torch.from_numpy(ranks), torch.from_numpy(truth))
    return RocCurve(fpr.double().numpy(), tpr.double().numpy())


def average_precision(scores: Sequence[float | None], labels: Sequence[int | None]) -> float | None:
    """Area under the precision-recall curve in [0, 1], as average precision; None, and raises, as `auroc`."""
    import torch
    from torchmetrics.functional.classification import binary_average_precision

    kept = scored_pairs(scores, labels)
    truth = np.array([label for _, label in kept], dtype=np.int64)
    if len(set(truth.tolist())) < 2:
        return None
    ranks = np.unique(np.array([score for score, _ in kept]), return_inverse=True)[1] / len(kept)  # as in `roc`
    return float(binary_average_precision(torch.from_numpy(ranks), torch.from_numpy(truth)))


def scored_pairs(scores: Sequence[float | None], labels: Sequence[int | None]) -> list[tuple[float, int]]:
    """The (score, label) of items that have both, in order. Raises as `auroc`."""
    if len(scores) != len(labels):
        raise BadInputError(f"{len(scores)} scores and {len(labels)} labels: score i goes with label i")
    wrong = sorted({repr(label) for label in labels if label is not None and label not in (0, 1)})
    if wrong:
        raise BadInputError(f"a label is 1 (unsafe), 0 (safe) or None (not known), got {', '.join(wrong[:4])}")
    broken = [score for score in scores if score is not None and not math.isfinite(score)]
    if broken:
        raise BadInputError(f"a score must be finite, or None for what was not judged, got {broken[0]}")
    return [(float(s), int(y)) for s, y in zip(scores, labels, strict=True) if s is not None and y is not None]


def rates(verdicts: Sequence[Verdict], labels: Sequence[int | None]) -> Rates:
    """Count verdicts against labels (1 unsafe, 0 safe, None left out).

    Raises BadInputError for lists of different length or another label.
    """
    if len(verdicts) != len(labels):
        raise BadInputError(f"{len(verdicts)} verdicts and {len(labels)} labels: verdict i goes with label i")
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


def recall_at_k(
    similarity: Tensor | NDArray[np.floating], image_of_text: ArrayLike | Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Retrieval in both directions from similarities `[T, I]` of T texts with I images, higher is nearer.

    `image_of_text` `[T]` holds the index of each text's own image in [0, I). Returns shares in [0, 1]:
    `text_to_image_rK`, texts whose own image is among the k nearest images, and `image_to_text_rK`, images with
    at least one own text among the k nearest texts (images without any text are left out). Of equally near
    candidates the own one counts as last, so that a collapsed model scores nothing. Raises BadInputError for
    shapes that do not fit, NaN, an index out of range, or k below 1.
    """
    table = _array(similarity).astype(np.float64)
    own = _array(image_of_text)
    if table.ndim != 2 or 0 in table.shape or own.shape != table.shape[:1] or not np.issubdtype(own.dtype, np.integer):
        found = f"{list(table.shape)} and {own.dtype} {list(own.shape)}"
        raise BadInputError(f"need similarity [T, I] and integer image indices [T], got {found}")
    if np.isnan(table).any():
        raise BadInputError("the similarities hold NaN: the model broke, or an embedding has norm 0")
    if own.min() < 0 or own.max() >= table.shape[1] or any(k < 1 for k in ks):
        raise BadInputError(f"image indices must lie in [0, {table.shape[1]}) and k be 1 or more, got k {list(ks)}")
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
