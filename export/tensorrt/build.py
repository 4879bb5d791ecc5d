"""An ONNX file to a TensorRT plan, by NVIDIA's `tensorrt` (10, 11) or `tensorrt_rtx`: strongly typed, layers inspected.

The precision is that of the graph: strongly typed, TensorRT changes none. Yet an "fp16" build can end as an fp32 engine
with no more than a warning, so the products are counted in the finished engine's own list of layers. TensorRT writes
that list at the end of its log when the profiling verbosity is detailed; this needs no GPU, the engine inspector does.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from export.bundle.manifest import Range, Shapes
from export.tensorrt.package import LogLine, Package, PlanReport, errors_in, load_package
from zoo.errors import BadArgumentError, BadDataError, IncompatibleBundleError, close_match
from zoo.files.writing import write_file

#: TensorRT's names of types, in the network (capitals) and in the layer list.
PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "BFLOAT16": "bf16", "INT8": "int8", "FP8": "fp8"}
#: Kernels that TensorRT generates for the nodes around a product; they name that product too.
_AROUND = "kgen"
_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION")
#: A line of the list of layers: constants stand between inputs and outputs.
_LAYER = re.compile(r"^.*?LayerType: (\w*), Inputs: (.*?), Outputs: .*$", re.MULTILINE)
#: What may stand between a DequantizeLinear and the product that it feeds.
_MOVES = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE")


@dataclass(frozen=True)
class EngineLayer:
    """A layer of the finished engine: its kind, the precisions of what it reads, the ONNX nodes that went into it."""

    kind: str
    operands: tuple[str, ...]
    nodes: tuple[str, ...]


def read_layers(log: list[LogLine]) -> list[EngineLayer]:
    """The layers of the engine that was just built, from its log. Raises IncompatibleBundleError without any."""
    lists = [line.message for line in log if "Layers:" in line.message]
    layers = [_layer(*fields.group(0, 1, 2)) for text in lists for fields in _LAYER.finditer(text)]
    if not layers:
        raise IncompatibleBundleError(
            "TensorRT's build log lists no layers, so the precision in which the engine computes is unknown"
        )
    return layers


def count_products(network: Any, layers: list[EngineLayer]) -> dict[str, int]:
    """The products of a network by the precision in which the finished engine computes them.

    A product counts in the precision that the strongly typed network gives it if the engine's layer reads operands
    of that type, else in that of the layer's first operand.
    """
    counts: Counter[str] = Counter()
    for name, declared in _declared(network).items():
        homes = [layer for layer in layers if name in layer.nodes and layer.operands]
        kernels = [layer for layer in homes if layer.kind != _AROUND] or homes
        if kernels:  # none: it was computed at build time
            seen = {operand for layer in kernels for operand in layer.operands}
            counts[declared if declared in seen else kernels[0].operands[0]] += 1
    return dict(sorted(counts.items()))


def _declared(network: Any) -> dict[str, str]:
    """The products of the parsed network by ONNX node, with the precision that the types of their operands demand."""
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    makers = {layer.get_output(n).name: layer for layer in layers for n in range(layer.num_outputs)}
    products: dict[str, str] = {}
    for layer in layers:
        if layer.type.name in _PRODUCTS:
            operands = [layer.get_input(n) for n in range(min(2, layer.num_inputs)) if layer.get_input(n) is not None]
            dequantised = all(_dequantised(tensor, makers) for tensor in operands)
            precision = "int8" if dequantised else PRECISIONS.get(operands[0].dtype.name, operands[0].dtype.name)
            products |= dict.fromkeys(_nodes(layer.metadata), precision)
    return products


def _dequantised(tensor: Any, makers: dict[str, Any]) -> bool:
    layer = makers.get(tensor.name)
    while layer is not None and layer.type.name in _MOVES:
        layer = makers.get(layer.get_input(0).name)
    return layer is not None and layer.type.name == "DEQUANTIZE"


def _layer(line: str, kind: str, inputs: str) -> EngineLayer:
    # Scale factors of a product (alpha, beta) are constants of one number, float32 in every precision.
    tensors = re.findall(r"Dimensions: \[([^\]]*)\].*?Datatype: (\w+)", inputs)
    operands = [PRECISIONS.get(name.upper(), name) for dims, name in tensors if set(dims.split(",")) - {"", "1"}]
    return EngineLayer(kind, tuple(operands), _nodes(line))


def _nodes(metadata: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\[ONNX Layer: (.*?)\]", metadata))


#: What TensorRT for RTX builds for where nothing is said: data centre Ampere, GeForce Ampere, Ada. One plan for all.
CAPABILITIES = ("SM80", "SM86", "SM89")


@dataclass(frozen=True)
class PlanOptions:
    """The options of a build; `export_tensorrt` has defaults for what is None.

    `image` is the side of images in pixels. `capability` are the GPU architectures to build for: with TensorRT for RTX
    any it knows (`CAPABILITIES` when empty), with `tensorrt` only the GPU at hand, so none may be named. `text_bank`
    "input" takes a policy of any number of phrases, "constant" is for servers that can feed none, and "refit" a
    constant that one of its shape replaces in the loaded engine. `strip_weights` leaves the weights out of the plan;
    the runtime refits them from the ONNX file. `timing_cache` is a file in which `tensorrt` keeps measured kernels from
    build to build. `package` is which TensorRT (see `load_package`).
    """

    image: Range | None = None
    capability: Sequence[str] = ()
    text_bank: Literal["input", "constant", "refit"] = "input"
    strip_weights: bool = False
    timing_cache: Path | None = None
    package: str | None = None


@dataclass(frozen=True)
class Built:
    """A finished plan, what it is, and TensorRT's own words while it was built."""

    plan: bytes
    report: PlanReport
    log: str


