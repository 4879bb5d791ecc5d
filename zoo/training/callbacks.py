"""Callbacks: those that recipes name, and what every training has."""

from __future__ import annotations

import logging
import time
from statistics import fmean
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

log = logging.getLogger("zoo.training")


class DataShare(Callback):
    """Logs `train/data_share`: the share of an epoch's training time that went into waiting for the next batch.

    Reading, collating, moving and augmenting count. The first batch of an epoch does not count: workers start there.
    """

    def __init__(self) -> None:
        self.shares: list[float] = []
        #: When batches came and were done, in turns.
        self._marks: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start to count again."""
        self._marks = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Here ends the waiting."""
        self._marks.append(time.perf_counter())

    def on_train_batch_end(self, *_: Any) -> None:
        """Here ends the work."""
        self._marks.append(time.perf_counter())

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the share of this epoch."""
        came, done = self._marks[::2], self._marks[1::2]
        if done:
            working = sum(end - start for start, end in zip(came, done, strict=False))
            self.shares.append(1 - working / (done[-1] - came[0]))
            pl_module.log("train/data_share", self.shares[-1])

    def on_train_end(self, *_: Any) -> None:
        """Log the mean over all epochs."""
        if self.shares:
            log.warning("data loading took %.1f %% of the training steps", 100 * fmean(self.shares))


class WholeAverages(Callback):
    """Keeps averaged weights in float32 where the model's are bfloat16 (`bf16-true`); every training has it.

    Lightning exchanges them for the model's while it validates. What comes back was rounded, and an average that
    moves by less in an epoch would stand still.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep them."""
        if any(one.element_size() < 4 for one in pl_module.parameters()):
            self._kept = [average.detach().clone() for average in _averages(trainer)]

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Put them back, after Lightning has: callbacks of a module come after those of the trainer."""
        for average, kept in zip(_averages(trainer) if self._kept else (), self._kept, strict=True):
            average.detach().copy_(kept)
        self._kept = []


def _averages(trainer: lightning.Trainer) -> list[Tensor]:
    """The averaged weights of all callbacks, in training."""
    averaging = [one for one in trainer.callbacks if isinstance(one, WeightAveraging)]  # type: ignore[attr-defined]
    models = [one._average_model for one in averaging if one._average_model is not None]
    return [weight for model in models for weight in (*model.parameters(), *model.buffers())]
