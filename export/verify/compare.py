"""Is an engine the model that was trained? Names, shapes, values and, above all, verdicts are compared with eager."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.progress import track

from export.bundle.manifest import Engine
from export.bundle.store import Bundle, read_bundle
from export.precision.nodes import rounded_float32, save
from export.runtime.cuda import gpu_here
from export.runtime.engine import RunningEngine, devices_of, module_of, obstacle
from export.runtime.onnx import OnnxEngine
from export.runtime.scorer import text_banks
from export.source import load_alone, weights_hash
from export.verify.inputs import BATCH, Inputs, drawn_images
from export.verify.report import Check, ParityReport, difference
from export.verify.threshold import Answers, Reference, placed_at_threshold
from zoo.errors import IncompatibleBundleError, TamperedFileError
from zoo.judging.judge import AnyJudge
from zoo.judging.scorer import Feeds
from zoo.metrics import auroc

#: Batches whose shapes and values are checked; 1 and 7 are not the 2 that the graph was traced with.
BATCHES = (1, 2, 7)
#: Image sizes fed to the graph as they are, so that its own resize is compared: enlarging, shrinking, long and thin.
SIZES = ((1, 1), (40, 60), (333, 250), (300, 90), (640, 480))
#: Nearer to a threshold than this, a verdict hangs on the rounding of float32: counted, but as a tie, not a flip.
TIE = 2e-6


def verify(
    folder: str | Path,
    check: Check | None = None,
    *,
    model: str | None = None,
    engines: Sequence[str] = (),
    device: str = "auto",
) -> list[ParityReport]:
    """Compare a bundle's engines with the release they came from, and note the results in its manifest.

    All engines that this machine can run are compared, or those that are named. They run on `device`, `cpu` or `cuda`,
    by default (`auto`) where the runtime would load them: a verification counts for that kind of device. Raises
    BadInputError (no such model or engine), TamperedFileError (the release's weights are others),
    IncompatibleBundleError when none can run here, or one that is named cannot.
    """
    bundle = read_bundle(folder)
    manifest = bundle.manifest
    source = model or manifest.source
    trained = load_alone(source, manifest.untrained)
    if weights_hash(trained) != manifest.weights:
        raise TamperedFileError(f"{source}: other weights than those that {folder} was exported from; export again")
    wanted = [manifest.engine(name) for name in engines] or list(manifest.engines)
    obstacles = {spec.name: reason for spec in wanted if (reason := _obstacle(bundle, spec, device)) is not None}
    if obstacles and (engines or len(obstacles) == len(wanted)):
        raise IncompatibleBundleError("; ".join(f"{name} cannot run here: {why}" for name, why in obstacles.items()))
    reports = []
    reference = Reference(trained, bundle.judge)
    for spec in (one for one in wanted if one.name not in obstacles):
        reports.append(verify_engine(bundle, spec, reference, check or Check(), device))
        manifest = reports[-1].note(manifest, bundle.folder)
    return reports


def verify_engine(
    bundle: Bundle, spec: Engine, reference: Reference, check: Check, device: str = "auto"
) -> ParityReport:
    """Compare one engine with the model that it came from, under the bundle's policy.

    Inputs are photos, drawn and golden images, adversarial and labelled ones where they were given, and some that are
    placed at the policy's thresholds (see `placed_at_threshold`), where a difference shows first. An engine that fails
    on an input gets a report that says so.
    """
    budget, name = check.budget_of(spec.precision), reference.model.card.name
    pair = _Pair(bundle, spec, reference, check, device)
    report = ParityReport(bundle.folder, name, spec, budget, pair.device, check, bundle.judge.policy_id)
    try:
        _check_names(bundle, pair, report)
        _check_batches(pair, report)
        _check_values(pair, report)
        _check_company(pair, report)
        _check_resize(bundle, pair, report)
    except _EngineFailedError as problem:
        report.problems.append(str(problem))
    report.judge()
    return report


class _EngineFailedError(Exception):
    """The engine raised something on a batch."""


class _Pair:
    """The two engines side by side, each giving logits and scores `[B, N]`."""

    def __init__(self, bundle: Bundle, spec: Engine, reference: Reference, check: Check, device: str) -> None:
        self.judge, self.eager = bundle.judge, reference.run
        engine, self.device = _open(bundle, spec, device)
        self.engine = engine.with_banks(text_banks(bundle, engine, bundle.judge))
        card = reference.model.card
        self.inputs = Inputs(card, reference.model.codec() if card.reads_text else None, check, self.judge.policy)

    def run(self, feeds: Feeds) -> Answers:
        """Logits and scores of the engine for one batch. Raises _EngineFailedError with the reason when it raises."""
        try:
            return self.engine.run(feeds)
        except Exception as problem:  # the errors of the engines share no public base class
            rows = len(next(iter(feeds.values())))
            raise _EngineFailedError(f"the engine fails on a batch of {rows}: {problem}") from problem

    def ours(self, feeds: Feeds) -> Answers:
        """Logits and scores of the engine, which takes no more at a time than it was built for."""
        parts = [self.run(part) for part in _parts(feeds, self.engine.spec.batch[2])]
        logits, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
        return logits, scores


def _obstacle(bundle: Bundle, spec: Engine, device: str) -> str | None:
    """Why an engine cannot be verified on a device of this machine; bfloat16 in ONNX always can on the CPU."""
    if spec.kind == "onnx" and device != "cuda":
        return None
    reasons = [obstacle(bundle, spec, place) for place in devices_of(device)]
    return None if None in reasons else "; ".join(reason for reason in reasons if reason)


def _open(bundle: Bundle, spec: Engine, device: str) -> tuple[RunningEngine, str]:
    """Load an engine on the device, or the first that is here; bfloat16 without a GPU as rounded float32."""
    devices = [place for place in devices_of(device) if obstacle(bundle, spec, place) is None]
    if devices:
        engine: RunningEngine = module_of(spec).open_engine(bundle, spec, devices[0], None)
        gpu = gpu_here() if engine.device == "cuda" else None
        return engine, f"{engine.device}, {gpu.name} ({gpu.capability})" if gpu else engine.device
    with tempfile.TemporaryDirectory(prefix="safety-zoo-") as folder:
        for name in spec.files:  # those that were hashed
            bundle.files.copy(name, Path(folder) / name)
        path = Path(folder) / "rounded.onnx"
        save(rounded_float32(onnx.load(Path(folder) / spec.files[0])), path)
        return OnnxEngine(path, spec), "cpu in float32, rounded to bfloat16"


def _check_names(bundle: Bundle, pair: _Pair, report: ParityReport) -> None:
    if isinstance(pair.engine, OnnxEngine):
        session = pair.engine.session
        inputs = [value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())]
        declared = [spec.name for spec in bundle.manifest.inputs]
        if sorted(inputs) != sorted(declared):
            report.problems.append(f"graph inputs {inputs}, the manifest declares {declared}")
        outputs = [value.name for value in session.get_outputs()]
        if outputs != [spec.name for spec in bundle.manifest.outputs]:
            report.problems.append(f"graph outputs {outputs}")


def _check_batches(pair: _Pair, report: ParityReport) -> None:
    _, usual, largest = report.engine.batch
    for rows in sorted({min(rows, largest) for rows in (*BATCHES, usual)}):
        feeds = {name: value[:rows] for name, value in pair.inputs.base.feeds.items()}
        logits, scores = pair.run(feeds)
        wanted = (rows, len(pair.judge.outputs))
        if logits.shape == scores.shape == wanted:
            report.at_shapes[f"batch {rows}"] = float(np.abs(logits - pair.eager(feeds)[0]).max())
        else:
            report.problems.append(f"batch {rows}: logits {logits.shape}, scores {scores.shape}, expected {wanted}")


def _check_values(pair: _Pair, report: ParityReport) -> None:
    parts, names, labels, base = [], [], [], pair.inputs.base
    for batch in track(pair.inputs, "Comparing", total=len(pair.inputs), transient=True):
        parts += [(*pair.ours(part), *pair.eager(part)) for part in _parts(batch.feeds, BATCH)]
        names += batch.names
        labels.append(batch.labels)
    report.inputs = len(names)
    logits, ours, eager_logits, theirs = (np.concatenate(column) for column in zip(*parts, strict=True))
    report.differences = {"logits": difference(logits, eager_logits), "scores": difference(ours, theirs)}
    broken = {"the engine": ~pair.judge.valid(ours), "the trained model": ~pair.judge.valid(theirs)}
    for who, rows in broken.items():
        if rows.any():
            report.problems.append(f"the scores of {who} are invalid for {rows.sum()} of {len(names)} inputs")
    if broken["the trained model"].any():
        report.how_placed = "none, as there are invalid scores"
        return
    placed = placed_at_threshold(lambda feeds: pair.eager(feeds)[1], pair.judge, base.feeds, theirs[: len(base.names)])
    report.at_threshold, report.how_placed = len(next(iter(placed.feeds.values()))), placed.how
    # The policy's own thresholds count everywhere. Thresholds that were moved to get close calls count only for the
    # inputs at a threshold or, if the budget is that of float32, everywhere too.
    judges = [pair.judge, placed.judge] if report.budget.at_threshold else [pair.judge]
    flips, report.ties, report.nearest = _flips(judges, ours, theirs, TIE * report.budget.at_threshold)
    report.flips = [names[row] for row in flips]
    report.flagged = float(pair.judge.flags(pair.judge.category_scores(theirs)).any(axis=1).mean())
    _check_ranking(pair, ours, theirs, np.concatenate(labels), report)
    if report.at_threshold:
        scores = [(pair.ours(part)[1], pair.eager(part)[1]) for part in _parts(placed.feeds, BATCH)]
        ours, theirs = (np.concatenate(column) for column in zip(*scores, strict=True))
        flips, ties, nearest = _flips([pair.judge, placed.judge], ours, theirs, TIE)
        report.flips_at_threshold = [f"placed {row}" for row in flips]
        report.ties, report.nearest = report.ties + ties, min(report.nearest, nearest)


def _parts(feeds: Feeds, most: int) -> list[Feeds]:
    """A batch in parts of at most `most` rows."""
    starts = range(0, len(next(iter(feeds.values()))), most)
    return [{name: value[start : start + most] for name, value in feeds.items()} for start in starts]


def _flips(
    judges: Sequence[AnyJudge], ours: NDArray[np.float32], theirs: NDArray[np.float32], tie: float
) -> tuple[list[int], int, float]:
    """The rows whose flags differ farther than `tie` from a threshold, how many differ nearer, the least margin."""
    flips = np.zeros(len(ours), dtype=np.bool_)
    margins = np.full(len(ours), np.inf)
    for judge in judges:
        table, wanted = judge.category_scores(ours), judge.category_scores(theirs)
        flips |= (judge.flags(table) != judge.flags(wanted)).any(axis=1)
        margins = np.minimum(margins, judge.margins(wanted))
    near = margins <= tie
    return np.flatnonzero(flips & ~near).tolist(), int((flips & near).sum()), float(margins.min())


def _check_ranking(
    pair: _Pair, ours: NDArray[np.float32], theirs: NDArray[np.float32], labels: NDArray[np.int64], report: ParityReport
) -> None:
    known = (labels >= 0) & pair.judge.valid(ours)  # AUROC takes no NaN
    if not known.any():
        return
    reached, wanted = (
        auroc(pair.judge.unsafe_score(pair.judge.category_scores(scores[known])), labels[known])
        for scores in (ours, theirs)
    )
    if reached is None or wanted is None:
        only = "unsafe" if labels[known][0] else "safe"
        report.problems.append(f"all labelled data are {only}, so AUROC is undefined")
    else:
        report.auroc, report.auroc_loss = reached, wanted - reached


def _check_company(pair: _Pair, report: ParityReport) -> None:
    """Score some inputs alone and in one batch: images of little contrast beside noise, whose range is far wider."""
    least, usual, largest = report.engine.batch
    feeds = {name: value[: min(largest, max(8, usual))].copy() for name, value in pair.inputs.base.feeds.items()}
    rows = len(next(iter(feeds.values())))
    if rows <= least:
        return  # the engine takes no company
    alone = min(8, rows // 2)
    if "image" in feeds:
        images = feeds["image"]
        images[:alone] = 121 + images[:alone] // 20
        images[alone:] = np.random.default_rng(0).integers(0, 2, images[alone:].shape, dtype=np.uint8) * 255
    together = pair.run(feeds)[1]
    # An engine for no single row gets the same one several times.
    singles = [pair.run({name: value[[row] * least] for name, value in feeds.items()})[1][0] for row in range(alone)]
    report.company = float(np.abs(together[:alone] - np.stack(singles)).max())


def _check_resize(bundle: Bundle, pair: _Pair, report: ParityReport) -> None:
    if pair.inputs.card.image is None:
        return
    declared = next(spec.shape for spec in bundle.manifest.inputs if spec.name == "image")
    if any(isinstance(side, int) for side in declared[1:3]):
        return  # the graph takes images of the model's own size alone: it resizes none
    for height, width in SIZES:
        least, _, largest = report.engine.shapes.get("image", ((0, 1, 1), (), (0, height, width)))
        if not (least[1] <= height <= largest[1] and least[2] <= width <= largest[2]):
            continue  # the engine was built for other images
        pixels = drawn_images(2, max(height, width))
        feeds = pair.inputs.feeds(np.ascontiguousarray(np.stack(pixels)[:, :height, :width]))
        difference = np.abs(pair.run(feeds)[0] - pair.eager(feeds)[0]).max()
        report.at_shapes[f"{width}x{height} pixels"] = float(difference)
