"""OpenNSFW in torch; see `zoo.archives.opennsfw` for its layers and where its weights are from."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from zoo.archives.opennsfw import Block, blocks
from zoo.contract.card import ModelCard
from zoo.models.base import Normalise, ZooModel, image_of


class Bottleneck(nn.Module):
    """`[B, channels, H, W]` to `[B, 4 * width, H / stride, W / stride]`."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        wide, thin = 4 * block.width, block.width
        self.projection = nn.Conv2d(block.channels, wide, 1, block.stride) if block.projects else None
        self.reduce = nn.Conv2d(block.channels, thin, 1, block.stride)
        self.convolve = nn.Conv2d(thin, thin, 3, padding=1)
        self.expand = nn.Conv2d(thin, wide, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The features of a batch."""
        shortcut = x if self.projection is None else self.projection(x)
        return (shortcut + self.expand(self.convolve(self.reduce(x).relu()).relu())).relu()  # type: ignore[no-any-return]


class OpenNsfw(ZooModel):
    """`[B, 3, 224, 224]` in [0, 1] to logits `[B, 2]`, in the order of the card's labels.

    `stem` is the width of the first convolution, `stages` the width and the number of blocks of each stage. Batch norms
    are folded into the convolutions, as they were published.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.normalise = Normalise(image_of(card))
        self.stem = nn.Conv2d(3, card.hparams["stem"], 7, 2, padding=3)
        self.blocks = nn.Sequential(*map(Bottleneck, blocks(card)))
        self.head = nn.Linear(4 * card.hparams["stages"][-1][0], len(card.labels))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of a batch."""
        x = self.stem(self.normalise(pixels)).relu()
        x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1)), 3, 2)  # right and below; nothing is below 0
        logits: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return logits
