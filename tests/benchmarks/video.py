"""What decoding takes of the time in which a clip is judged: everything outside the engine, from the file to pixels."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export.runtime import load
from tests.benchmarks.common import add_rounds, answered, parser
from tests.benchmarks.overhead import Timed
from zoo.judging.scorer import Scorer

SIZE, RATE, SECONDS = (1280, 720), 30, 10


def write_clip(path: Path) -> None:
    """Ten seconds of 720p H.264, five scenes of rough surfaces that move, with grain: 1.5 Mbit/s."""
    av: Any = import_module("av")
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "21"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(RATE * SECONDS):
            place = number % (2 * RATE)
            if place == 0:
                coarse = Image.fromarray(rng.integers(0, 256, (40, 64, 3), np.uint8)).resize((1600, 1000))
                grain = rng.integers(-12, 13, (1000, 1600, 1))
                scene = (np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)
            part = np.ascontiguousarray(scene[place : place + SIZE[1], 2 * place : 2 * place + SIZE[0]])
            frame = av.VideoFrame.from_ndarray(part)
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def bench_video(
    folder: Path, clip: Path | None, rates: Sequence[float], threads: int, rounds: int, engine: str = ""
) -> str:
    """Time a bundle on a clip, by default `write_clip`, at each rate in turns. Raises what `load` raises."""
    with tempfile.TemporaryDirectory() as scratch:
        if clip is None:
            clip = Path(scratch) / "clip.mp4"
            write_clip(clip)
        lines = [f"{clip.stat().st_size / 1e6:.1f} MB, {threads} threads, {rounds} rounds in turns", ""]
        lines += ["| frames a second | rows | whole ms | outside the engine ms | share | CPU ms | outside | share |"]
        lines += ["|---" * 8 + "|"]
        found: dict[float, list[tuple[float, float, float, float]]] = {rate: [] for rate in rates}
        rows = {}
        with load(folder, engine=engine or None, device="cpu", threads=threads) as loaded:
            scorer: Scorer = loaded  # which takes any engine
            scorer.engine = timed = Timed(loaded.engine)
            policy = scorer.judge.policy
            for number in range(rounds + 1):  # the first one warms up
                for rate in rates:
                    scorer.judge.policy = replace(policy, unseen={}, frames=10_000, frames_per_second=rate)
                    timed.seconds = timed.cpu = timed.rows = 0
                    start, cpu = time.perf_counter(), time.process_time()
                    scorer.verdict(clip)
                    whole, used = time.perf_counter() - start, time.process_time() - cpu
                    found[rate] += [(whole, whole - timed.seconds, used, used - timed.cpu)][: number > 0]
                    rows[rate] = timed.rows
    for rate, times in found.items():
        whole, outside, used, beside = np.median(1000 * np.array(times), axis=0)
        lines += [
            f"| {rate:g} | {rows[rate]} | {whole:.0f} | {outside:.0f} | {outside / whole:.1%} "
            f"| {used:.0f} | {beside:.0f} | {beside / used:.1%} |"
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with these arguments, by default those of the command line."""
    text = "Time what decoding a video takes beside the engine, and the whole, at several rates."
    options = parser("tests.benchmarks.video", text, "bundles/vit_b32 --rates 1,2")
    options.add_argument("bundle", type=Path, help="bundle directory of a model that reads images")
    options.add_argument("--clip", type=Path, help="video to judge (default: ten seconds of 720p that are made)")
    options.add_argument("--rates", type=_rates, default=[2.0], help="frames a second (default: 2)")
    options.add_argument("--engine", default="", help="one of the bundle's engines (default: the fastest)")
    options.add_argument("--threads", type=int, default=2, help="threads of the engine (default: 2)")
    add_rounds(options, 5)
    given = options.parse_args(arguments)
    print(bench_video(given.bundle, given.clip, given.rates, given.threads, given.rounds, given.engine))
    return 0


def _rates(text: str) -> list[float]:
    return [float(rate) for rate in text.split(",")]


if __name__ == "__main__":
    sys.exit(answered(main))
