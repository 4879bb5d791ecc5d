"""EfficientNet-Lite in torch; see `zoo.archives.efficientnet` for its blocks and where its weights are from."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.archives.efficientnet import EPS, InvertedBlock, blocks, same
from zoo.contract.card import ModelCard
from zoo.models.base import Normalise, ZooModel, image_of


class Convolution(nn.Module):
    """A convolution with TensorFlow's padding, its batch norm and, where it is `clipped`, ReLU6."""

    def __init__(
        self, channels: int, width: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, clipped: bool = True
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.clipped = kernel, stride, clipped
        # Without a stride both sides are padded alike, which the convolution does in half the time of another pass.
        padding = kernel // 2 if stride == 1 else 0
        self.convolution = nn.Conv2d(channels, width, kernel, stride, padding, groups=groups, bias=False)
        nn.init.kaiming_normal_(self.convolution.weight)  # untrained, pictures are still told apart
        self.normalization: nn.Module = nn.BatchNorm2d(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """The features of a batch."""
        if self.stride > 1:
            height, width = x.shape[2:]
            x = F.pad(x, (*same(width, self.kernel, self.stride), *same(height, self.kernel, self.stride)))
        out: Tensor = self.normalization(self.convolution(x))
        return F.relu6(out) if self.clipped else out


class InvertedBottleneck(nn.Module):
    """`[B, channels, H, W]` to `[B, width, H / stride, W / stride]`."""

    def __init__(self, block: InvertedBlock) -> None:
        super().__init__()
        wide = block.channels * block.expansion
        self.expand = Convolution(block.channels, wide) if block.expansion > 1 else None
        self.depthwise = Convolution(wide, wide, block.kernel, block.stride, groups=wide)
        self.project = Convolution(wide, block.width, clipped=False)
        self.shortcut = block.shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The features of a batch."""
        out: Tensor = self.project(self.depthwise(x if self.expand is None else self.expand(x)))
        return x + out if self.shortcut else out


class Pooled(NamedTuple):
    """The last feature map `[B, W, h, w]` and its mean `[B, W]`, named as transformers names them."""

    last_hidden_state: Tensor
    pooler_output: Tensor


class EfficientNetLite(nn.Module):
    """`[B, 3, S, S]` normalised pixels to `Pooled`, by `stem`, `stages` and `features` of `card.hparams`."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        parts = blocks(card)
        self.width: int = card.hparams["features"]
        self.stem = Convolution(3, card.hparams["stem"], 3, 2)
        self.blocks = nn.Sequential(*map(InvertedBottleneck, parts))
        self.head = Convolution(parts[-1].width, self.width)

    def forward(self, pixels: Tensor) -> Pooled:
        """The features of a batch."""
        last = self.head(self.blocks(self.stem(pixels)))
        return Pooled(last, last.mean((2, 3)))


class ImageNetClassifier(ZooModel):
    """`[B, 3, S, S]` in [0, 1] to logits `[B, N]`, in the order of the card's labels."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.normalise = Normalise(image_of(card))
        self.backbone = EfficientNetLite(card)
        self.classifier = nn.Linear(self.backbone.width, len(card.labels))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of a batch."""
        normal = self.normalise(pixels).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.classifier(self.backbone(normal).pooler_output)
        return logits
