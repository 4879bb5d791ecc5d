"""The graph of OpenNSFW, as `zoo.models.opennsfw` computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from numpy.typing import NDArray

from export.written.graph import Graph
from zoo.archives.opennsfw import blocks
from zoo.contract.card import ModelCard


def write(card: ModelCard, arrays: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The graph of these weights."""
    graph = Graph(card)

    def conv(of: str, name: str, **options: Any) -> str:
        return graph.conv(of, arrays[f"{name}.weight"], arrays[f"{name}.bias"], **options)

    x = graph.add("Relu", conv(graph.normalised(), "stem", stride=2, pads=(3,) * 4))
    x = graph.add("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=(0, 0, 1, 1))
    for place, block in enumerate(blocks(card)):
        name = f"blocks.{place}"
        shortcut = conv(x, f"{name}.projection", stride=block.stride) if block.projects else x
        thin = graph.add("Relu", conv(x, f"{name}.reduce", stride=block.stride))
        thin = graph.add("Relu", conv(thin, f"{name}.convolve", pads=(1,) * 4))
        x = graph.add("Relu", graph.add("Add", conv(thin, f"{name}.expand"), shortcut))
    return graph.finish(graph.gemm(graph.mean(x, (2, 3)), arrays["head.weight"], arrays["head.bias"]))
