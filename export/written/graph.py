"""A graph that is written node by node: what `export.onnx.graph` traces from a module, without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.bundle.manifest import OPSET, TensorSpec, contract
from zoo.contract.card import ModelCard

_TYPES = {
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "float32": TensorProto.FLOAT,
}


def written_contract(card: ModelCard) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of a written graph: those of `contract`, but images have the model's own size."""
    inputs, outputs = contract(card)
    if card.image is not None:
        sides = {"height": card.image.size, "width": card.image.size}
        inputs = tuple(
            dataclasses.replace(one, shape=tuple(sides.get(str(side), side) for side in one.shape)) for one in inputs
        )
    return inputs, outputs


class Graph:
    """The graph of a card's model, from its inputs (named as in `card.input_names`) to logits and scores.

    >>> graph = Graph(card)
    >>> logits = graph.gemm(graph.mean(graph.image(), (2, 3)), weight, bias)
    >>> proto = graph.finish(logits)
    """

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self.inputs, self.outputs = written_contract(card)
        self._nodes: list[onnx.NodeProto] = []
        self._arrays: list[TensorProto] = []

    def array(self, value: NDArray[Any]) -> str:
        """The name of a constant."""
        name = f"array_{len(self._arrays)}"
        self._arrays.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, op: str, *inputs: str | NDArray[Any], **attributes: Any) -> str:
        """Add a node with one output, and return the name of that. Inputs are names, or arrays, which become constants.

        An empty name stands for an optional input that is left out.
        """
        names = [one if isinstance(one, str) else self.array(one) for one in inputs]
        output = f"{op.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, names, [output], name=output, **attributes))
        return output

    def image(self) -> str:
        """The image `[B, 3, size, size]` float32 RGB in [0, 1]."""
        channels_first = self.add("Transpose", self.add("Cast", "image", to=TensorProto.FLOAT), perm=(0, 3, 1, 2))
        return self.add("Div", channels_first, np.array(255.0, dtype=np.float32))

    def normalised(self) -> str:
        """The image as the card's mean and standard deviations normalise it."""
        spec, pixels = self.card.image, self.image()
        assert spec is not None  # `image` would be no input of the graph
        mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (spec.mean, spec.std))
        if mean.any():
            pixels = self.add("Sub", pixels, mean)
        return pixels if (std == 1).all() else self.add("Div", pixels, std)

    def conv(
        self,
        of: str,
        weight: NDArray[Any],
        bias: NDArray[Any],
        *,
        stride: int = 1,
        pads: tuple[int, ...] = (0,) * 4,
        group: int = 1,
    ) -> str:
        """A convolution with a weight `[out, in / group, h, w]`; `pads` are top, left, bottom, right."""
        return self.add("Conv", of, weight, bias, strides=(stride, stride), pads=pads, group=group)

    def gemm(self, of: str, weight: NDArray[Any], bias: NDArray[Any]) -> str:
        """A linear layer on `[B, in]`, with torch's weight `[out, in]`."""
        return self.add("Gemm", of, weight, bias, transB=1)

    def mean(self, of: str, axes: tuple[int, ...]) -> str:
        """The mean over some axes, which are then gone."""
        return self.add("ReduceMean", of, np.array(axes, dtype=np.int64), keepdims=0)

    def finish(self, logits: str) -> onnx.ModelProto:
        """The checked graph, with the scores that the card makes of `[B, N]` logits."""
        self._nodes.append(helper.make_node("Identity", [logits], ["logits"]))
        function = {"softmax": "Softmax", "sigmoid": "Sigmoid"}[self.card.score]  # both over the last axis
        self._nodes.append(helper.make_node(function, ["logits"], ["scores"]))
        graph = helper.make_graph(
            self._nodes,
            self.card.name,
            [_value(one) for one in self.inputs],
            [_value(one) for one in self.outputs],
            self._arrays,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="safety-zoo")
        proto.ir_version = 10  # the one of opset 20 to 22; the package would write its own newest
        onnx.checker.check_model(proto, full_check=True)
        return proto


def folded(arrays: Mapping[str, NDArray[Any]], conv: str, norm: str, eps: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """The weight and bias of a convolution without bias (prefix `conv`) and the BatchNorm (prefix `norm`) behind it."""
    weight = arrays[f"{conv}.weight"].astype(np.float64)
    scale = 1 / np.sqrt(arrays[f"{norm}.running_var"].astype(np.float64) + eps)
    if f"{norm}.weight" in arrays:
        scale = scale * arrays[f"{norm}.weight"]
    bias = arrays[f"{norm}.bias"] - arrays[f"{norm}.running_mean"] * scale
    return (weight * scale[:, None, None, None]).astype(np.float32), bias.astype(np.float32)


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], spec.shape)
