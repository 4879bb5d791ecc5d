"""The ranking figures of validation: of all batches together, whatever their size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from zoo.metrics import auroc, average_precision


class UnsafeRanking(Metric):
    """AUROC and average precision of unsafe scores against labels, over all batches and processes.

    torchmetrics' `BinaryAUROC` passes a batch through a sigmoid when any score of it leaves [0, 1], as pooled sums do
    by rounding: its value then depends on the batch size. This one keeps the scores as they are.
    """

    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores `[B]` and labels `[B]` of 1 (unsafe) or 0 (safe)."""
        self.scores.append(scores)
        self.labels.append(labels)

    def compute(self) -> dict[str, Tensor]:
        """`auroc` and `auprc` in [0, 1]; empty while a class is missing."""
        if not self.scores:
            return {}
        scores, labels = dim_zero_cat(self.scores).tolist(), dim_zero_cat(self.labels).tolist()
        figures = {"auroc": auroc(scores, labels), "auprc": average_precision(scores, labels)}
        return {name: torch.tensor(value) for name, value in figures.items() if value is not None}

    def finish(self, prefix: str, names: Sequence[str] = ("auroc", "auprc")) -> dict[str, Tensor]:
        """These figures, named with a prefix (`val/`), and a new start."""
        figures: dict[str, Tensor] = self.compute()
        self.reset()
        return {prefix + name: value for name, value in figures.items() if name in names}
