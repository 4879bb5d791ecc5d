"""The multimodal NSFW classifier (Muneer & Woo, WWW Companion 2025, arXiv 2504.11707), as released and as meant."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.contract.card import ModelCard
from zoo.models.base import ZooModel
from zoo.models.clip import ClipImageTower, ClipTextTower
from zoo.models.conv_clip import BertTextTower, ConvImageTower, mobilenet_tower


def _head(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """The released classifier: two blocks of Linear, BatchNorm, Dropout, tanh-GELU, then Dropout and Linear."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.BatchNorm1d(hidden),
        nn.Dropout(0.5),
        nn.GELU(approximate="tanh"),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.Dropout(0.5),
        nn.GELU(approximate="tanh"),
        nn.Dropout(0.2),
        nn.Linear(hidden, outputs),
    )


ImageTower = ClipImageTower | ConvImageTower
TextTower = ClipTextTower | BertTextTower


class AsReleased(ZooModel):
    """The released model, faithfully: query = text, key = value = image, each a sequence of length one.

    With one key the attention weight is 1 for every query, so **the prompt changes nothing**. Kept for
    comparison; use `Fusion`. Embeddings are projected and not normalised.
    """

    def __init__(self, card: ModelCard, image_tower: ImageTower, text_tower: TextTower) -> None:
        super().__init__(card)
        self.image_tower, self.text_tower = image_tower, text_tower
        width = card.hparams["embedding_dim"]
        self.image_projection = nn.Linear(width, width)
        self.text_projection = nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, card.hparams["heads"], batch_first=True)
        self.classifier = _head(2 * width, width, len(card.labels))

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[B, L]` of images `[B, 3, S, S]` in [0, 1] with prompts `[B, T]`; both are required."""
        image = self.image_projection(self.image_tower(pixels).embedding)
        text = self.text_projection(self.text_tower(input_ids, attention_mask).embedding)
        query, key = text[:, None], image[:, None]
        attended, _ = self.attention(query, key, key, need_weights=False)
        logits: Tensor = self.classifier(torch.cat([image, attended[:, 0]], dim=1))
        return logits


class Fusion(ZooModel):
    """The working model: attention over patch and token sequences in both directions, pooled with a gate.

    Either input may be missing: `image_present` `[B]` bool says so for the image, an all-zero `attention_mask`
    row for the prompt. A learned embedding stands in for the missing input, whose content is ignored.
    """

    def __init__(self, card: ModelCard, image_tower: ImageTower, text_tower: TextTower) -> None:
        super().__init__(card)
        self.image_tower, self.text_tower = image_tower, text_tower
        width, heads = card.hparams["embedding_dim"], card.hparams["heads"]
        self.image_projection = nn.Linear(image_tower.width, width)
        self.text_projection = nn.Linear(text_tower.width, width)
        self.image_norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.image_missing = nn.Parameter(torch.randn(width) * 0.02)
        self.text_missing = nn.Parameter(torch.randn(width) * 0.02)
        self.text_to_image = nn.MultiheadAttention(width, heads, batch_first=True)
        self.image_to_text = nn.MultiheadAttention(width, heads, batch_first=True)
        self.gate = nn.Linear(2 * width, 2 * width)
        self.classifier = _head(2 * width, width, len(card.labels))

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor, image_present: Tensor) -> Tensor:
        """Logits `[B, L]`; `pixels` `[B, 3, S, S]` in [0, 1] count only where `image_present` is true."""
        patches = self.image_norm(self.image_projection(self.image_tower(pixels).sequence))
        readable = _never_empty(attention_mask)
        words = self.text_norm(self.text_projection(self.text_tower(input_ids, readable).sequence))
        image, image_mask = _with_stand_in(patches, self.image_missing, image_present[:, None] & _ones(patches))
        text, text_mask = _with_stand_in(words, self.text_missing, attention_mask > 0)
        seen, _ = self.text_to_image(text, image, image, key_padding_mask=~image_mask, need_weights=False)
        read, _ = self.image_to_text(image, text, text, key_padding_mask=~text_mask, need_weights=False)
        joint = torch.cat([_mean(image + read, image_mask), _mean(text + seen, text_mask)], dim=1)
        logits: Tensor = self.classifier(joint * torch.sigmoid(self.gate(joint)))
        return logits


def build_fusion(card: ModelCard) -> Fusion:
    """`multimodal_nsfw_*.fusion` with the sizes of `card.hparams`; it reads the towers' sequences."""
    return Fusion(card, *_towers(card, project=False))


def build_as_released(card: ModelCard) -> AsReleased:
    """`multimodal_nsfw_*.as_released` with the sizes of `card.hparams`; it reads the towers' embeddings."""
    return AsReleased(card, *_towers(card, project=True))


def _towers(card: ModelCard, *, project: bool) -> tuple[ImageTower, TextTower]:
    """A MobileNetV1 and a BERT where the card has their sizes, else those of a CLIP, which always project."""
    if "depth_multiplier" in card.hparams:
        return mobilenet_tower(card, project=project), BertTextTower(card, project=project)
    return ClipImageTower(card), ClipTextTower(card)


def _never_empty(mask: Tensor) -> Tensor:
    """The mask with the first token switched on in empty rows: attention over no token is NaN in some kernels.

    The output of the tower for that token is ignored.
    """
    empty = ~(mask > 0).any(dim=1, keepdim=True)
    return torch.cat([mask[:, :1] + empty.to(mask.dtype), mask[:, 1:]], dim=1)


def _ones(sequence: Tensor) -> Tensor:
    return torch.ones(sequence.shape[:2], dtype=torch.bool, device=sequence.device)


def _with_stand_in(sequence: Tensor, stand_in: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Prepend the stand-in, `[B, T, W]` to `[B, T + 1, W]`; the mask keeps it exactly where all else is missing."""
    token = stand_in.to(sequence.dtype).expand(sequence.shape[0], 1, -1)
    missing = ~mask.any(dim=1, keepdim=True)
    return torch.cat([token, sequence], dim=1), torch.cat([missing, mask], dim=1)


def _mean(sequence: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(sequence.dtype)[:, :, None]
    return (sequence * weights).sum(dim=1) / weights.sum(dim=1)
