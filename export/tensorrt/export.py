"""`zoo export tensorrt`: a release to a TensorRT engine in a bundle, by way of an ONNX graph of that precision."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Unpack

from onnx import numpy_helper

from export.bundle.manifest import Engine, Gpu, Manifest, Precision, Profile, Shapes, given
from export.bundle.store import write_banks
from export.make import Placing, add_engine
from export.onnx.export import BATCHES, engine_name, opset_of, write_onnx
from export.precision.nodes import check_products
from export.runtime.cuda import cuda_versions, local_gpu
from export.tensorrt.build import Built, Range, build, load_graph
from export.tensorrt.package import GRAPH, LOG, REPORT, PlanReport
from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError, BadDataError
from zoo.files import write_file
from zoo.release.store import Release

TextBank = Literal["input", "constant", "refit"]
#: Largest side of the images that an engine resizes by itself, unless another is asked for.
LARGEST_IMAGE = 1024
#: As many phrases as a policy may have where the text bank is an input.
MOST_PHRASES = 256


@dataclass(frozen=True)
class PlanOptions:
    """The options of a TensorRT build; None takes the default that `export_tensorrt` names.

    `batch` and `image` (side in pixels) are least, usual and largest. `text_bank` "input" takes a policy of any number
    of phrases, "constant" is for servers that can feed none, and "refit" a constant that one of its shape replaces. The
    others are those of `export.tensorrt.build.build`.
    """

    batch: Range | None = None
    image: Range | None = None
    capabilities: Sequence[str] = ()
    text_bank: TextBank = "input"
    strip_weights: bool = False
    timing_cache: Path | None = None
    package: str | None = None


def export_tensorrt(
    source: str | Path,
    out: Path,
    *,
    precision: Precision = "fp16",
    profile: Profile = "latency",
    options: PlanOptions = PlanOptions(),  # frozen
    calibrate: Path | None = None,
    **placing: Unpack[Placing],
) -> Manifest:
    """Export a model to a TensorRT engine in a new bundle or an existing one of the same weights.

    By default for the batches of `profile`, and for images from half the model's own side to 1024 pixels. Raises what
    `add_engine`, `write_onnx` and `export.tensorrt.build.build` raise, and IncompatibleBundleError when no matrix
    product of the finished engine is in `precision`.
    """
    if precision == "int8":
        raise BadArgumentError(
            "int8 scales its activations as they come, which TensorRT does not read: use int8_qdq with `calibrate`"
        )
    name = engine_name("tensorrt", precision, profile)

    def build_engine(release: Release, folder: Path) -> Engine:
        with tempfile.TemporaryDirectory(prefix="safety-zoo-") as scratch:
            graph = Path(scratch) / f"{name}{GRAPH}"
            write_onnx(release, precision, graph, calibrate)
            built = build_graph(graph, release.card, profile, options)
            check_products(built.report.products, precision)
            files = write_plan(built, graph, release.card, folder / name, options.text_bank)
        return Engine(
            name, "tensorrt", precision, files, profile, options.batch or BATCHES[profile], ("cuda",),
            built.report.products, release.policy.id,
            opset=opset_of(precision),
            versions={built.report.package: built.report.version} | cuda_versions(),
            gpu=Gpu(_card(built.report), ", ".join(built.report.capabilities)),
            shapes=built.report.profiles,
            options=given(calibrate=calibrate, **_given(options, built.report)),
        )  # fmt: skip

    return add_engine(source, out, name, build_engine, **placing)


def _card(report: PlanReport) -> str:
    """The name of the card that a plan was built for; empty for a plan for several architectures."""
    return "" if report.package == "tensorrt_rtx" else local_gpu().name


def _given(options: PlanOptions, report: PlanReport) -> dict[str, object]:
    """The options by their names on the command line, with the package that was used."""
    given_options = {field.name: getattr(options, field.name) for field in fields(options)}
    capability = given_options.pop("capabilities")
    return {**given_options, "capability": capability, "package": report.package}


def build_graph(graph: Path, card: ModelCard, profile: Profile, options: PlanOptions) -> Built:
    """Build the plan of a model's graph as the options say."""
    side = card.image.size if card.image else 1
    image = options.image or (max(1, side // 2), side, max(side, LARGEST_IMAGE))
    return build(
        graph,
        profiles=profiles_of(graph, batch=options.batch or BATCHES[profile], image=image),
        capabilities=options.capabilities,
        refit=card.bank_names if options.text_bank == "refit" else (),
        constant=card.bank_names if options.text_bank == "constant" else (),
        strip_weights=options.strip_weights,
        timing_cache=options.timing_cache,
        package=options.package,
    )


def write_plan(
    built: Built, graph: Path, card: ModelCard, stem: Path, text_bank: TextBank = "input"
) -> tuple[str, ...]:
    """Write the plan and what the runtime needs beside it; names of the files, the plan first."""
    plan = stem.with_suffix(".plan")
    write_file(plan, built.plan)
    write_file(plan.with_suffix(REPORT), json.dumps(built.report.to_dict(), indent=2) + "\n")
    write_file(plan.with_suffix(LOG), built.log)
    files = [plan.name, plan.with_suffix(REPORT).name, plan.with_suffix(LOG).name]
    if text_bank != "constant" and card.bank_names:
        weights = {weight.name: weight for weight in load_graph(graph).graph.initializer}
        banks = {name: numpy_helper.to_array(weights[name], str(graph.parent)) for name in card.bank_names}
        files.append(write_banks(plan, banks))
    if built.report.stripped:
        for path in sorted(graph.parent.glob(f"{graph.name}*")):  # and its weights, where they have a file of their own
            write_file(stem.parent / path.name, path.read_bytes())
            files.append(path.name)
    return tuple(files)


def profiles_of(graph: Path, *, batch: Range, image: Range, phrases: Range | None = None) -> dict[str, Shapes]:
    """The shapes of every input of an ONNX file, from ranges least:usual:largest for its symbolic dimensions.

    `batch` counts rows, `image` is the side in pixels, `phrases` the rows of a text bank (from 1 to `MOST_PHRASES`, the
    usual number that of the default, where None). Raises BadInputError for a range that does not rise from 1.
    """
    proto = load_graph(graph).graph
    defaults = {weight.name: tuple(weight.dims) for weight in proto.initializer}
    shapes: dict[str, Shapes] = {}
    for value in proto.input:
        sides: list[Range] = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_param"):
                sides.append((dim.dim_value,) * 3)
            elif dim.dim_param == "batch":
                sides.append(_rising(batch, "batch"))
            elif dim.dim_param in ("height", "width"):
                sides.append(_rising(image, "image"))
            elif value.name in defaults:
                usual = defaults[value.name][axis]
                sides.append(_rising(phrases or (1, usual, max(usual, MOST_PHRASES)), "phrases"))
            else:
                raise BadDataError(f'{graph}: the range of dimension "{dim.dim_param}" of "{value.name}" is unknown')
        least, usual_shape, largest = zip(*sides, strict=True)
        shapes[value.name] = (least, usual_shape, largest)
    return shapes


def _rising(values: Range, what: str) -> Range:
    if not 1 <= values[0] <= values[1] <= values[2]:
        raise BadArgumentError(f"{what}: least, usual and largest must rise from 1, got {':'.join(map(str, values))}")
    return values
