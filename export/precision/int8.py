"""An fp32 graph to 8 bits: scales of each row for CPUs, fixed ones from calibration for GPUs and OpenVINO."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from export.onnx.graph import errors_only
from export.precision.nodes import graphs, noted, save
from zoo.judging.scorer import Feeds
from zoo.models.heads import SafetyChecker


def quantise_rows(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Weights in int8 with a scale per column, activations in uint8 with a scale per row, found as they come.

    A row is one token or one embedding: with one scale for all rows, as in onnxruntime's dynamic quantisation, an item
    would be judged differently beside other items. Linear layers only: a convolution in 8 bits is slower than in
    float32 on CPUs. The resize, the attention's own products and the similarity with the phrases stay float32, as
    neither of their operands is a weight.
    """
    proto = copy.deepcopy(proto)
    graph = proto.graph
    weights = {weight.name: weight for weight in graph.initializer}
    kept = set(_stay_float32(proto))
    known: set[str] = set()
    rows: dict[str, tuple[str, str]] = {}
    constants = {"one": np.float32(1), "zero_point": np.uint8(128), "last_axis": np.array([-1])}
    constants |= {"least_size": np.float32(1e-30), "largest_code": np.float32(127)}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), f"int8_{k}") for k, v in constants.items())
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = given.get("alpha", 1) == given.get("beta", 1) == 1 and not given.get("transA")
        fits = plain and node.op_type in ("MatMul", "Gemm") and node.name not in kept
        if not fits or len(weights[node.input[1]].dims) != 2:
            nodes.append(node)
            continue
        value, weight = node.input[:2]
        name = f"{weight}_transposed" if given.get("transB") else weight
        if name not in known:
            matrix = numpy_helper.to_array(weights[weight])
            _add_columns(graph, name, matrix.T if given.get("transB") else matrix)
            known.add(name)
        if value not in rows:
            made, rows[value] = _rows(value)
            nodes += made
        codes, scale = rows[value]
        nodes += _product(node, codes, scale, name)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for each in graphs(graph) for node in each.node for name in node.input}
    needed = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(needed)
    proto.opset_import.append(helper.make_opsetid(_ORT, 1))
    return proto


#: The domain of onnxruntime's own operators.
_ORT = "com.microsoft"


def _add_columns(graph: onnx.GraphProto, name: str, weight: NDArray[np.float32]) -> None:
    """Add a weight `[K, N]` in int8 and its N scales; the names of both begin with `name`.

    An x86 without VNNI sums the products of two neighbouring rows in 16 bits, and clamps the sum. So the codes of two
    such rows sum to at most 128, which 255 times over still fits: every processor has the same answer.
    """
    pairs = np.pad(weight, ((0, len(weight) % 2), (0, 0))).reshape(-1, 2, weight.shape[1])
    sums = [np.maximum(sign * pairs, 0).sum(axis=1).max(axis=0) for sign in (1, -1)]  # of two of one sign
    largest = np.max([np.abs(weight).max(axis=0), *sums], axis=0)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.ascontiguousarray((weight / scales).round().clip(-127, 127).astype(np.int8))
    graph.initializer.append(numpy_helper.from_array(codes, f"{name}_int8"))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scales"))


def _rows(value: str) -> tuple[list[onnx.NodeProto], tuple[str, str]]:
    """The nodes that turn `[..., K]` into codes of uint8, and the names of the codes and of the scales `[..., 1]`.

    Never int8: for signed activations onnxruntime has no fast product on AMD processors.
    """

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [f"{value}_{output}"], name=f"{value}_{output}_node", **attributes)

    steps = [
        node("ReduceMax", [value, "int8_last_axis"], "high", keepdims=1),
        node("ReduceMin", [value, "int8_last_axis"], "low", keepdims=1),
        node("Neg", [f"{value}_low"], "minus"),
        node("Max", [f"{value}_high", f"{value}_minus", "int8_least_size"], "size"),  # a row of zeros has no size
        node("Div", [f"{value}_size", "int8_largest_code"], "scale"),
        node("Div", [value, f"{value}_scale"], "scaled"),
        node("QuantizeLinear", [f"{value}_scaled", "int8_one", "int8_zero_point"], "codes"),
    ]
    return steps, (f"{value}_codes", f"{value}_scale")


def _product(node: onnx.NodeProto, codes: str, scale: str, weight: str) -> list[onnx.NodeProto]:
    """The nodes in place of a MatMul or Gemm: the product in 8 bits, the scales of its rows, and its bias if any."""
    exact, result = f"{node.output[0]}_by_scale", node.output[0]
    bias = list(node.input[2:3])
    summed = f"{result}_without_bias" if bias else result
    inputs = [codes, f"{weight}_int8", "int8_one", f"{weight}_scales", "int8_zero_point"]
    nodes = [
        helper.make_node("MatMulIntegerToFloat", inputs, [exact], name=f"{node.name}_int8", domain=_ORT),
        helper.make_node("Mul", [exact, scale], [summed], name=f"{node.name}_rescaled"),
    ]
    return nodes + [helper.make_node("Add", [summed, name], [result], name=f"{node.name}_biased") for name in bias]


def quantise_static(proto: onnx.ModelProto, batches: list[Feeds], *, symmetric: bool = True) -> onnx.ModelProto:
    """Weights and activations in int8 between `QuantizeLinear` and `DequantizeLinear`, scales from `batches` of feeds.

    Symmetric throughout and with float32 biases, which is what TensorRT takes; otherwise activations are uint8 with a
    zero point of their own, which spends no codes on values that never come.
    """
    plain = copy.deepcopy(proto)
    del plain.graph.value_info[:]  # the exporter's shapes, on which the quantizer fails
    with tempfile.TemporaryDirectory(prefix="safety-zoo-") as folder, errors_only():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        save(plain, source)
        # It asks, at each call, for a preprocessing that these graphs need not.
        quantize_static(
            source,
            target,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_stay_float32(proto),
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "MatMulConstBOnly": True,
            },
        )
        return onnx.load(target)


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The feeds that onnxruntime asks for one by one."""

    def __init__(self, batches: list[Feeds]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Feeds | None:
        return next(self.batches, None)


#: A module whose scores lie so near to each other that 8 bits would decide: steps of 0.01 between cosines.
_EXACT = f"{SafetyChecker.__module__}.{SafetyChecker.__qualname__}"


def _stay_float32(proto: onnx.ModelProto) -> list[str]:
    """The names of the products of `_EXACT`, and of those without a weight: a text bank with a default is an input."""
    inputs = {value.name for value in proto.graph.input}
    weights = {weight.name for weight in proto.graph.initializer} - inputs
    return [
        node.name
        for node in proto.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv")
        and (node.input[1] not in weights or _EXACT in noted(node, "class_hierarchy"))
    ]
