"""What an engine is once it is loaded, whatever runs it. No torch."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from export.bundle import Engine
from zoo.judging.scorer import Feeds


class RunningEngine(ABC):
    """An engine that is loaded: the arrays of `card.input_names` in, logits and scores `[B, N]` out. Thread-safe.

    `spec` is what the manifest says of it, `device` where it runs, `provider` by what, `why` the reason it was chosen.
    `text_banks` replace the model's own: each float32 `[P, D]`, unit norm over temperature.
    """

    provider: str

    def __init__(self, spec: Engine, device: str) -> None:
        self.spec, self.device, self.why = spec, device, ""
        self.text_banks: dict[str, NDArray[np.float32]] = {}

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:
        """Scores `[B, N]` of one batch."""
        return self.run(feeds)[1]

    @abstractmethod
    def run(self, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and scores `[B, N]` of one batch."""

    def with_banks(self, text_banks: dict[str, NDArray[np.float32]]) -> Self:
        """The same loaded engine with other text banks; this one keeps its own."""
        other = copy.copy(self)
        other.text_banks = text_banks
        return other
