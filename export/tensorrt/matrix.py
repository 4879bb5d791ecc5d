"""`zoo export matrix`: every registered model's graph, in every precision, parsed and built by TensorRT: a table."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress

from export.bundle.add import load
from export.onnx.export import write_onnx
from export.precision.names import COUNTED_AS, Precision
from export.tensorrt.build import CAPABILITIES
from export.tensorrt.export import Options, build_graph
from export.tensorrt.package import load_package
from zoo.errors import IncompatibleBundleError
from zoo.registry import model_entry
from zoo.release import Release

#: Drawn images that int8_qdq takes its scales from: enough for a graph to be complete, too few for good scales.
IMAGES = 4


def tensorrt_matrix(names: Sequence[str], precisions: Sequence[Precision], *, package: str | None = None) -> str:
    """A Markdown table of what TensorRT makes of each model with random weights in each precision.

    A cell gives the share of the matrix products and convolutions that the finished engine computes in that precision,
    or the node that stopped TensorRT.
    """
    trt = load_package(package)
    rows = [f"| model | {' | '.join(precisions)} |", "| --- " * (1 + len(precisions)) + "|"]
    with Progress(transient=True) as progress, tempfile.TemporaryDirectory(prefix="safety-zoo-") as scratch:
        task = progress.add_task("Building", total=len(names) * len(precisions))
        photos = _drawn(Path(scratch) / "images")
        for name in names:
            release = load(name, {})
            cells = []
            for precision in precisions:
                cells.append(_cell(release, precision, photos, Path(scratch), trt.name))
                progress.advance(task)
            rows.append(f"| `{name}` | {' | '.join(cells)} |")
    targets = ", ".join(CAPABILITIES) if trt.is_rtx else "the GPU at hand"
    note = f"(Share of the matrix products in that precision; {trt.name} {trt.version}, one plan for {targets}.)"
    return "\n".join([*rows, "", note])


def _cell(release: Release, precision: Precision, photos: Path, scratch: Path, package: str) -> str:
    graph = scratch / "model.onnx"
    reads_images = model_entry(release.card.name).card.image is not None
    try:
        write_onnx(release, precision, graph, photos if precision == "int8_qdq" and reads_images else None)
        built = build_graph(graph, release.card, "latency", Options(package=package))
    except IncompatibleBundleError as problem:
        return "no: " + str(problem).partition("cannot read it: ")[2].partition(";")[0]
    finally:
        for path in scratch.glob("model.onnx*"):
            path.unlink()
    products = built.report.products
    return f"{products.get(COUNTED_AS[precision], 0)} of {sum(products.values())}"


def _drawn(folder: Path) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(random.integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder
