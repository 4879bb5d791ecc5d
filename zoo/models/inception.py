"""NSFWJS on InceptionV3, as Keras built it; see `zoo.archives.inception` for its blocks.

Sources: infinitered/nsfwjs (MIT), the model trained by GantMan, published for TensorFlow.js.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.archives.inception import Conv, pads, walk
from zoo.contract.card import ModelCard
from zoo.models.base import Normalise, ZooModel, image_of
from zoo.models.mobilenet import draw_weights, nsfwjs_head


class ConvNorm(nn.Module):
    """A convolution without bias, batch norm and ReLU."""

    def __init__(self, channels: int, out: int, conv: Conv) -> None:
        super().__init__()
        kernel = (conv.rows, conv.columns)
        self.convolution = nn.Conv2d(channels, out, kernel, conv.stride, pads(conv), bias=False)
        self.normalization = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """The features of a batch."""
        return self.normalization(self.convolution(x)).relu()  # type: ignore[no-any-return]


class _Sizes:
    """Walks the blocks to build their convolutions; what walks is the number of channels."""

    def __init__(self, width: float) -> None:
        self.width, self.found = width, list[ConvNorm]()

    def conv(self, of: int, number: int, conv: Conv) -> int:
        out = max(1, round(self.width * conv.channels))
        self.found.append(ConvNorm(of, out, conv))
        return out

    def average(self, of: int) -> int:
        return of

    def max(self, of: int) -> int:
        return of

    def together(self, parts: Sequence[int]) -> int:
        return sum(parts)


class NsfwjsInception(ZooModel):
    """`[B, 3, 299, 299]` in [0, 1] to logits `[B, 5]`, in the order of the card's labels.

    `width` scales every channel count of the InceptionV3 (1 is the published one). Keras pools 8 by 8 at the end: all
    that 299 px leave, of which the mean is taken here.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.normalise = Normalise(image_of(card))
        sizes = _Sizes(card.hparams["width"])
        features = walk(sizes, 3)
        self.convolutions = nn.ModuleList(sizes.found)
        draw_weights(self.convolutions)
        self.head = nsfwjs_head(card, features)

    def conv(self, of: Tensor, number: int, conv: Conv) -> Tensor:
        """Convolution, batch norm and ReLU."""
        return self.convolutions[number](of)  # type: ignore[no-any-return]

    def average(self, of: Tensor) -> Tensor:
        """The average over what is there of 3 by 3."""
        return functional.avg_pool2d(of, 3, 1, 1, count_include_pad=False)

    def max(self, of: Tensor) -> Tensor:
        """The greatest of 3 by 3, every second one."""
        return functional.max_pool2d(of, 3, 2)

    def together(self, parts: Sequence[Tensor]) -> Tensor:
        """The channels of all parts side by side."""
        return torch.cat(list(parts), dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of a batch."""
        logits: Tensor = self.head(walk(self, self.normalise(pixels)).mean((2, 3)))
        return logits
