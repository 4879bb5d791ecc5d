"""Callbacks that recipes name."""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

log = logging.getLogger("zoo.training")


class DataShare(Callback):
    """Logs `train/data_share`: the share of an epoch's training time that went into waiting for the next batch.

    Reading, collating, moving and augmenting count; the first batch of an epoch does not (workers start there).
    """

    def __init__(self) -> None:
        self._waiting = self._working = 0.0
        self._mark: float | None = None
        self.shares: list[float] = []

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start counting anew."""
        self._waiting = self._working = 0.0
        self._mark = None

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """The wait is over."""
        now = time.perf_counter()
        if self._mark is not None:
            self._waiting += now - self._mark
        self._mark = now

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """The step is done; from here on we wait."""
        now = time.perf_counter()
        if self._mark is not None:
            self._working += now - self._mark
        self._mark = now

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the share of this epoch."""
        total = self._waiting + self._working
        if total > 0:
            self.shares.append(self._waiting / total)
            pl_module.log("train/data_share", self.shares[-1])

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say the mean over all epochs."""
        if self.shares:
            mean = sum(self.shares) / len(self.shares)
            log.warning("data loading took %.1f %% of the training steps", 100 * mean)
