"""The graphs of NSFWJS on MobileNetV2 and InceptionV3, as `zoo.models.mobilenet` and `.inception` compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.written.graph import Graph, folded
from zoo.archives.inception import Conv, pads, walk
from zoo.contract.card import ModelCard

#: What Keras adds to a variance.
_EPS = 1e-3
#: The blocks of MobileNetV2 that halve height and width; the first block has no expansion, and does not.
_HALVING = (1, 3, 6, 13)


def write_mobilenet(card: ModelCard, arrays: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The graph of these weights of `nsfwjs_mobilenet_v2`."""
    net = _MobileNet(card, arrays)
    x = net.conv(net.graph.normalised(), "conv_stem.first_conv", stride=2)
    x = net.conv(net.conv(x, "conv_stem.conv_3x3", depthwise=True), "conv_stem.reduce_1x1", clipped=False)
    for block in range(1, 17):
        x = net.block(x, f"layer.{block - 1}", 2 if block in _HALVING else 1)
    return _finish(net.graph, net.conv(x, "conv_1x1"), arrays)


class _MobileNet:
    def __init__(self, card: ModelCard, arrays: Mapping[str, NDArray[Any]]) -> None:
        assert card.image is not None  # `normalised` would have nothing to normalise
        self.graph, self.arrays, self.side = Graph(card), arrays, card.image.size

    def block(self, x: str, name: str, stride: int) -> str:
        """Expand, convolve each channel by itself, reduce; with a shortcut where nothing changes its shape."""
        wide = self.conv(x, f"{name}.expand_1x1")
        out = self.conv(
            self.conv(wide, f"{name}.conv_3x3", stride=stride, depthwise=True), f"{name}.reduce_1x1", clipped=False
        )
        before = self.arrays[f"backbone.{name}.expand_1x1.convolution.weight"].shape[1]
        after = self.arrays[f"backbone.{name}.reduce_1x1.convolution.weight"].shape[0]
        return self.graph.add("Add", x, out) if stride == 1 and before == after else out

    def conv(self, of: str, name: str, *, stride: int = 1, depthwise: bool = False, clipped: bool = True) -> str:
        """Convolution, batch norm and, where it is `clipped`, ReLU6."""
        prefix = f"backbone.{name}"
        weight, bias = folded(self.arrays, f"{prefix}.convolution", f"{prefix}.normalization", _EPS)
        group = len(weight) if depthwise else 1
        out = self.graph.conv(of, weight, bias, stride=stride, pads=self._same(weight.shape[2], stride), group=group)
        if not clipped:
            return out
        return self.graph.add("Clip", out, np.array(0, np.float32), np.array(6, np.float32))

    def _same(self, kernel: int, stride: int) -> tuple[int, ...]:
        """TensorFlow's SAME for what has `side` rows and columns: the odd pixel of padding goes below and right."""
        out = -(-self.side // stride)
        total = max((out - 1) * stride + kernel - self.side, 0)
        self.side = out
        return (total // 2, total // 2, total - total // 2, total - total // 2)


def write_inception(card: ModelCard, arrays: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The graph of these weights of `nsfwjs_inception_v3`."""
    net = _Inception(Graph(card), arrays)
    return _finish(net.graph, walk(net, net.graph.normalised()), arrays)


class _Inception:
    def __init__(self, graph: Graph, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.graph, self.arrays = graph, arrays

    def conv(self, of: str, number: int, conv: Conv) -> str:
        prefix = f"convolutions.{number}"
        weight, bias = folded(self.arrays, f"{prefix}.convolution", f"{prefix}.normalization", _EPS)
        return self.graph.add("Relu", self.graph.conv(of, weight, bias, stride=conv.stride, pads=pads(conv) * 2))

    def average(self, of: str) -> str:
        return self.graph.add("AveragePool", of, kernel_shape=(3, 3), pads=(1,) * 4, count_include_pad=0)

    def max(self, of: str) -> str:
        return self.graph.add("MaxPool", of, kernel_shape=(3, 3), strides=(2, 2))

    def together(self, parts: Sequence[str]) -> str:
        return self.graph.add("Concat", *parts, axis=1)


def _finish(graph: Graph, features: str, arrays: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The three linear layers over the mean of the features."""
    x = graph.mean(features, (2, 3))
    for place in (0, 3, 6):
        x = graph.gemm(x, arrays[f"head.{place}.weight"], arrays[f"head.{place}.bias"])
        x = graph.add("Relu", x) if place < 6 else x
    return graph.finish(x)
