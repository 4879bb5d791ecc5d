"""Timing in turns: every side once a round, so that a busy neighbour slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.errors import BadArgumentError

#: Seconds before each timed run: threads that wait for work by spinning, as OpenMP's do, would slow the next side.
PAUSE = 0.05


def in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, tick: Callable[[], None] = lambda: None
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds `[rounds]` of each run; entry i of all of them is round i.

    Who begins rotates and the direction alternates, so that nobody always runs after the same neighbour. Two rounds
    before the first warm up. `tick` is called after each round.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(2):
        for run in runs.values():
            run()
    for number in range(rounds):
        for name in order(list(runs), number):
            time.sleep(PAUSE)
            start = time.perf_counter()
            runs[name]()
            times[name].append(1000 * (time.perf_counter() - start))
        tick()
    return {name: np.array(values) for name, values in times.items()}


def check_figures(batches: Sequence[int], threads: int, rounds: int) -> None:
    """Raise BadInputError for batches, threads and rounds that no benchmark can be made of."""
    if rounds < 5 or threads < 1 or not batches or min(batches) < 1:
        raise BadArgumentError(
            f"need at least 5 rounds, 1 thread and batches of 1, got {rounds}, {threads}, {list(batches)}"
        )


def order(names: list[str], number: int) -> list[str]:
    """The order of a round: each order forwards and then backwards, with another one in front every other round."""
    first = number // 2 % len(names)
    turned = names[first:] + names[:first]
    return turned[::-1] if number % 2 else turned
