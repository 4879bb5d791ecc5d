"""What trainings against an attack share: eps that rises at the start, and the validation rows that are attacked."""

from __future__ import annotations

from typing import cast

import lightning
import torch
from torch import Tensor

from zoo.training.data import Batch


def warm_share(module: lightning.LightningModule, warmup: float) -> float:
    """The share in (0, 1] of eps that this step attacks with: rising for `warmup`, a share of all steps, then 1."""
    warm = warmup * float(module.trainer.estimated_stepping_batches) if warmup else 0.0
    return min(1.0, (module.global_step + 1) / max(1.0, warm))


def spaced_rows(trainer: lightning.Trainer, batches: int, batch_idx: int, count: int) -> Tensor:
    """Which of `count` rows `[B]` bool of a validation batch to attack: in all `batches` batches' worth of rows.

    Evenly spaced over the whole split, for manifests are often sorted by label.
    """
    if batches < 1:
        return torch.zeros(count, dtype=torch.bool)
    stride = max(1, int(sum(trainer.num_val_batches)) // batches)
    return (batch_idx * count + torch.arange(count)) % stride == 0


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch, in this order."""
    picked = {
        name: value[rows] if isinstance(value, Tensor) else [cast("list[object]", value)[row] for row in rows]
        for name, value in batch.items()
    }
    return cast("Batch", picked)
