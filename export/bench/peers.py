"""`zoo bench`: JPEG bytes to verdict, the bundle against transformers in eager mode, interleaved in one run."""

from __future__ import annotations

import io
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress
from transformers import CLIPImageProcessorPil, CLIPModel

from export.bundle import Bundle, read_bundle
from export.runtime import load
from export.verify.probes import image_probes
from zoo.card import ImageInput
from zoo.errors import BadInputError
from zoo.judge import Judge
from zoo.models.towers import clip_config, unit
from zoo.policy import Policy

Run = Callable[[list[bytes]], object]


@dataclass(frozen=True)
class Row:
    """Latencies of one side at one batch size, in milliseconds, and images a second at the median."""

    engine: str
    batch: int
    p50: float
    p90: float
    p99: float
    fastest: float
    images_per_second: float


@dataclass(frozen=True)
class Ratio:
    """Peer's time over ours, round by round: median, and the 10th and 90th percentile as the spread."""

    batch: int
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Benchmark:
    """All rows and ratios with what they were measured on."""

    setting: dict[str, str]
    rows: list[Row]
    ratios: list[Ratio]

    def text(self) -> str:
        """Markdown, for people and for a README."""
        lines = [f"{key}: {value}" for key, value in self.setting.items()] + [""]
        lines += ["| engine | batch | p50 ms | p90 ms | p99 ms | fastest ms | images/s |", "|---" * 7 + "|"]
        for row in self.rows:
            figures = f"{row.p50:.1f} | {row.p90:.1f} | {row.p99:.1f} | {row.fastest:.1f} | {row.images_per_second:.1f}"
            lines.append(f"| {row.engine} | {row.batch} | {figures} |")
        lines += ["", "| batch | peer / bundle | 10th to 90th percentile of the rounds |", "|---|---|---|"]
        lines += [f"| {r.batch} | {r.median:.2f}x | {r.low:.2f} to {r.high:.2f} |" for r in self.ratios]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def bench(folder: Path, batches: list[int], threads: int, rounds: int, size: tuple[int, int]) -> Benchmark:
    """Time a `safeclip_*` bundle against transformers' CLIPModel and its processor, float32 on both sides.

    Both get the same JPEG bytes of `size` (width, height) and the same threads, and end with category scores; the
    peer's phrases are embedded beforehand, as ours are. In each round both run once, in turn, so that a busy
    neighbour slows both. The peer has random weights: time does not depend on them.
    """
    if rounds < 5 or threads < 1 or min(batches) < 1:
        raise BadInputError(f"need at least 5 rounds, 1 thread and batches of 1, got {rounds}, {threads}, {batches}")
    bundle = read_bundle(folder)
    if "safeclip" not in bundle.card.architecture.split("_") or bundle.card.image is None:
        raise BadInputError(f"{folder} is a {bundle.card.name}: the peer is a CLIP, so the bundle must be a safeclip_*")
    torch.set_num_threads(threads)
    jpegs = _jpegs(max(batches), size)
    peer = _transformers_peer(bundle)
    rows: list[Row] = []
    ratios: list[Ratio] = []
    with load(folder, threads=threads, batch_size=max(batches)) as scorer, Progress(transient=True) as progress:
        engine = scorer.engine.spec.precision
        task = progress.add_task("Timing", total=rounds * len(batches))
        for batch in batches:
            sides: list[tuple[str, Run]] = [("bundle", scorer.verdicts), ("transformers", peer)]
            times = _interleave(sides, jpegs[:batch], rounds, lambda: progress.advance(task))
            rows += [_row(name, batch, times[name]) for name, _ in sides]
            ratio = times["transformers"] / times["bundle"]
            low, high = np.percentile(ratio, [10, 90])
            medians = float(np.median(times["transformers"]) / np.median(times["bundle"]))
            ratios.append(Ratio(batch, medians, float(low), float(high)))
    return Benchmark(_setting(bundle, engine, threads, rounds, size), rows, ratios)


def _interleave(
    sides: list[tuple[str, Run]], jpegs: list[bytes], rounds: int, tick: Callable[[], None]
) -> dict[str, NDArray[np.float64]]:
    times: dict[str, list[float]] = {name: [] for name, _ in sides}
    for _, run in sides * 2:  # warm-up
        run(jpegs)
    for number in range(rounds):
        for name, run in sides if number % 2 == 0 else reversed(sides):
            start = time.perf_counter()
            run(jpegs)
            times[name].append(1000 * (time.perf_counter() - start))
        tick()
    return {name: np.array(values) for name, values in times.items()}


def _row(name: str, batch: int, times: NDArray[np.float64]) -> Row:
    p50, p90, p99 = (float(value) for value in np.percentile(times, [50, 90, 99]))
    return Row(name, batch, p50, p90, p99, float(times.min()), 1000 * batch / p50)


def _transformers_peer(bundle: Bundle) -> Run:
    """What a user of transformers would write, in evaluation mode and without gradients."""
    spec = bundle.card.image
    assert spec is not None  # bench() checked
    processor = CLIPImageProcessorPil(size={"shortest_edge": spec.size}, crop_size=spec.size)
    model = CLIPModel(clip_config(bundle.card)).eval()
    assert isinstance(bundle.policy, Policy)  # a safeclip_* is no panel
    judge = Judge(bundle.card, bundle.policy)
    bank = unit(torch.randn(len(judge.outputs), bundle.card.hparams["embedding_dim"]))

    @torch.inference_mode()
    def run(jpegs: list[bytes]) -> NDArray[np.float64]:
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in jpegs]
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        embedding = unit(model.get_image_features(pixel_values=pixels).pooler_output)
        scores = (model.logit_scale.exp() * embedding @ bank.T).softmax(dim=-1)
        return judge.category_scores(scores.numpy())

    return run


def _jpegs(count: int, size: tuple[int, int]) -> list[bytes]:
    """Drawn pictures with photo-like noise, so that their JPEGs are as large as photos' are."""
    side = ImageInput(max(size), "squash", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    found = []
    for pixels in image_probes(count, side, None):
        stream = io.BytesIO()
        Image.fromarray(pixels[: size[1], : size[0]]).save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found


def _setting(bundle: Bundle, engine: str, threads: int, rounds: int, size: tuple[int, int]) -> dict[str, str]:
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "model": f"{bundle.card.name}, {engine}",
        "task": f"JPEG bytes of {size[0]}x{size[1]} to verdict",
        "peer": f"transformers {version('transformers')} CLIPModel and CLIPImageProcessorPil, torch eager, float32",
        "threads": f"{threads} on {os.cpu_count()} cores ({platform.machine()}), load average {load_average:.1f}",
        "rounds": f"{rounds}, both sides in turn",
    }
