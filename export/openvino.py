"""`zoo export openvino`: a release to an OpenVINO engine in a bundle, by way of an ONNX graph."""

from __future__ import annotations

import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Unpack

import onnx
from onnx import numpy_helper

from export.bundle.manifest import OPSET, Engine, Manifest, Precision, Range, Shapes
from export.bundle.store import write_banks
from export.make import EngineOptions, Entry, add_engine
from export.onnx.export import scales_from
from export.onnx.graph import served_graph
from export.precision.nodes import check_products, save, skip_resize
from export.runtime.onnx import onnxruntime
from export.runtime.openvino import compile_graph, openvino
from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError
from zoo.files.writing import native_writer
from zoo.models.served import text_banks
from zoo.release.store import Release

#: What OpenVINO calls the nodes of a compiled graph that multiply matrices, and types.
_PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "Deconvolution", "ScaledDotProductAttention")
_TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}


def export_openvino(
    source: str | Path, out: Path, *, precision: Precision = "fp32", **options: Unpack[EngineOptions]
) -> Manifest:
    """Export a model to an OpenVINO engine in a new bundle or an existing one of the same weights.

    In `fp32`, or in `int8_qdq` with scales from `calibrate`. Raises what `add_engine` raises, MissingDependencyError
    without OpenVINO (and, for int8_qdq, onnxruntime), BadInputError for another precision, and IncompatibleBundleError
    when no matrix product of the compiled graph is in `precision`.
    """
    if precision not in ("fp32", "int8", "int8_qdq"):
        raise BadArgumentError(f"an OpenVINO engine is for CPUs, in fp32 or int8_qdq, got {precision}")
    openvino()  # before the work, not after it

    def build(release: Release, stem: Path, batch: Range, entry: Entry) -> Engine:
        files, counts = write_openvino(release, precision, stem.with_suffix(".xml"), options.get("calibrate"))
        versions = {package: version(package) for package in ("onnx", "onnxscript", "openvino")}
        shapes = image_shapes(release.card, batch)
        return entry(files=files, matmuls=counts, runs_on=("cpu",), shapes=shapes, versions=versions)

    return add_engine(source, out, "openvino", precision, build, options)


def write_openvino(
    release: Release,
    precision: Precision,
    path: Path,
    calibrate: Path | None = None,
    *,
    traced: onnx.ModelProto | None = None,
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Write the graph of a release as OpenVINO's `.xml` and `.bin`; returns its files and its products by precision.

    The products are those of the graph as OpenVINO compiled it. It may have fused those of the attention into other
    nodes, which are not counted. `traced` is the fp32 ONNX graph, if it exists already. Raises what `export_openvino`
    does.
    """
    batches = scales_from(release, precision, calibrate)
    proto = traced or served_graph(release.model, text_banks(release.model, release.judge), opset=OPSET)
    if batches:
        onnxruntime()  # whose quantizer it is
        from export.precision.int8 import quantise_static

        proto = quantise_static(proto, batches, symmetric=False)
    if release.card.image is not None:
        proto = skip_resize(proto, release.card.image.size)
    files = [path.name, path.with_suffix(".bin").name]
    defaults = [one for one in proto.graph.initializer if one.name in release.card.bank_names]
    if defaults:
        files.append(write_banks(path, {one.name: numpy_helper.to_array(one) for one in defaults}))
        for one in defaults:  # OpenVINO has no default inputs and would build them in
            proto.graph.initializer.remove(one)
    with tempfile.TemporaryDirectory(prefix="safety-zoo-") as scratch:
        save(proto, Path(scratch) / "model.onnx")
        ov = openvino()
        model = ov.Core().read_model(Path(scratch) / "model.onnx")
        if release.card.image is not None:
            # A fixed size, so that no `If` is left: at its first call, OpenVINO 2026.4 gives a wrong answer.
            size = release.card.image.size
            model.reshape({"image": [-1, size, size, 3]})
        with native_writer(path):
            ov.save_model(model, path, compress_to_fp16=False)
    counts = _count_products(path)
    check_products(counts, precision)
    return tuple(files), counts


def image_shapes(card: ModelCard, batch: Range) -> dict[str, Shapes]:
    """The shapes of images that the graph takes: the runtime gives it none of another size."""
    if card.image is None:
        return {}
    size = card.image.size
    least, usual, largest = ((rows, size, size, 3) for rows in batch)
    return {"image": (least, usual, largest)}


def _count_products(path: Path) -> dict[str, int]:
    """The nodes of the compiled graph that multiply matrices, by the precision that they run in."""
    counts: Counter[str] = Counter()
    core = openvino().Core()
    for node in compile_graph(core, core.read_model(path)).get_runtime_model().get_ops():
        noted = node.get_rt_info()
        if noted["layerType"].astype(str) in _PRODUCTS:
            kind = noted["runtimePrecision"].astype(str)
            counts[_TYPES.get(kind, kind)] += 1
    return dict(sorted(counts.items()))
