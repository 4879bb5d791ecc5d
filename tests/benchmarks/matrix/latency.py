"""How long an engine takes for one input. Processor time, since a busy neighbour triples any time on the clock."""

from __future__ import annotations

import platform
import time

import numpy as np

from export.runtime import RunningEngine
from export.runtime.engine import told
from zoo.judging.scorer import Feeds

#: Between these many runs, and as many as fit into this time.
LEAST, MOST, SECONDS = 5, 100, 3.0


def median_ms(engine: RunningEngine, feeds: Feeds) -> tuple[float, float]:
    """The median of processor time and of time on the clock, in ms, for one batch.

    The engine must have one thread, the caller's: its processor time is then all of the engine's.
    """
    used: list[float] = []
    waited: list[float] = []
    for _ in range(2):  # the first runs allocate
        engine.run(feeds)
    begin = time.thread_time()
    while len(used) < LEAST or (len(used) < MOST and time.thread_time() - begin < SECONDS):
        clock, start = time.perf_counter(), time.thread_time()
        engine.run(feeds)
        used.append(time.thread_time() - start)
        waited.append(time.perf_counter() - clock)
    return round(1000 * float(np.median(used)), 3), round(1000 * float(np.median(waited)), 3)


def machine() -> str:
    """The processor of this machine, in words."""
    return told("model name") or platform.processor() or platform.machine()
