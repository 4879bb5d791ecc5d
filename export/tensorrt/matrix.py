"""`zoo export matrix`: every registered model's graph, in every precision, read by TensorRT: a table."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress

from export.bundle.add import load
from export.onnx.export import write_onnx
from export.onnx.graph import contract
from export.precision.names import COUNTED_AS, Precision
from export.tensorrt.build import CAPABILITIES, parse
from export.tensorrt.export import Options, build_graph
from export.tensorrt.package import load_package
from zoo.errors import IncompatibleBundleError
from zoo.release import Release

#: Drawn images that int8_qdq takes its scales from: enough for a graph to be complete, too few for good scales.
IMAGES = 4


def tensorrt_matrix(
    names: Sequence[str], precisions: Sequence[Precision], *, build: bool = False, package: str | None = None
) -> str:
    """A Markdown table of what TensorRT makes of each model with random weights in each precision.

    A cell gives the share of the matrix products and convolutions in that precision, of the graph that TensorRT parsed
    or, with `build`, of the engine that it built; or the node that stopped it. Models that differ in nothing but their
    weights are done once and share a row.
    """
    trt = load_package(package)
    rows: dict[str, tuple[list[str], list[str]]] = {}
    with Progress(transient=True) as progress, tempfile.TemporaryDirectory(prefix="safety-zoo-") as scratch:
        task = progress.add_task("Parsing", total=len(names))
        photos = _drawn(Path(scratch) / "images")
        for name in names:
            release = load(name, {})
            key = repr((release.model, release.card.image, contract(release.card)))
            if key not in rows:
                cells = [_cell(release, precision, photos, Path(scratch), build, trt.name) for precision in precisions]
                rows[key] = ([], cells)
            rows[key][0].append(name)
            progress.advance(task)
    targets = ", ".join(CAPABILITIES) if trt.is_rtx else "the GPU at hand"
    done = f"built, one plan for {targets}" if build else "parsed"
    lines = [f"| model | {' | '.join(precisions)} |", "| --- " * (1 + len(precisions)) + "|"]
    lines += [f"| {_named(found)} | {' | '.join(cells)} |" for found, cells in rows.values()]
    return "\n".join([*lines, "", f"(Matrix products in that precision, of all; {trt.name} {trt.version}, {done}.)"])


def _cell(release: Release, precision: Precision, photos: Path, scratch: Path, build: bool, package: str) -> str:
    if precision == "int8_qdq" and release.card.image is None:
        return "-"  # it is calibrated on images, and this model reads none
    graph = scratch / "model.onnx"
    try:
        _, products = write_onnx(release, precision, graph, photos if precision == "int8_qdq" else None)
        if build:
            products = build_graph(graph, release.card, "latency", Options(package=package)).report.products
        else:
            parse(graph, package=package)
    except IncompatibleBundleError as problem:
        return "no: " + (str(problem).partition("cannot read it: ")[2] or str(problem)).partition(";")[0]
    finally:
        for path in scratch.glob("model.onnx*"):
            path.unlink()
    return f"{products.get(COUNTED_AS[precision], 0)} of {sum(products.values())}"


def _named(names: list[str]) -> str:
    """`architecture.tag`, and of the others with that architecture only the tags."""
    architecture = names[0].partition(".")[0]
    return ", ".join([f"`{names[0]}`", *(f"`{name.removeprefix(architecture)}`" for name in names[1:])])


def _drawn(folder: Path) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(random.integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder
