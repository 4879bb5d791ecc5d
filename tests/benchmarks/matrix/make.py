"""Make the cells of one row: write each graph once, read or build it, verify and time it, and remove it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

import onnx

import zoo
from export.bundle.manifest import BATCHES, Engine, Kind, Manifest, Precision, contract
from export.bundle.store import Bundle
from export.make import engine_name
from export.onnx.export import RUNS_ON, opset_of, write_onnx
from export.openvino import image_shapes, write_openvino
from export.precision.nodes import check_products
from export.runtime.engine import module_of, obstacle
from export.runtime.onnx import installed_version
from export.runtime.openvino import openvino
from export.source import load
from export.tensorrt.build import PlanOptions, parse, with_banks
from export.tensorrt.export import build_graph
from export.tensorrt.package import load_package
from export.verify.compare import verify_engine
from export.verify.inputs import calibration
from export.verify.report import Check
from export.verify.threshold import Reference
from tests.benchmarks.matrix.cell import Cell, Column, Depth, Outcome
from tests.benchmarks.matrix.drawn import draw_inputs
from tests.benchmarks.matrix.latency import machine, median_ms
from tests.benchmarks.matrix.rows import Row
from zoo.errors import BadInputError, IncompatibleBundleError
from zoo.files.held import HeldFiles, sha256
from zoo.judging.scorer import Feeds
from zoo.release.store import Release

log = logging.getLogger("export.matrix")

#: Drawn inputs that fixed 8-bit scales are found on: enough for fair scales, or, where nothing is verified, for a graph
#: that is complete.
CALIBRATED, COMPLETE = 64, 4
#: A graph has a folder of its own.
MODEL = "model.onnx"

Paused = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Settings:
    """What cells are made with.

    `check` has the inputs to verify on beside the drawn ones. Fixed scales are found on `calibrate`, as `write_onnx`
    takes it, or on drawn inputs. `package` is which TensorRT (see `load_package`).
    """

    check: Check = field(default_factory=Check)
    calibrate: Path | None = None
    package: str | None = None

    def text(self, precision: Precision) -> str:
        """What decides, beside the model, what a cell of this precision says."""
        calibrate = self.calibrate if precision == "int8_qdq" else None
        inputs = f"opset {opset_of(precision)}, judged on {self.check.count} and more: {self.check.source}"
        inputs += f", scales from {calibrate or 'drawn inputs'}" if precision == "int8_qdq" else ""
        named = [getattr(self.check, name) for name in ("images", "texts", "adversarial", "data", "budget")]
        read = tuple(path for path in (*named, calibrate) if path is not None)
        return inputs + (f", content {_content(read, self.check.positive_label)}" if read else "")

    def versions(self, kind: Kind) -> dict[str, str]:
        """The packages that a cell of this kind is made with. Raises MissingDependencyError without the engine's."""
        found = {package: version(package) for package in ("torch", "transformers", "onnx", "onnxscript")}
        found["safety-zoo"] = zoo.__version__
        if kind == "onnx":
            return found | installed_version()
        if kind == "openvino":
            openvino()
            return found | {"openvino": version("openvino")}
        package = load_package(self.package)
        return found | {package.name: package.version}


@cache
def _content(paths: tuple[Path, ...], label: str) -> str:
    """A hash of what files, and folders of files, hold: their names say little."""
    digest = hashlib.sha256(label.encode())
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"{file.relative_to(path)} {sha256(file)}".encode())
    return digest.hexdigest()[:16]


def make_row(
    row: Row, wanted: dict[Column, Depth], settings: Settings, begin: Callable[[Column], None], paused: Paused
) -> Iterator[Cell]:
    """Yield the wanted cells of a row as they are done; an error becomes a cell that says so.

    `begin` is told which cell comes next, and `paused` is entered while the verification shows a progress bar of its
    own.
    """
    subject: _Subject | None = None
    with tempfile.TemporaryDirectory(prefix="safety-zoo-") as scratch:
        for precision in dict.fromkeys(precision for _, precision in wanted):
            columns = [column for column in wanted if column[1] == precision]
            graph = _Graph(Path(scratch), precision, settings, deep=any(wanted[c] == "verify" for c in columns))
            for column in columns:
                begin(column)
                start = time.process_time()
                cell = Cell(
                    row.name, *column, wanted[column], row.graph, settings.text(precision),
                    settings.versions(column[0]), "failed",
                )  # fmt: skip
                try:
                    subject = subject or _Subject(row)
                    if column[0] == "tensorrt":
                        cell = _tensorrt(graph, subject, cell, settings)
                    else:
                        cell = _on_cpu(graph, subject, cell, settings, paused)
                except (BadInputError, IncompatibleBundleError) as problem:
                    cell = dataclasses.replace(cell, outcome="refused", note=_plain(str(problem), scratch))
                except Exception as problem:  # whatever it was, the other cells can still be made
                    log.exception("%s %s", row.name, "-".join(column))
                    cell = dataclasses.replace(cell, note=_plain(f"{type(problem).__name__}: {problem}", scratch))
                yield dataclasses.replace(cell, seconds=round(time.process_time() - start, 1))
            if precision != "fp32":  # of which those in 8 bits are made
                shutil.rmtree(graph.folder, ignore_errors=True)  # it may have gigabytes


