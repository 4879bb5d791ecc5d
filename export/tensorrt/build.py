"""An ONNX file to a TensorRT plan, by NVIDIA's `tensorrt` (10, 11) or `tensorrt_rtx`: strongly typed, layers inspected.

The precision is that of the graph: strongly typed, TensorRT changes none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from export.bundle import Shapes
from export.tensorrt.layers import count_kinds, count_products, read_layers
from export.tensorrt.package import LogLine, Package, load_package
from export.tensorrt.report import Report
from zoo.errors import BadArgumentError, BadDataError, IncompatibleBundleError, close_match

Range = tuple[int, int, int]

#: What TensorRT for RTX builds for where nothing is said: data centre Ampere, GeForce Ampere, Ada. One plan for all.
CAPABILITIES = ("SM80", "SM86", "SM89")
#: As many phrases as a policy may have where the text bank is an input.
MOST_PHRASES = 256


@dataclass(frozen=True)
class Built:
    """A finished plan, what it is, and TensorRT's own words while it was built."""

    plan: bytes
    report: Report
    log: str


def build(
    graph: Path,
    *,
    profiles: Mapping[str, Shapes],
    capabilities: Sequence[str] = (),
    refit: Sequence[str] = (),
    constant: Sequence[str] = (),
    strip_weights: bool = False,
    timing_cache: Path | None = None,
    package: str | None = None,
) -> Built:
    """Build a plan from an ONNX file.

    `profiles` give least, usual and largest shape of each input that varies (see `profiles_of`). A graph input with a
    default value becomes an input of the engine; named in `constant` it keeps its default for good, and named in
    `refit` until the loaded engine is given another one of the same shape. `capabilities` are the GPU architectures to
    build for: with TensorRT for RTX any it knows (`CAPABILITIES` when empty), with `tensorrt` only the GPU at hand, so
    none may be named. `strip_weights` leaves the weights out of the plan; the runtime refits them from the ONNX file.
    `timing_cache` is a file in which `tensorrt` keeps measured kernels from build to build.

    Raises BadInputError (an argument that the graph or the package does not know), IncompatibleBundleError (the graph
    does not parse, the engine does not build, with TensorRT's own words), MissingDependencyError.
    """
    trt = load_package(package)
    targets = _targets(trt, capabilities)
    proto = _with_banks(graph, (*refit, *constant))
    with trt.listen() as log:
        builder = trt.module.Builder(trt.logger)
        data = proto.SerializeToString()  # the parser's weights point into it: it must live until the build is done
        network, parser = _parse(trt, builder, data, graph)
        config = _config(trt, builder, network, targets, refit, strip_weights)
        config.add_optimization_profile(_profile(builder, network, profiles))
        cache = _read_timing_cache(trt, config, timing_cache)
        inputs = [network.get_input(number).name for number in range(network.num_inputs)]
        start = time.perf_counter()
        plan = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - start
        del parser
        if plan is None:
            raise IncompatibleBundleError(_failure(trt, graph, log, bool(refit) or strip_weights))
        if cache is not None and timing_cache is not None:
            timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
        layers = read_layers(log)
        report = Report(
            package=trt.name,
            version=trt.version,
            capabilities=targets,
            profiles={name: shapes for name, shapes in profiles.items() if name in inputs},
            products=count_products(network, layers),
            layers=count_kinds(layers),
            refittable=tuple(refit),
            stripped=strip_weights,
            plan_bytes=plan.nbytes,
            activation_bytes=_activation_bytes(log),
            seconds=round(seconds, 3),
        )
        return Built(bytes(plan), report, _text(log))


def parse(graph: Path, *, package: str | None = None) -> None:
    """Check that TensorRT knows every node of an ONNX file. Raises IncompatibleBundleError naming those it does not."""
    trt = load_package(package)
    proto = _with_banks(graph, ())
    with trt.listen():
        _parse(trt, trt.module.Builder(trt.logger), proto.SerializeToString(), graph)


def profiles_of(graph: Path, *, batch: Range, image: Range, phrases: Range | None = None) -> dict[str, Shapes]:
    """The shapes of every input of an ONNX file, from ranges least:usual:largest for its symbolic dimensions.

    `batch` counts rows, `image` is the side in pixels, `phrases` the rows of a text bank (from 1 to `MOST_PHRASES`, the
    usual number that of the default, where None). Raises BadInputError for a range that does not rise from 1.
    """
    proto = load_graph(graph).graph
    defaults = {weight.name: tuple(weight.dims) for weight in proto.initializer}
    found: dict[str, Shapes] = {}
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
                raise BadDataError(f'{graph}: input "{value.name}" has a dimension "{dim.dim_param}" of no known range')
        least, usual_shape, largest = zip(*sides, strict=True)
        found[value.name] = (least, usual_shape, largest)
    return found


def load_graph(graph: Path) -> onnx.ModelProto:
    """Read an ONNX file without weights that lie in a file of their own. Raises BadInputError where there is none."""
    if not graph.is_file():
        raise BadArgumentError(f"{graph}: no such file")
    return onnx.load(graph, load_external_data=False)


def _rising(values: Range, what: str) -> Range:
    if not 1 <= values[0] <= values[1] <= values[2]:
        raise BadArgumentError(f"{what}: least, usual and largest must rise from 1, got {':'.join(map(str, values))}")
    return values


