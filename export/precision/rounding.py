"""A bfloat16 graph that runs where there is no bfloat16: the same values, held in float32 and rounded at each step."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper


def rounded_float32(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with every bfloat16 tensor in float32, rounded to bfloat16 after the node that makes it.

    onnxruntime has no bfloat16 kernels for CPUs. A matrix unit multiplies bfloat16, adds up in float32 and rounds the
    sum, and so does this; only the order of the additions differs.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(proto)
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
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.graph.node[:], graph.graph.value_info[:]
    graph.graph.node.extend(copies)
    return graph


def _widened(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)
