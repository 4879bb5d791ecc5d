"""Is the bundle the model that was trained? Names, shapes, values and, above all, verdicts are compared with eager."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from export.bundle import Bundle, Verification, read_bundle
from export.probes import image_probes, placed_at_threshold, text_probes
from export.runtime import OnnxEngine
from zoo.errors import BadInputError, ParityError, TamperedFileError
from zoo.models.served import ServedRun
from zoo.panel import bind
from zoo.predict import text_banks
from zoo.release import Release, load_release
from zoo.scorer import Feeds

#: Batches whose shapes and values are checked; 1 and 7 are not the 2 that the graph was traced with.
BATCHES = (1, 2, 7)
#: Image sizes fed to the graph as they are, so that its own resize is compared: enlarging, shrinking, long and thin.
SIZES = ((40, 60), (333, 250), (300, 90), (640, 480))
MINIMUM = 256
#: Nearer to a threshold than this, a verdict hangs on the rounding of float32: counted, but as a tie, not a flip.
TIE = 2e-6


@dataclass
class Report:
    """What was compared and what was found; `problems` is empty when the bundle passed."""

    bundle: Path
    model: str
    tolerance: float
    image_source: str
    inputs: int = 0
    at_threshold: int = 0
    how_placed: str = ""
    flips: list[int] = field(default_factory=list)
    ties: int = 0
    max_difference: float = 0.0
    mean_difference: float = 0.0
    resize_difference: float = 0.0
    nearest: float = 0.0
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """A summary for people."""
        share = 100 * len(self.flips) / max(self.inputs, 1)
        lines = [
            f"{self.bundle}: {'PASSED' if not self.problems else 'FAILED'} against eager {self.model}",
            f"  inputs         {self.inputs} ({self.image_source}), "
            f"{self.at_threshold} at the threshold: {self.how_placed}",
            f"  logits         max difference {self.max_difference:.2e}, mean {self.mean_difference:.2e}, "
            f"tolerance {self.tolerance:.0e}",
            f"  graph's resize max difference {self.resize_difference:.2e} over image sizes "
            + ", ".join(f"{w}x{h}" for h, w in SIZES),
            f"  shapes         batches {', '.join(map(str, BATCHES))}",
            f"  verdicts       {len(self.flips)} of {self.inputs} flip ({share:.2f} %), {self.ties} ties ({TIE:.0e})"
            f", nearest to a threshold is {self.nearest:.0e} off",
        ]
        return "\n".join(lines + [f"  problem        {problem}" for problem in self.problems])

    def raise_if_failed(self) -> None:
        """Raise ParityError with the problems, when there are any."""
        if self.problems:
            raise ParityError(f"{self.bundle} does not answer what {self.model} answers: " + "; ".join(self.problems))


def verify(
    folder: str | Path,
    *,
    model: str | None = None,
    images: Path | None = None,
    count: int = MINIMUM,
    tolerance: float = 1e-4,
) -> Report:
    """Compare a bundle with the release it came from, on at least 256 inputs, and note the result in its manifest.

    Some inputs are placed at the policy's thresholds (see `placed_at_threshold`), where a difference shows first.
    Raises BadInputError (too few inputs, no such model), TamperedFileError (the release's weights are others).
    """
    if count < MINIMUM:
        raise BadInputError(f"count must be at least {MINIMUM}, got {count}: fewer inputs prove nothing about flips")
    bundle = read_bundle(folder)
    release = load_release(model or bundle.manifest.source)
    if release.card.files.get("model.safetensors") != bundle.card.files.get("model.safetensors"):
        raise TamperedFileError(
            f"{model or bundle.manifest.source}: other weights than those that {folder} was exported from; export again"
        )
    source = f"drawn and from {images}" if images else "drawn"
    report = Report(Path(folder), release.card.name, tolerance, source)
    pair = _Pair(bundle, release)
    _check_names(bundle, pair, report)
    _check_values(pair, report, images, count)
    _check_resize(pair, report)
    found = Verification(
        passed=not report.problems,
        inputs=report.inputs,
        at_threshold=report.at_threshold,
        flips=len(report.flips),
        max_logit_difference=report.max_difference if np.isfinite(report.max_difference) else None,
        tolerance=tolerance,
        image_source=source,
    )
    dataclasses.replace(bundle.manifest, verification=found).write(Path(folder))
    return report


class _Pair:
    """The two engines side by side, each giving logits and scores `[B, N]`."""

    def __init__(self, bundle: Bundle, release: Release) -> None:
        self.card = release.card
        self.judge = bind(release.card, bundle.policy)
        self.engine = OnnxEngine(bundle)
        self.eager = ServedRun(release.model, text_banks(release.model, bundle.policy)).run
        self.codec = release.model.codec() if release.card.reads_text else None

    def feeds(self, pixels: NDArray[np.uint8], offset: int = 0) -> Feeds:
        """The feeds of images `[B, H, W, 3]`, with texts, and with inputs left out where the model allows it."""
        rows = len(pixels)
        feeds: Feeds = {"image": pixels} if self.card.image else {}
        if self.codec is not None:
            tokens = self.codec.encode(text_probes(rows, offset))
            there = np.ones((rows, 1), dtype=np.int64)
            if "text" not in self.card.requires:
                there[3::8] = 0
            feeds |= {"input_ids": tokens.ids * there, "attention_mask": tokens.mask * there}
        if "image_present" in self.card.input_names:
            feeds["image_present"] = np.arange(rows) % 8 != 5
        return feeds


def _check_names(bundle: Bundle, pair: _Pair, report: Report) -> None:
    session = pair.engine.session
    found = [value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())]
    declared = [spec.name for spec in bundle.manifest.inputs]
    if sorted(found) != sorted(declared):
        report.problems.append(f"graph inputs {found}, the manifest declares {declared}")
    outputs = [value.name for value in session.get_outputs()]
    if outputs != [spec.name for spec in bundle.manifest.outputs]:
        report.problems.append(f"graph outputs {outputs}")
    size = pair.card.image.size if pair.card.image else 1
    for rows in BATCHES:
        logits, scores = pair.engine.run(pair.feeds(np.zeros((rows, size, size, 3), dtype=np.uint8)))
        wanted = (rows, len(pair.judge.outputs))
        if logits.shape != wanted or scores.shape != wanted:
            report.problems.append(f"batch {rows}: logits {logits.shape}, scores {scores.shape}, expected {wanted}")


def _check_values(pair: _Pair, report: Report, images: Path | None, count: int) -> None:
    pixels = image_probes(count, pair.card.image, images)
    base = pair.feeds(pixels)
    eager = _in_batches(lambda feeds: pair.eager(feeds)[1], base)
    placed = placed_at_threshold(lambda feeds: pair.eager(feeds)[1], pair.judge, base, eager)
    report.how_placed = placed.how
    everything = {name: np.concatenate([base[name], placed.feeds[name]]) for name in base}
    report.inputs, report.at_threshold = count + placed.count, placed.count
    differences, tables = [], []
    batch = 32
    for start in track(range(0, report.inputs, batch), "Comparing", transient=True):
        part = {name: value[start : start + batch] for name, value in everything.items()}
        (ours, our_scores), (theirs, their_scores) = pair.engine.run(part), pair.eager(part)
        differences.append(np.abs(ours - theirs).max(axis=1))
        tables.append((pair.judge.category_scores(our_scores), pair.judge.category_scores(their_scores)))
    difference = np.concatenate(differences)
    report.max_difference, report.mean_difference = float(difference.max()), float(difference.mean())
    if not report.max_difference <= report.tolerance:  # so that NaN fails
        report.problems.append(f"logits differ by {report.max_difference:.2e}, tolerance {report.tolerance:.0e}")
    bundle_table, eager_table = (np.concatenate(side) for side in zip(*tables, strict=True))
    flips = (placed.judge.flags(bundle_table) != placed.judge.flags(eager_table)).any(axis=1)
    flips |= (pair.judge.flags(bundle_table) != pair.judge.flags(eager_table)).any(axis=1)
    margins = np.minimum(placed.judge.margins(eager_table), pair.judge.margins(eager_table))
    report.nearest = float(margins.min())
    report.ties = int((flips & (margins <= TIE)).sum())
    report.flips = np.flatnonzero(flips & (margins > TIE)).tolist()
    if report.flips:
        report.problems.append(f"{len(report.flips)} of {report.inputs} verdicts flip, inputs {report.flips[:8]}")


def _check_resize(pair: _Pair, report: Report) -> None:
    if pair.card.image is None:
        return
    for height, width in SIZES:
        pixels = image_probes(2, dataclasses.replace(pair.card.image, size=max(height, width)), None)
        feeds = pair.feeds(np.ascontiguousarray(pixels[:, :height, :width]))
        found = float(np.abs(pair.engine.run(feeds)[0] - pair.eager(feeds)[0]).max())
        report.resize_difference = float(np.maximum(report.resize_difference, found))  # which keeps NaN
    if not report.resize_difference <= report.tolerance:
        report.problems.append(f"with the graph's own resize logits differ by {report.resize_difference:.2e}")


def _in_batches(run: object, feeds: Feeds, batch: int = 32) -> NDArray[np.float32]:
    rows = len(next(iter(feeds.values())))
    parts = [{k: v[start : start + batch] for k, v in feeds.items()} for start in range(0, rows, batch)]
    return np.concatenate([run(part) for part in parts])  # type: ignore[operator]
