"""AUROC, average precision and means of an evaluation, over all batches and processes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from zoo.metrics import auroc, average_precision
from zoo.training.order import gathered


class UnsafeRanking:
    """AUROC and average precision of unsafe scores against labels, over all batches and processes.

    torchmetrics' `BinaryAUROC` passes a batch through a sigmoid when any score of it leaves [0, 1], as pooled sums do
    by rounding: its value then depends on the batch size. This one keeps the scores as they are, and a process may
    have none.
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[float, int]] = []
        #: The labels of the pairs that were finished last.
        self.kinds: set[int] = set()

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores `[B]` and labels `[B]` of 1 (unsafe) or 0 (safe)."""
        self.pairs += zip(scores.tolist(), labels.tolist(), strict=True)

    def finish(self, prefix: str, names: Sequence[str] = ("auroc", "auprc")) -> dict[str, float]:
        """`auroc` and `auprc` in [0, 1], named with a prefix (`val/`), none while a class is missing; starts again."""
        pairs = gathered(self.pairs)
        self.pairs, self.kinds = [], {label for _, label in pairs}
        scores, labels = [score for score, _ in pairs], [label for _, label in pairs]
        figures = {"auroc": auroc(scores, labels), "auprc": average_precision(scores, labels)} if pairs else {}
        return {prefix + name: value for name, value in figures.items() if name in names and value is not None}


class Mean:
    """The mean of an evaluation, over all batches and processes.

    A metric of torchmetrics becomes bfloat16 with its module in `bf16-true`, in which 256 and 1 are 256. This one sums
    numbers of Python.
    """

    def __init__(self) -> None:
        self.total, self.weight = 0.0, 0.0

    def update(self, values: Tensor, weight: Tensor | float = 1.0) -> None:
        """Add values of any shape, each with the same weight."""
        self.total += float(values.float().sum() * weight)
        self.weight += float(values.numel() * weight)

    def finish(self) -> float | None:
        """The mean, None where nothing was added; starts again."""
        totals, weights = zip(*gathered([(self.total, self.weight)]), strict=True)
        self.total, self.weight = 0.0, 0.0
        return sum(totals) / sum(weights) if sum(weights) else None
