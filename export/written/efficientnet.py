"""The graph of EfficientNet-Lite, as `zoo.models.efficientnet` computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.written.graph import Graph, folded
from zoo.archives.efficientnet import EPS, blocks, same
from zoo.contract.card import ModelCard


def write(card: ModelCard, arrays: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The graph of these weights."""
    graph = Graph(card)
    x = graph.normalised()
    assert card.image is not None  # `normalised` would have nothing to normalise
    side = card.image.size

    def conv(of: str, name: str, *, stride: int = 1, depthwise: bool = False, clipped: bool = True) -> str:
        prefix = f"backbone.{name}"
        weight, bias = folded(arrays, f"{prefix}.convolution", f"{prefix}.normalization", EPS)
        before, after = same(side, weight.shape[2], stride)
        group = len(weight) if depthwise else 1
        out = graph.conv(of, weight, bias, stride=stride, pads=(before, before, after, after), group=group)
        return graph.add("Clip", out, np.array(0, np.float32), np.array(6, np.float32)) if clipped else out

    x, side = conv(x, "stem", stride=2), -(-side // 2)
    for place, block in enumerate(blocks(card)):
        name = f"blocks.{place}"
        wide = conv(x, f"{name}.expand") if block.expansion > 1 else x
        wide = conv(wide, f"{name}.depthwise", stride=block.stride, depthwise=True)
        side = -(-side // block.stride)
        out = conv(wide, f"{name}.project", clipped=False)
        x = graph.add("Add", x, out) if block.shortcut else out
    features = graph.mean(conv(x, "head"), (2, 3))
    return graph.finish(graph.gemm(features, arrays["classifier.weight"], arrays["classifier.bias"]))
