"""`zoo export tensorrt`: a release to a TensorRT engine in a bundle, by way of an ONNX graph of that precision."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Unpack

from onnx import numpy_helper

from export.bundle.manifest import Engine, Gpu, Manifest, Precision, Range, Shapes, given
from export.bundle.store import write_banks
from export.make import EngineOptions, Entry, add_engine
from export.onnx.export import opset_of, write_onnx
from export.precision.nodes import check_products
from export.runtime.cuda import cuda_versions, local_gpu
from export.tensorrt.build import Built, PlanOptions, build, load_graph
from export.tensorrt.package import GRAPH, LOG, REPORT
from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError, BadDataError
from zoo.files.writing import write_file
from zoo.release.store import Release

#: Largest side of the images that an engine resizes by itself, unless another is asked for.
LARGEST_IMAGE = 1024
#: The length of texts, in tokens, that an engine is fastest at where it varies.
_USUAL_LENGTH = 32
#: As many phrases as a policy may have where the text bank is an input.
MOST_PHRASES = 256


def export_tensorrt(
    source: str | Path,
    out: Path,
    *,
    precision: Precision = "fp16",
    plan: PlanOptions = PlanOptions(),  # noqa: B008  (frozen)
    **options: Unpack[EngineOptions],
) -> Manifest:
    """Export a model to a TensorRT engine in a new bundle or an existing one of the same weights.

    By default for the batches of `profile`, and for images from half the model's own side to 1024 pixels. Raises what
    `add_engine`, `write_onnx` and `export.tensorrt.build.build` raise, and IncompatibleBundleError when no matrix
    product of the finished engine is in `precision`.
    """

    def build_engine(release: Release, stem: Path, batch: Range, entry: Entry) -> Engine:
        with tempfile.TemporaryDirectory(prefix="safety-zoo-") as scratch:
            graph = Path(scratch) / f"{stem.name}{GRAPH}"
            write_onnx(release, precision, graph, options.get("calibrate"))
            built = build_graph(graph, release.card, batch, plan)
            check_products(built.report.products, precision)
            files = write_plan(built, graph, release.card, stem)
        report = built.report
        card = "" if report.package == "tensorrt_rtx" else local_gpu().name  # RTX: for several architectures
        return entry(
            files=files,
            matmuls=report.products,
            runs_on=("cuda",),
            opset=opset_of(precision),
            versions={report.package: report.version} | cuda_versions(),
            gpu=Gpu(card, ", ".join(report.capabilities)),
            shapes=report.profiles,
            options=given(**{**vars(plan), "package": report.package}),
        )

    return add_engine(source, out, "tensorrt", precision, build_engine, options)


def build_graph(graph: Path, card: ModelCard, batch: Range, plan: PlanOptions) -> Built:
    """Build the plan of a model's graph as the options say."""
    side = card.image.size if card.image else 1
    image = plan.image or (max(1, side // 2), side, max(side, LARGEST_IMAGE))
    length = card.text.context_length if card.text else 1
    profiles = profiles_of(graph, batch=batch, image=image, tokens=(1, min(_USUAL_LENGTH, length), length))
    return build(graph, profiles, plan, card.bank_names)


def write_plan(built: Built, graph: Path, card: ModelCard, stem: Path) -> tuple[str, ...]:
    """Write the plan and what the runtime needs beside it; names of the files, the plan first."""
    plan = stem.with_suffix(".plan")
    write_file(plan, built.plan)
    built.report.write_json(plan.with_suffix(REPORT), indent=2)
    write_file(plan.with_suffix(LOG), built.log)
    files = [plan.name, plan.with_suffix(REPORT).name, plan.with_suffix(LOG).name]
    changeable = [name for name in card.bank_names if name in (*built.report.profiles, *built.report.refittable)]
    if changeable:
        weights = {weight.name: weight for weight in load_graph(graph).graph.initializer}
        banks = {name: numpy_helper.to_array(weights[name], str(graph.parent)) for name in changeable}
        files.append(write_banks(plan, banks))
    if built.report.stripped:
        for path in sorted(graph.parent.glob(f"{graph.name}*")):  # and its weights, where they have a file of their own
            write_file(stem.parent / path.name, path.read_bytes())
            files.append(path.name)
    return tuple(files)


def profiles_of(graph: Path, *, batch: Range, image: Range, tokens: Range = (1, 1, 1)) -> dict[str, Shapes]:
    """The shapes of every input of an ONNX file, from ranges least:usual:largest for its symbolic dimensions.

    `batch` counts rows, `image` is the side in pixels, `tokens` is the length of texts where it varies. A text bank has
    from 1 to `MOST_PHRASES` rows, usually those of its default. Raises BadInputError for a range that does not rise
    from 1.
    """
    proto = load_graph(graph).graph
    defaults = {weight.name: tuple(weight.dims) for weight in proto.initializer}
    ranges = {"batch": batch, "height": image, "width": image, "tokens": tokens}
    for what, (least, usual, largest) in (("batch", batch), ("image", image)):
        if not 1 <= least <= usual <= largest:
            raise BadArgumentError(f"{what}: least, usual and largest must rise from 1, got {least}:{usual}:{largest}")
    shapes: dict[str, Shapes] = {}
    for value in proto.input:
        sides: list[Range] = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_param"):
                sides.append((dim.dim_value,) * 3)
            elif dim.dim_param in ranges:
                sides.append(ranges[dim.dim_param])
            elif value.name in defaults:
                usual = defaults[value.name][axis]
                sides.append((1, usual, max(usual, MOST_PHRASES)))
            else:
                raise BadDataError(f'{graph}: the range of dimension "{dim.dim_param}" of "{value.name}" is unknown')
        small, middle, large = zip(*sides, strict=True)
        shapes[value.name] = (small, middle, large)
    return shapes
