"""The nodes of a finished graph: its products counted by precision, and nodes replaced by others."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference

from export.bundle.manifest import COUNTED_AS, Precision
from zoo.errors import IncompatibleBundleError

#: protobuf's limit for one message.
TWO_GIGABYTES = 2 * 1024**3

_FLOATS: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_INTEGERS = {"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "MatMulIntegerToFloat"}
#: What may stand between a DequantizeLinear and the product that it feeds.
_MOVES = {"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"}


def count_products(proto: onnx.ModelProto) -> dict[str, int]:
    """How many of the products (MatMul, Gemm, Conv) are in each precision, read from the types in the graph.

    A float product counts as int8 when both operands come out of a DequantizeLinear: there the engine multiplies 8
    bits. Raises IncompatibleBundleError for a product whose type the graph does not give away.
    """
    types = _types(proto)
    nodes = [node for graph in graphs(proto.graph) for node in graph.node]
    producers = {name: node for node in nodes for name in node.output}
    counts: Counter[str] = Counter()
    for node in nodes:
        floats = node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")
        if node.op_type in _INTEGERS or (floats and all(_dequantised(name, producers) for name in node.input[:2])):
            counts["int8"] += 1
        elif floats:
            precision = _FLOATS.get(types.get(node.output[0], types.get(node.input[0], TensorProto.UNDEFINED)))
            if precision is None:
                raise IncompatibleBundleError(f"{node.op_type} {node.name}: the graph does not say of what type it is")
            counts[precision] += 1
    return dict(sorted(counts.items()))


def check_products(counts: dict[str, int], precision: Precision) -> None:
    """Raise IncompatibleBundleError if a graph that is called `precision` has no product in it."""
    if not counts.get(COUNTED_AS[precision]):
        raise IncompatibleBundleError(
            f"an {precision} engine was asked for, but none of its matrix products is in it: {counts or 'it has none'}"
        )


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    types: dict[str, int] = {}
    for graph in graphs(inferred):
        for value in (*graph.input, *graph.output, *graph.value_info):
            types[value.name] = value.type.tensor_type.elem_type
        types |= {weight.name: weight.data_type for weight in graph.initializer}
    return types


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those of the branches within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def _dequantised(name: str, producers: dict[str, onnx.NodeProto]) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type in _MOVES:
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def rounded_float32(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with every bfloat16 tensor in float32, rounded to bfloat16 after the node that makes it.

    onnxruntime has no bfloat16 kernels for CPUs. A matrix unit multiplies bfloat16, adds up in float32 and rounds the
    sum, and so does this; only the order of the additions differs.
    """
    graph = copy.deepcopy(proto)
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    half = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    for weight in graph.graph.initializer:
        if weight.data_type == TensorProto.BFLOAT16:
            weight.CopyFrom(_widened(weight))
    nodes = []
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.BFLOAT16:
                attribute.t.CopyFrom(_widened(attribute.t))
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in half:
                node.output[index] = f"{name}/exact"
                nodes.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/rounded"], to=TensorProto.BFLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name}/rounded"], [name], to=TensorProto.FLOAT))
    del graph.graph.node[:], graph.graph.value_info[:]
    graph.graph.node.extend(nodes)
    return graph


def _widened(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)