def build(
    graph: Path, profiles: Mapping[str, Shapes], plan: PlanOptions = PlanOptions(), banks: Sequence[str] = ()
) -> Built:
    """Build a plan from an ONNX file.

    `profiles` give least, usual and largest shape of each input that varies (see `profiles_of`). A graph input with a
    default value becomes an input of the engine; `plan.text_bank` says what becomes of those in `banks`.

    Raises BadInputError (an argument that the graph or the package does not know), IncompatibleBundleError (the graph
    does not parse, the engine does not build, with TensorRT's own words), MissingDependencyError.
    """
    trt = load_package(plan.package)
    targets = _targets(trt, plan.capability)
    refit = tuple(banks) if plan.text_bank == "refit" else ()
    proto = with_banks(graph, banks if plan.text_bank == "constant" else refit)
    with trt.listen() as log:
        builder = trt.module.Builder(trt.logger)
        content = proto.SerializeToString()  # the parser's weights point into it: it must live until the build is done
        network, parser = parse(trt, builder, content, graph)
        config = _config(trt, builder, network, targets, refit, plan)
        read = [network.get_input(number).name for number in range(network.num_inputs)]
        config.add_optimization_profile(_profile(builder, network, profiles))
        start = time.perf_counter()
        data = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - start
        del parser
        if data is None:
            hint = "; it needs a GPU to build plans that can be refitted or have no weights"
            needs_gpu = trt.is_rtx and (refit or plan.strip_weights)
            raise IncompatibleBundleError(
                f"{graph}: {trt.name} {trt.version} built no engine: {errors_in(log)}{hint if needs_gpu else ''}"
            )
        if plan.timing_cache is not None:
            write_file(plan.timing_cache, bytes(config.get_timing_cache().serialize()))
        layers = read_layers(log)
        report = PlanReport(
            package=trt.name,
            version=trt.version,
            capabilities=targets,
            profiles={name: shapes for name, shapes in profiles.items() if name in read},
            products=count_products(network, layers),
            layers=dict(sorted(Counter(layer.kind for layer in layers).items())),
            refittable=refit,
            stripped=plan.strip_weights,
            plan_bytes=data.nbytes,
            activation_bytes=_activation_bytes(log),
            seconds=round(seconds, 3),
        )
        return Built(bytes(data), report, _text(log))


def load_graph(graph: Path) -> onnx.ModelProto:
    """Read an ONNX file without its external weights. Raises BadArgumentError if the file does not exist."""
    if not graph.is_file():
        raise BadArgumentError(f"{graph}: no such file")
    return onnx.load(graph, load_external_data=False)


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


def with_banks(graph: Path, constants: Sequence[str]) -> onnx.ModelProto:
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


def parse(trt: Package, builder: Any, data: bytes, graph: Path) -> tuple[Any, Any]:
    """The network of a graph, with its parser. Raises IncompatibleBundleError that names the nodes TensorRT refuses."""
    # From 11 on every network is strongly typed, and the flag may be gone.
    flag = getattr(trt.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.module.OnnxParser(network, trt.logger)
    if not parser.parse(data, str(graph)):
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        words = "; ".join(
            f"node {one.node()} {one.node_name()!r} ({one.node_operator()}): {one.code().name}, {one.desc()}"
            for one in errors
        )
        raise IncompatibleBundleError(f"{graph}: {trt.name} {trt.version} cannot read it: {words}{_checked(graph)}")
    return network, parser


def _checked(graph: Path) -> str:
    """The ONNX checker's words, where the graph itself is wrong."""
    try:
        onnx.checker.check_model(str(graph), full_check=True)
    except Exception as problem:  # the checker has no base class of its own for what it raises
        return f"; the ONNX checker says: {problem}"
    return "; the ONNX checker finds nothing wrong with it"


def _config(
    trt: Package, builder: Any, network: Any, targets: Sequence[str], refit: Sequence[str], plan: PlanOptions
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
    if plan.strip_weights:
        config.set_flag(trt.module.BuilderFlag.STRIP_PLAN)
    if plan.timing_cache is not None:
        _use_timing_cache(trt, config, plan.timing_cache)
    return config


def _profile(builder: Any, network: Any, profiles: Mapping[str, Shapes]) -> Any:
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(number) for number in range(network.num_inputs)):
        if tensor.name not in profiles:
            raise BadArgumentError(f'no shapes for input "{tensor.name}" {tuple(tensor.shape)}')
        profile.set_shape(tensor.name, *profiles[tensor.name])
    return profile


def _use_timing_cache(trt: Package, config: Any, path: Path) -> None:
    if trt.is_rtx:
        raise BadArgumentError("TensorRT for RTX times no kernels when it builds, so it keeps no timing cache")
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise BadDataError(f"{path}: not a timing cache of {trt.name} {trt.version} for this GPU; remove it")


def _activation_bytes(log: list[LogLine]) -> int:
    start = "Total Activation Memory: "
    sizes = [line.message.removeprefix(start).split()[0] for line in log if line.message.startswith(start)]
    return int(sizes[-1]) if sizes else 0


def _text(log: list[LogLine]) -> str:
    """The part of the log that a person reads: everything except tracing, and the list of the engine's layers."""
    kept = [line for line in log if line.severity != "VERBOSE" or "Layers:" in line.message]
    return "".join(f"{line.severity} {line.message}\n" for line in kept)
