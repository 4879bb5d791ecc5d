"""An ONNX engine of any precision, and the bundle that holds it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Unpack

import onnx

from export.bundle.manifest import OPSET, OPSET_BF16, Device, Engine, Manifest, Precision, Range
from export.make import EngineOptions, Entry, add_engine
from export.onnx.graph import served_graph
from export.precision.half import HALVES, in_half
from export.precision.nodes import check_products, count_products, patches_as_products, save, skip_resize
from export.runtime.onnx import installed_version
from export.verify.inputs import calibration, what_to_give
from zoo.errors import BadArgumentError
from zoo.judging.scorer import Feeds
from zoo.models.served import text_banks
from zoo.release.store import Release

RUNS_ON: dict[Precision, tuple[Device, ...]] = {
    "fp32": ("cpu", "cuda"),
    "fp16": ("cuda", "cpu"),
    "bf16": ("cuda",),
    "int8": ("cpu",),
    "int8_qdq": ("cuda", "cpu"),
}


def export_onnx(
    source: str | Path, out: Path, *, precision: Precision = "fp32", **options: Unpack[EngineOptions]
) -> Manifest:
    """Export a release directory, a Hub release or a registered model to a bundle, or add an engine to one.

    Raises what `add_engine` and `write_onnx` raise.

    >>> manifest = export_onnx("my_release", Path("my_bundle"), precision="int8", check=Check())
    """

    def build(release: Release, stem: Path, _: Range, entry: Entry) -> Engine:
        files, counts = write_onnx(release, precision, stem.with_suffix(".onnx"), options.get("calibrate"))
        versions = {package: version(package) for package in ("onnx", "onnxscript")} | installed_version()
        return entry(
            files=files,
            matmuls=counts,
            runs_on=RUNS_ON[precision],
            opset=opset_of(precision),
            versions=versions,
            unclamped=precision == "int8",
        )

    return add_engine(source, out, "onnx", precision, build, options)


def opset_of(precision: Precision) -> int:
    """The ONNX opset that graphs of a precision are written in."""
    return OPSET_BF16 if precision == "bf16" else OPSET


def write_onnx(
    release: Release,
    precision: Precision,
    path: Path,
    calibrate: Path | None = None,
    *,
    traced: onnx.ModelProto | None = None,
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Write the graph of a release in one precision; returns its files and its products counted by precision.

    `traced` is the fp32 graph that one in 8 bits is made from, if it exists already: tracing takes longest. Raises
    IncompatibleBundleError when the graph has no product in that precision or differs from the declared one, and
    BadArgumentError for `int8_qdq` without inputs to calibrate on, or for such inputs with another precision.
    """
    batches = scales_from(release, precision, calibrate)
    model = in_half(release.model, HALVES[precision]) if precision in HALVES else release.model
    proto = traced or served_graph(model, text_banks(release.model, release.judge), opset=opset_of(precision))
    if precision.startswith("int8"):
        from export.precision.int8 import quantise_rows, quantise_static

        proto = quantise_static(proto, batches) if batches else quantise_rows(patches_as_products(proto))
        if not batches and release.card.image is not None:
            proto = skip_resize(proto, release.card.image.size)
    counts = count_products(proto)
    check_products(counts, precision)
    return save(proto, path), counts


def scales_from(release: Release, precision: Precision, path: Path | None) -> list[Feeds]:
    """The inputs that `int8_qdq` takes its scales from, none for other precisions. Raises BadInputError without them,
    or where they are given and nothing is calibrated.
    """
    if precision != "int8_qdq":
        if path is not None:
            raise BadArgumentError(f"`calibrate` is for int8_qdq, and {precision} finds no scales beforehand")
        return []
    if path is None:
        raise BadArgumentError(
            f"int8_qdq takes its scales from what the model judges: give {what_to_give(release.card)}"
        )
    codec = release.model.codec() if release.card.reads_text else None
    return calibration(path, release.card, codec)
