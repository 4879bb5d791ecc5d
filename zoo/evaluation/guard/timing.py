"""How long an answer takes, prefill and decode apart, and what the guard adds to either."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

T = TypeVar("T")


@dataclass(frozen=True)
class Latency:
    """Seconds of one answer: `prefill` until the first token is out (vision pass included), `total` until the end.

    `decode` is the time per further token, None where the first token was the only one.
    """

    prefill: float
    decode: float | None
    total: float


@dataclass(frozen=True)
class Ratio:
    """Guarded over unguarded time of one phase: medians in milliseconds, their ratio, and the spread of the pairs.

    `low` and `high` are the 10th and 90th percentile of the ratios pair by pair, `pairs` how many there were.
    """

    phase: str
    off_ms: float
    on_ms: float
    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def overhead(self) -> str:
        """As people read it: `+0.4 %`."""
        return f"{100 * (self.ratio - 1):+.1f} %"


class TokenClock(StoppingCriteria):  # type: ignore[misc]
    """Counts tokens and notes when the first one is out; it stops nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first: float | None = None
        self.tokens = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Called by `generate` after each token."""
        if self.first is None:
            synchronise(self.device)
            self.first = time.perf_counter()
        self.tokens += 1
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has nothing in flight."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(generate: Callable[..., T], device: torch.device, inputs: dict[str, Any]) -> tuple[T, Latency | None]:
    """Run `generate(**inputs)`, a model's or a guard's; None for the latency where no token was generated."""
    clock = TokenClock(device)
    synchronise(device)
    start = time.perf_counter()
    output = generate(**inputs, stopping_criteria=StoppingCriteriaList([clock]))
    synchronise(device)
    end = time.perf_counter()
    if clock.first is None:
        return output, None
    decode = (end - clock.first) / (clock.tokens - 1) if clock.tokens > 1 else None
    return output, Latency(clock.first - start, decode, end - start)


def ratios(pairs: Sequence[tuple[Latency, Latency]]) -> list[Ratio]:
    """Prefill, decode (per token) and total of (unguarded, guarded) latencies; empty without pairs."""
    phases: dict[str, list[tuple[float, float]]] = {
        "prefill": [(off.prefill, on.prefill) for off, on in pairs],
        "decode": [(off.decode, on.decode) for off, on in pairs if off.decode is not None and on.decode is not None],
        "total": [(off.total, on.total) for off, on in pairs],
    }
    return [ratio(phase, times) for phase, times in phases.items() if times]


def ratio(phase: str, times: Sequence[tuple[float, float]]) -> Ratio:
    """The ratio of the medians of (unguarded, guarded) seconds, with the spread of the pairs."""
    table = np.array(times, dtype=np.float64)
    off, on = np.median(table, axis=0)
    low, high = np.percentile(table[:, 1] / table[:, 0], [10, 90])
    return Ratio(phase, float(1000 * off), float(1000 * on), float(on / off), float(low), float(high), len(table))
