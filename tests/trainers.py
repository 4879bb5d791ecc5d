"""A trainer that writes, shows and keeps nothing."""

from __future__ import annotations

from typing import Any

import lightning


def quiet_trainer(epochs: int = 1, **options: Any) -> lightning.Trainer:
    """On the CPU, without logs, checkpoints, bar and summary; options are those of `lightning.Trainer`."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(accelerator="cpu", max_epochs=epochs, **quiet | options)
