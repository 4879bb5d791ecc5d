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

    Reading, collating, moving and augmenting count. The first batch of an epoch does not count: workers start there.
    """

    def __init__(self) -> None:
        self.shares: list[float] = []
        self._start()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start to count again."""
        self._start()

    def on_train_batch_start(self, *_: Any) -> None:
        """Count the time since the last step as waiting."""
        self._waiting += self._lap()

    def on_train_batch_end(self, *_: Any) -> None:
        """Count the time since the batch came as work."""
        self._working += self._lap()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the share of this epoch."""
        total = self._waiting + self._working
        if total > 0:
            self.shares.append(self._waiting / total)
            pl_module.log("train/data_share", self.shares[-1])

    def on_train_end(self, *_: Any) -> None:
        """Log the mean over all epochs."""
        if self.shares:
            mean = sum(self.shares) / len(self.shares)
            log.warning("data loading took %.1f %% of the training steps", 100 * mean)

    def _start(self) -> None:
        self._waiting = self._working = 0.0
        self._mark: float | None = None

    def _lap(self) -> float:
        now = time.perf_counter()
        elapsed = 0.0 if self._mark is None else now - self._mark
        self._mark = now
        return elapsed