class _Subject:
    """The loaded model of a row, and its answers."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.release = load(row.source, row.untrained)
        self.reference = Reference(self.release.model, self.release.judge)


class _Graph:
    """The graph of a row in one precision, written when it is first asked for; an error comes again for each asking."""

    def __init__(self, scratch: Path, precision: Precision, settings: Settings, *, deep: bool) -> None:
        self.precision, self.settings, self.deep = precision, settings, deep
        self.folder, self.traced = scratch / precision, scratch / "fp32" / MODEL
        self.path = self.folder / MODEL
        self.done: tuple[tuple[str, ...], dict[str, int]] | None = None
        self.error: Exception | None = None
        self.drawn: Path | None = None

    def write_openvino(self, release: Release) -> tuple[tuple[str, ...], dict[str, int]]:
        """The files and products of its OpenVINO graph."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "openvino.xml"
        return write_openvino(release, self.precision, path, self._scales(release), traced=self._fp32(release))

    def write(self, release: Release) -> tuple[tuple[str, ...], dict[str, int]]:
        """Its files, and its products by precision."""
        if self.error is not None:
            raise self.error
        if self.done is None:
            try:
                self.folder.mkdir(exist_ok=True)
                traced = self._fp32(release) if self.precision.startswith("int8") else None
                self.done = write_onnx(release, self.precision, self.path, self._scales(release), traced=traced)
            except Exception as problem:
                self.error = problem
                raise
        return self.done

    def _fp32(self, release: Release) -> onnx.ModelProto:
        """The row's graph in float32, which those of 8 bits and of OpenVINO are made from: tracing takes longest."""
        if not self.traced.exists():
            self.traced.parent.mkdir(exist_ok=True)
            write_onnx(release, "fp32", self.traced)
        return onnx.load(self.traced)

    def _scales(self, release: Release) -> Path | None:
        """What fixed scales are found on, for the precision that has them."""
        if self.precision != "int8_qdq":
            return None
        if self.settings.calibrate is not None:
            return self.settings.calibrate
        if self.drawn is None:
            count = CALIBRATED if self.deep else COMPLETE
            self.drawn = draw_inputs(release.card, self.folder / "drawn", count, unseen=self.deep)
        return self.drawn


def _on_cpu(graph: _Graph, subject: _Subject, cell: Cell, settings: Settings, paused: Paused) -> Cell:
    release = subject.release
    files, products = graph.write_openvino(release) if cell.kind == "openvino" else graph.write(release)
    cell = dataclasses.replace(cell, outcome="done", products=products)
    if cell.depth == "parse":
        return cell
    bundle = _bundle(graph, subject, cell.kind, files, products)
    (spec,) = bundle.manifest.engines
    if obstacle(bundle, spec, "cpu") is None:
        engine = module_of(spec).open_engine(bundle, spec, "cpu", 1)
        used, waited = median_ms(engine, _one_input(release, graph.folder / f"one-{cell.kind}"))
        cell = dataclasses.replace(cell, ms=used, wall_ms=waited, machine=machine())
    if cell.depth == "build":
        return cell
    with paused():
        report = verify_engine(bundle, spec, subject.reference, settings.check)
    outcome: Outcome = "missed" if report.problems else "done"
    return dataclasses.replace(
        cell,
        outcome=outcome,
        note="; ".join(report.problems),
        inputs=report.counted,
        flips=len(report.counted_flips),
        difference=report.differences["scores"].max,
        # Where those at a threshold count, one was moved that divides the inputs.
        alike=report.flagged in (0.0, 1.0) and not report.budget.at_threshold,
    )


def _tensorrt(graph: _Graph, subject: _Subject, cell: Cell, settings: Settings) -> Cell:
    _, products = graph.write(subject.release)
    if cell.depth == "parse":
        trt, content = load_package(settings.package), with_banks(graph.path, ()).SerializeToString()
        with trt.listen():
            parse(trt, trt.module.Builder(trt.logger), content, graph.path)
    else:
        options = PlanOptions(package=settings.package)
        products = build_graph(graph.path, subject.release.card, BATCHES["latency"], options).report.products
        check_products(products, graph.precision)
    return dataclasses.replace(cell, outcome="done", products=products)


def _bundle(graph: _Graph, subject: _Subject, kind: Kind, files: tuple[str, ...], products: dict[str, int]) -> Bundle:
    """A bundle of this one graph, never written: what the verification and the runtime need to know of it."""
    precision, release = graph.precision, subject.release
    batch = BATCHES["latency"]
    spec = Engine(
        engine_name(kind, precision, "latency"), kind, precision, files, "latency", batch,
        RUNS_ON[precision] if kind == "onnx" else ("cpu",), products, release.policy.id, opset=opset_of(precision),
        shapes=image_shapes(release.card, batch) if kind == "openvino" else {},
    )  # fmt: skip
    inputs, outputs = contract(release.card)
    manifest = Manifest((spec,), inputs, outputs, {}, subject.row.source, "", subject.row.untrained)
    return Bundle(graph.folder, manifest, release.card, release.policy, HeldFiles(graph.folder))


def _one_input(release: Release, folder: Path) -> Feeds:
    codec = release.model.codec() if release.card.reads_text else None
    (feeds,) = calibration(draw_inputs(release.card, folder, 1, unseen=False), release.card, codec)
    return feeds


def _plain(text: str, scratch: str) -> str:
    """A message without the temporary folder and without line breaks."""
    return " ".join(text.replace(f"{scratch}/", "").split())
