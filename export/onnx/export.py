"""An ONNX engine of any precision, and the bundle that holds it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Unpack

import onnx

from export.bundle.manifest import Device, Engine, Manifest, Precision, Profile, given
from export.make import Placing, add_engine
from export.onnx.graph import OPSET, OPSET_BF16, served_graph
from export.precision.calibration import calibration, what_to_give
from export.precision.half import HALVES, in_half
from export.precision.nodes import check_products, count_products, save
from export.runtime.onnx import installed_version
from zoo.errors import BadArgumentError
from zoo.judging.scorer import Feeds
from zoo.models.served import text_banks
from zoo.release.store import Release

#: Least, usual and largest batch.
BATCHES: dict[Profile, tuple[int, int, int]] = {"latency": (1, 8, 64), "throughput": (1, 32, 256)}
RUNS_ON: dict[Precision, tuple[Device, ...]] = {
    "fp32": ("cpu", "cuda"),
    "fp16": ("cuda", "cpu"),
    "bf16": ("cuda",),
    "int8": ("cpu",),
    "int8_qdq": ("cuda", "cpu"),
}


def export_onnx(
    source: str | Path,
    out: Path,
    *,
    precision: Precision = "fp32",
    profile: Profile = "latency",
    batch: tuple[int, int, int] | None = None,
    calibrate: Path | None = None,
    **placing: Unpack[Placing],
) -> Manifest:
    """Export a release directory, a Hub release or a registered model to a bundle, or add an engine to one.

    With `untrained` the registered architecture is built with random (seeded) weights and these hyperparameters, for
    benchmarks. `int8_qdq` takes its scales from `calibrate` (see `export.precision.calibration`). With `check` the
    engine is verified before it goes into the bundle. Raises what `add_engine` and `write_onnx` raise.
    """
    name = engine_name("onnx", precision, profile)

    def build(release: Release, folder: Path) -> Engine:
        files, counts = write_onnx(release, precision, folder / f"{name}.onnx", calibrate)
        return Engine(
            name, "onnx", precision, files, profile, batch or BATCHES[profile], RUNS_ON[precision], counts,
            release.policy.id, opset=opset_of(precision), options=given(batch=batch, calibrate=calibrate),
            versions={package: version(package) for package in ("onnx", "onnxscript")} | installed_version(),
        )  # fmt: skip

    return add_engine(source, out, name, build, **placing)


def engine_name(kind: str, precision: Precision, profile: Profile, suffix: str = "") -> str:
    """The name of an engine in its bundle, such as `onnx-fp16`; it ends with `-throughput` for that profile."""
    return "-".join(
        [kind, precision, *(["throughput"] if profile == "throughput" else []), *([suffix] if suffix else [])]
    )


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

    `traced` is its fp32 graph, if it exists already: 8-bit graphs are made from it, and tracing takes longest. Raises
    IncompatibleBundleError when the graph has no product in that precision or differs from the declared one, and
    BadArgumentError for `int8_qdq` without inputs to calibrate on, or for such inputs with another precision.
    """
    batches = scales_from(release, precision, calibrate)
    model = in_half(release.model, HALVES[precision]) if precision in HALVES else release.model
    if traced is not None and precision.startswith("int8"):
        proto = traced
    else:
        proto = served_graph(model, text_banks(release.model, release.judge), opset=opset_of(precision))
    if precision.startswith("int8"):
        from export.precision.int8 import quantise_rows, quantise_static
        from export.precision.nodes import patches_as_products, skip_resize

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
