"""`zoo bench BUNDLE`: the engines of a bundle and the same CLIP in other libraries, timed in turns in one run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from export.bench.peers import check_peers, peer_side
from export.bench.report import Benchmark
from export.bench.sides import Input, Task, drawn_jpegs, engine_sides
from export.bundle.manifest import Device
from export.bundle.store import Bundle, read_bundle
from zoo.errors import BadArgumentError

#: Seconds before each timed run: threads that wait for work by spinning, as OpenMP's do, would slow the next side.
PAUSE = 0.05


def in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, tick: Callable[[], None] = lambda: None
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds `[rounds]` of each run; entry i of all of them is round i.

    The first run rotates and the direction alternates, so that no run always follows the same neighbour. Two rounds
    warm up first. `tick` is called after each round.
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
    """Raise BadArgumentError for batches, threads or rounds that are too few for a benchmark."""
    if rounds < 5 or threads < 1 or not batches or min(batches) < 1:
        raise BadArgumentError(
            f"need at least 5 rounds, 1 thread and batches of 1, got {rounds}, {threads}, {list(batches)}"
        )


def order(names: list[str], number: int) -> list[str]:
    """The order of a round: each order forwards and then backwards, with another one in front every other round."""
    first = number // 2 % len(names)
    turned = names[first:] + names[:first]
    return turned[::-1] if number % 2 else turned


def bench(
    folder: Path,
    *,
    against: Sequence[str] = ("transformers",),
    engines: Sequence[str] = (),
    input: Input = "jpeg",
    device: Device = "cpu",
    batches: Sequence[int] = (1, 8, 32),
    threads: int = 2,
    rounds: int = 20,
    size: tuple[int, int] = (1024, 768),
) -> Benchmark:
    """Time engines of a `safeclip_*` bundle (all that run on the device when none is named) and its peers.

    All get the same images, as JPEG bytes of `size` (width, height) or as pixels that are already preprocessed, on the
    same device with as many threads, and end with verdicts (the peers with category scores) or with the scores of each
    phrase. In each round all run once. Raises BadArgumentError for numbers out of range, unknown names and a model that
    is not a CLIP, MissingDependencyError for a peer that is not installed, and what `export.runtime.load` does.
    """
    check_figures(batches, threads, rounds)
    if min(size) < 1:
        raise BadArgumentError(f"images need a width and a height of at least 1 pixel, got {size[0]}x{size[1]}")
    peers, batches = list(dict.fromkeys(against)), list(dict.fromkeys(batches))
    check_peers(peers)
    bundle = read_bundle(folder)
    if "safeclip" not in bundle.card.architecture.split("_") or bundle.card.image is None:
        raise BadArgumentError(f"{folder} is a {bundle.card.name}: every peer is a CLIP, so it must be a safeclip_*")
    torch.set_num_threads(threads)
    task = Task(drawn_jpegs(max(batches), size), input, device, threads)
    result = Benchmark(_setting(bundle, task, rounds, size), [], [], [])
    with ExitStack() as stack:
        sides, left_out = engine_sides(bundle, engines, task, stack)
        sides += [peer_side(name, bundle, task) for name in peers]
        result.sides.extend(side.about for side in sides)
        result.left_out.update(left_out)
        progress = stack.enter_context(Progress(transient=True, console=Console(stderr=True)))
        bar = progress.add_task("Timing", total=rounds * len(batches))
        for batch in batches:
            runs = {side.about.name: side.at(batch) for side in sides}
            result.add(in_turns(runs, rounds, lambda: progress.advance(bar)), batch)
    return result


def _setting(bundle: Bundle, task: Task, rounds: int, size: tuple[int, int]) -> dict[str, str]:
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    side = bundle.card.image.size if bundle.card.image else 0
    tasks = {
        "jpeg": f"JPEG bytes of {size[0]}x{size[1]} to verdict",
        "pixels": f"the network alone, preprocessed pixels of {side}x{side} to scores",
    }
    return {
        "model": bundle.card.name,
        "task": tasks[task.input],
        "device": f"{task.device}, {task.threads} threads on {os.cpu_count()} cores ({platform.machine()}), "
        f"load average {load_average:.1f} at the start",
        "rounds": f"{rounds} of each batch size, all sides in turn",
    }
