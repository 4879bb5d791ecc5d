"""What a finished TensorRT engine computes in: the products in its own list of layers, not those that were asked for.

An "fp16" build can end as an fp32 engine with no more than a warning. TensorRT lists the layers of the engine that it
built at the end of its log when the profiling verbosity is detailed; that needs no GPU, the engine inspector does.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from export.tensorrt.package import LogLine
from zoo.errors import IncompatibleBundleError

#: TensorRT's names of types, in the network (capitals) and in the layer list.
PRECISIONS = {
    "FLOAT": "fp32",
    "HALF": "fp16",
    "BF16": "bf16",
    "BFLOAT16": "bf16",
    "INT8": "int8",
    "FP8": "fp8",
}
#: Kernels that TensorRT generates for what stands around a product; they name the product that they prepare too.
_AROUND = "kgen"
_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION")
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
    found = [_layer(line) for message in log if "Layers:" in message.message for line in message.message.splitlines()]
    layers = [layer for layer in found if layer is not None]
    if not layers:
        raise IncompatibleBundleError(
            "TensorRT's build log lists no layers, so nobody can say in which precision the engine computes"
        )
    return layers


def count_kinds(layers: list[EngineLayer]) -> dict[str, int]:
    """How many layers of each kind an engine has: gemm, correlation (a convolution), runtime_fusion, kgen ..."""
    return dict(sorted(Counter(layer.kind for layer in layers).items()))


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
    found: dict[str, str] = {}
    for layer in layers:
        if layer.type.name in _PRODUCTS:
            operands = [layer.get_input(n) for n in range(min(2, layer.num_inputs)) if layer.get_input(n) is not None]
            dequantised = all(_dequantised(tensor, makers) for tensor in operands)
            precision = "int8" if dequantised else PRECISIONS.get(operands[0].dtype.name, operands[0].dtype.name)
            found |= dict.fromkeys(_nodes(layer.metadata), precision)
    return found


def _dequantised(tensor: Any, makers: dict[str, Any]) -> bool:
    layer = makers.get(tensor.name)
    while layer is not None and layer.type.name in _MOVES:
        layer = makers.get(layer.get_input(0).name)
    return layer is not None and layer.type.name == "DEQUANTIZE"


def _layer(line: str) -> EngineLayer | None:
    fields = re.search(r"LayerType: (\w*), Inputs: (.*?), Outputs: ", line)  # constants stand between the two
    if fields is None:
        return None
    # Scale factors of a product (alpha, beta) are constants of one number, float32 in every precision.
    tensors = re.findall(r"Dimensions: \[([^\]]*)\].*?Datatype: (\w+)", fields[2])
    operands = [PRECISIONS.get(kind.upper(), kind) for dims, kind in tensors if set(dims.split(",")) - {"", "1"}]
    return EngineLayer(fields[1], tuple(operands), _nodes(line))


def _nodes(metadata: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\[ONNX Layer: (.*?)\]", metadata))