def _targets(trt: Package, capabilities: Sequence[str]) -> tuple[str, ...]:
    """The names of the architectures to build for; `8.6`, `sm86` and `SM86` are one."""
    if not trt.is_rtx:
        if capabilities:
            raise BadArgumentError(
                f"tensorrt {trt.version} builds for the GPU at hand only, so none may be named (got "
                f"{', '.join(capabilities)}); TensorRT for RTX builds for any: pip install 'safety-zoo[tensorrt-rtx]'"
            )
        from export.runtime.cuda import local_gpu

        return (local_gpu().capability,)
    known = [name for name in trt.module.ComputeCapability.__members__ if name not in ("NONE", "CURRENT")]
    wanted = tuple("SM" + one.upper().removeprefix("SM").replace(".", "") for one in capabilities) or CAPABILITIES
    for name in wanted:
        if name not in known:
            raise BadArgumentError(f"tensorrt_rtx {trt.version} builds for no {name}" + close_match(name, known))
    return wanted


def _with_banks(graph: Path, constants: Sequence[str]) -> onnx.ModelProto:
    """The graph with each default value either an input proper or a constant proper.

    TensorRT's parser takes an initializer that is also an input for a constant, and forgets that it was an input.
    """
    proto = load_graph(graph)
    inputs = {value.name: value for value in proto.graph.input}
    weights = {weight.name: weight for weight in proto.graph.initializer}
    for name in constants:
        if name not in weights:
            raise BadDataError(f'{graph}: has no weights named "{name}"' + close_match(name, weights))
    for name in inputs.keys() & weights.keys():
        if name in constants:
            proto.graph.input.remove(inputs[name])
        else:
            proto.graph.initializer.remove(weights[name])
    return proto


def _parse(trt: Package, builder: Any, data: bytes, graph: Path) -> tuple[Any, Any]:
    # From 11 on every network is strongly typed, and the flag may be gone.
    flag = getattr(trt.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.module.OnnxParser(network, trt.logger)
    if not parser.parse(data, str(graph)):
        raise IncompatibleBundleError(
            f"{graph}: {trt.name} {trt.version} cannot read it: " + "; ".join(_parse_errors(parser)) + _checked(graph)
        )
    return network, parser


def _parse_errors(parser: Any) -> list[str]:
    found = []
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        where = f"node {error.node()} {error.node_name()!r} ({error.node_operator()})"
        found.append(f"{where}: {error.code().name}, {error.desc()}")
    return found


def _checked(graph: Path) -> str:
    """The ONNX checker's words, where the graph itself is wrong."""
    try:
        onnx.checker.check_model(str(graph), full_check=True)
    except Exception as problem:  # the checker has no base class of its own for what it raises
        return f"; the ONNX checker says: {problem}"
    return "; the ONNX checker finds nothing wrong with it"


def _config(
    trt: Package, builder: Any, network: Any, targets: Sequence[str], refit: Sequence[str], strip_weights: bool
) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.module.ProfilingVerbosity.DETAILED  # so that the engine's layers are listed
    config.clear_flag(trt.module.BuilderFlag.TF32)  # on by default: 10 bits of mantissa in what says float32
    if trt.is_rtx:
        config.num_compute_capabilities = len(targets)
        for number, name in enumerate(targets):
            config.set_compute_capability(trt.module.ComputeCapability.__members__[name], number)
    if refit:
        config.set_flag(trt.module.BuilderFlag.REFIT_INDIVIDUAL)
        for name in refit:
            if not network.mark_weights_refittable(name):
                raise IncompatibleBundleError(f'{trt.name} {trt.version} does not let "{name}" be refitted')
    if strip_weights:
        config.set_flag(trt.module.BuilderFlag.STRIP_PLAN)
    return config


def _profile(builder: Any, network: Any, profiles: Mapping[str, Shapes]) -> Any:
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    for tensor in inputs:
        if tensor.name not in profiles:
            raise BadArgumentError(f'no shapes for input "{tensor.name}" {tuple(tensor.shape)}')
        profile.set_shape(tensor.name, *profiles[tensor.name])
    return profile


def _read_timing_cache(trt: Package, config: Any, path: Path | None) -> Any:
    if path is None:
        return None
    if trt.is_rtx:
        raise BadArgumentError("TensorRT for RTX times no kernels when it builds, so it keeps no timing cache")
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise BadDataError(f"{path}: no timing cache of {trt.name} {trt.version} for this GPU; remove it")
    return cache


def _failure(trt: Package, graph: Path, log: list[LogLine], refits: bool) -> str:
    words = [line.message for line in log if "ERROR" in line.severity] or ["no reason given"]
    hint = ""
    if refits and trt.is_rtx:
        hint = "; it builds plans that can be refitted or have no weights only where there is a GPU"
    return f"{graph}: {trt.name} {trt.version} built no engine: " + "; ".join(words) + hint


def _activation_bytes(log: list[LogLine]) -> int:
    start = "Total Activation Memory: "
    found = [line.message.removeprefix(start).split()[0] for line in log if line.message.startswith(start)]
    return int(found[-1]) if found else 0


def _text(log: list[LogLine]) -> str:
    """What a person would read of the log: all but the tracing, and the list of the engine's layers."""
    kept = [line for line in log if line.severity != "VERBOSE" or "Layers:" in line.message]
    return "".join(f"{line.severity} {line.message}\n" for line in kept)