def patches_as_products(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Convolutions whose windows do not overlap, as the patch embedding of a ViT, as a product of patches and weights.

    The same sums, and linear layers are what `quantise_rows` takes to 8 bits; a convolution it leaves in float32.
    """
    proto = copy.deepcopy(proto)
    graph = proto.graph
    shapes = {value.name: value for value in shape_inference.infer_shapes(proto).graph.value_info}
    weights = {weight.name: weight for weight in graph.initializer}
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Conv" or node.input[1] not in weights:
            continue
        kernel = numpy_helper.to_array(weights[node.input[1]])
        grid = _tiles(node, kernel, shapes.get(node.input[0]))
        if grid is None:
            continue
        del graph.node[place]
        for new in reversed(_patches(graph, node, kernel, grid)):
            graph.node.insert(place, new)
    return proto


def skip_resize(proto: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """The graph with its resize in an `If`: images that come `size` by `size`, as the runtime's do, are let through.

    Their resize is the identity, so no answer changes. A graph without one resize, from one input to one output, stays.
    """
    proto = copy.deepcopy(proto)
    graph = proto.graph
    inside = [node for node in graph.node if _of_resize(node)]
    made = {name for node in inside for name in node.output}
    outside = [node for node in graph.node if not _of_resize(node)]
    results = sorted({name for node in outside for name in node.input if name in made})
    turned = {node.output[0] for node in outside if node.op_type == "Transpose"}  # to [B, 3, H, W], which it takes
    entries = sorted({name for node in inside for name in node.input if name in turned})
    if len(results) != 1 or len(entries) != 1:
        return proto
    (resized,) = results
    kept = [value for value in graph.value_info if value.name not in made]  # the graph no longer has the others
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for node in inside:
        node.output[:] = [f"{name}_inside" if name == resized else name for name in node.output]
    otherwise = helper.make_graph(inside, "resize", [], [_float(f"{resized}_inside")])
    same = helper.make_node("Identity", entries, ["let_through"], name="let_through")
    then = helper.make_graph([same], "as_it_is", [], [_float("let_through")])
    graph.initializer.append(numpy_helper.from_array(np.array([size, size]), "resize_size"))
    condition = [
        helper.make_node("Shape", ["image"], ["image_sides"], name="image_sides", start=1, end=3),
        helper.make_node("Equal", ["image_sides", "resize_size"], ["sides_fit"], name="sides_fit"),
        helper.make_node("Cast", ["sides_fit"], ["sides_fit_numbers"], name="sides_fit_numbers", to=TensorProto.INT64),
        helper.make_node("ReduceMin", ["sides_fit_numbers"], ["fit_number"], name="fit_number", keepdims=0),
        helper.make_node("Cast", ["fit_number"], ["image_fits"], name="image_fits", to=TensorProto.BOOL),
        helper.make_node("If", ["image_fits"], [resized], name="resize", then_branch=then, else_branch=otherwise),
    ]
    place = next(place for place, node in enumerate(outside) if resized in node.input)
    del graph.node[:]
    graph.node.extend([*outside[:place], *condition, *outside[place:]])
    return proto


def noted(node: NodeProto, what: str) -> tuple[str, ...]:
    """The exporter's note about the modules that a node comes from, outermost first, such as `name_scopes`."""
    key = f"pkg.torch.onnx.{what}"
    return tuple(ast.literal_eval(next((pair.value for pair in node.metadata_props if pair.key == key), "()")))


def _of_resize(node: NodeProto) -> bool:
    """Whether a node is of `ServedModel.resize`."""
    return noted(node, "name_scopes")[1:2] == ("resize",)


def _float(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _tiles(node: NodeProto, kernel: NDArray[np.float32], value: onnx.ValueInfoProto | None) -> tuple[int, ...] | None:
    """Rows and columns of the tiles that a convolution cuts an image into, if they are of its kernel's size.

    None if it does anything else, or the graph does not know the image's height and width.
    """
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    window = kernel.shape[2:]
    sides = [dim.dim_value for dim in value.type.tensor_type.shape.dim[2:]] if value is not None else []
    fits = (
        len(sides) == len(window) == 2
        and min(window) > 1
        and tuple(given.get("strides", ())) == window
        and not any(given.get("pads", ()))
        and given.get("group", 1) == 1
        and all(one == 1 for one in given.get("dilations", ()))
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and all(side and side % length == 0 for side, length in zip(sides, window, strict=True))
    )
    return tuple(side // length for side, length in zip(sides, window, strict=True)) if fits else None


def _patches(
    graph: onnx.GraphProto, node: NodeProto, kernel: NDArray[np.float32], grid: tuple[int, ...]
) -> list[NodeProto]:
    """The nodes in place of the convolution: cut, multiply, add the bias, and back to `[B, C, rows, columns]`."""
    (out, channels, high, wide), (rows, columns) = kernel.shape, grid
    name = f"{node.name}_patches"

    def constant(suffix: str, value: object) -> str:
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{name}_{suffix}"))
        return f"{name}_{suffix}"

    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Reshape", [constant("grid", [0, channels, rows, high, columns, wide])], {}),
        ("Transpose", [], {"perm": [0, 2, 4, 1, 3, 5]}),
        ("Reshape", [constant("rows", [0, rows * columns, channels * high * wide])], {}),
        ("MatMul", [constant("weight", kernel.reshape(out, -1).T)], {}),
        *([("Add", [node.input[2]], {})] if len(node.input) > 2 else []),
        ("Transpose", [], {"perm": [0, 2, 1]}),
        ("Reshape", [constant("image", [0, out, rows, columns])], {}),
    ]
    nodes, value = [], node.input[0]
    for number, (operator, others, attributes) in enumerate(steps):
        last = number == len(steps) - 1
        result = node.output[0] if last else f"{name}_{number}"
        nodes.append(helper.make_node(operator, [value, *others], [result], name=f"{name}_{number}_node", **attributes))
        value = result
    return nodes


def save(proto: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Write a graph; returns the names of its files: the weights go into a second one beyond protobuf's 2 GB."""
    large = proto.ByteSize() >= TWO_GIGABYTES
    data = path.name + ".data"
    onnx.save(proto, path, save_as_external_data=large, location=data if large else None)
    return (path.name, data) if large else (path.name,)
