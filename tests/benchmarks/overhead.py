"""What the runtime and the batching service add to the bare engine, such as `session.run`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from export.bench.compare import check_figures
from export.runtime import OnnxEngine, RunningEngine, load
from export.runtime.service import Service
from export.verify.inputs import image_probes, text_probes
from tests.benchmarks.common import add_rounds, add_sizes, answered, parser
from zoo.judging.scorer import Feeds, Scorer, feeds


class Timed:
    """An engine that adds up the time it takes, so that the rest of a call is known from that same call."""

    def __init__(self, engine: RunningEngine) -> None:
        self.engine, self.seconds, self.cpu, self.rows = engine, 0.0, 0.0, 0

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:
        start, cpu = time.perf_counter(), time.process_time()
        scores = self.engine(feeds)
        self.seconds, self.cpu = self.seconds + time.perf_counter() - start, self.cpu + time.process_time() - cpu
        self.rows += len(scores)
        return scores


def bench_overhead(folder: Path, batches: list[int], threads: int, rounds: int, engine: str | None = None) -> str:
    """Time an engine alone, the runtime (`verdicts`) and the service (`submit`) on the same items in turn, as Markdown.

    The engine is the best that runs on the CPU, or the one that is named; alone, one of onnxruntime is `session.run`.

    The items are pictures of the model's own size (and texts, where it reads them): decoding and resizing are work, not
    overhead. Two figures for each road: its time over that of the bare engine in the same round, which carries the
    noise of two long timings; and what it spends outside the engine, from the same call, which does not. Raises
    BadInputError for figures that mean nothing, and what `export.runtime.load` raises.
    """
    check_figures(batches, threads, rounds)
    scorer = load(folder, device="cpu", engine=engine, threads=threads, batch_size=max(batches))
    timed = Timed(scorer.engine)
    lines = [f"{scorer.card.name}, {scorer.engine.spec.name}, {threads} threads, {rounds} rounds in turn", ""]
    lines += ["| batch | road | engine alone ms | road ms | added, round by round | outside the engine ms | share |"]
    lines += ["|---" * 7 + "|"]
    with Service(scorer, max_batch=max(batches)) as service:
        for batch in batches:
            times = _rounds(service, timed, batch, rounds)
            lines += [_row(batch, road, times) for road in ("runtime", "service")]
    lines += ["", "(Medians; in brackets the 10th to 90th percentile of the rounds.)"]
    return "\n".join(lines)


def _rounds(service: Service, timed: Timed, batch: int, rounds: int) -> dict[str, NDArray[np.float64]]:
    """Seconds `[rounds]` of each road, and under `NAME outside` those that it spent outside the engine."""
    scorer = service.scorer
    images, texts = _items(scorer, batch)
    pairs = [(None if images is None else images[i], texts[i] if texts else None) for i in range(batch)]
    arrays = feeds(scorer.card, [scorer.prepare(*pair) for pair in pairs])
    engine = timed.engine
    bare = partial(engine.session.run, ["logits", "scores"]) if isinstance(engine, OnnxEngine) else engine.run
    roads: dict[str, Callable[[], object]] = {
        "engine": lambda: bare(arrays),
        "runtime": lambda: scorer.verdict(*pairs[0]) if batch == 1 else scorer.verdicts(images, texts),
        "service": lambda: [future.result() for future in [service.submit(*pair) for pair in pairs]],
    }
    scorer.engine = timed
    times: dict[str, list[float]] = {name: [] for road in roads for name in (road, f"{road} outside")}
    for number in track(range(rounds + 2), "Timing", transient=True):
        for road in list(roads) if number % 2 else reversed(roads):
            timed.seconds = 0.0
            start = time.perf_counter()
            roads[road]()
            seconds = time.perf_counter() - start
            if number > 1:  # the first rounds warm up
                times[road].append(seconds)
                times[f"{road} outside"].append(seconds - timed.seconds)
    return {name: np.array(values) for name, values in times.items()}


def _items(scorer: Scorer, count: int) -> tuple[NDArray[np.uint8] | None, list[str] | None]:
    images = image_probes(count, scorer.card.image)[0] if scorer.card.image else None
    return images, text_probes(count) if scorer.card.reads_text else None


def _row(batch: int, road: str, times: dict[str, NDArray[np.float64]]) -> str:
    bare, ours, outside = times["engine"], times[road], times[f"{road} outside"]
    added, share = ours / bare - 1, outside / (ours - outside)
    low, high = np.percentile(added, [10, 90])
    spread = np.percentile(share, [10, 90])
    return (
        f"| {batch} | {road} | {1000 * np.median(bare):.2f} | {1000 * np.median(ours):.2f} "
        f"| {np.median(added):+.1%} ({low:+.1%} to {high:+.1%}) | {1000 * np.median(outside):.3f} "
        f"| {np.median(share):.2%} ({spread[0]:.2%} to {spread[1]:.2%}) |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with these arguments, by default those of the command line."""
    text = "Time an engine alone, the runtime and the batching service on the same items in turns."
    options = parser("tests.benchmarks.overhead", text, "bundles/vit_b32 --batch 1,32 --engine onnx-int8")
    options.add_argument("bundle", type=Path, help="bundle directory of any model")
    options.add_argument("--engine", metavar="NAME", help="engine to time (default: the best that runs on the CPU)")
    add_sizes(options)
    add_rounds(options, 20)
    given = options.parse_args(arguments)
    print(bench_overhead(given.bundle, given.batch, given.threads, given.rounds, given.engine))
    return 0


if __name__ == "__main__":
    sys.exit(answered(main))
