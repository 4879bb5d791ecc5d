"""What precision a graph computes in: its matrix products and convolutions, counted where they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import TensorProto

from export.precision.names import COUNTED_AS, Precision
from zoo.errors import IncompatibleBundleError

_FLOATS: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_INTEGERS = {"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "DynamicQuantizeMatMul"}
#: What may stand between a DequantizeLinear and the product that it feeds.
_MOVES = {"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"}


def count_products(proto: onnx.ModelProto) -> dict[str, int]:
    """How many of the products (MatMul, Gemm, Conv) are in each precision, read from the types in the graph.

    A float product counts as int8 when both operands come out of a DequantizeLinear: there the engine multiplies 8
    bits. Raises IncompatibleBundleError for a product whose type the graph does not give away.
    """
    types = _types(proto)
    nodes = [node for graph in _graphs(proto.graph) for node in graph.node]
    producers = {name: node for node in nodes for name in node.output}
    counts: Counter[str] = Counter()
    for node in nodes:
        if node.op_type in _INTEGERS:
            counts["int8"] += 1
        elif node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
            if all(_dequantised(name, producers) for name in node.input[:2]):
                counts["int8"] += 1
                continue
            found = _FLOATS.get(types.get(node.output[0], types.get(node.input[0], TensorProto.UNDEFINED)))
            if found is None:
                raise IncompatibleBundleError(f"{node.op_type} {node.name}: the graph does not say of what type it is")
            counts[found] += 1
    return dict(sorted(counts.items()))


def check_products(counts: dict[str, int], precision: Precision) -> None:
    """Raise IncompatibleBundleError where a graph that is called `precision` has no product in it."""
    if not counts.get(COUNTED_AS[precision]):
        raise IncompatibleBundleError(
            f"an {precision} engine was asked for, but of its matrix products none is: {counts or 'it has none'}"
        )


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    found: dict[str, int] = {}
    for graph in _graphs(inferred):
        values = (*graph.input, *graph.output, *graph.value_info)
        found |= {value.name: value.type.tensor_type.elem_type for value in values}
        found |= {weight.name: weight.data_type for weight in graph.initializer}
    return found


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those of the branches within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _dequantised(name: str, producers: dict[str, onnx.NodeProto]) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type in _MOVES:
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"
