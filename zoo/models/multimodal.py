"""The multimodal NSFW classifier (Muneer & Woo, WWW Companion 2025, arXiv 2504.11707), as released and as meant."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.card import ModelCard
from zoo.models.base import ZooModel
from zoo.models.towers import ClipImageTower, ClipTextTower, clip_config


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


class MultimodalNsfw(ZooModel):
    """CLIP towers and a head that judges image and prompt together; logits `[B, len(card.labels)]`."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        config = clip_config(card)
        self.image_tower = ClipImageTower(card, config, layer=-1, post_layernorm=True)
        self.text_tower = ClipTextTower(config)


class AsReleased(MultimodalNsfw):
    """The released model, faithfully: query = text, key = value = image, each a sequence of length one.

    With one key the attention weight is 1 whatever the query, so **the prompt changes nothing**. Kept for
    comparison; use `Fusion`. Embeddings are projected and not normalised.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        width = card.hparams["embedding_dim"]
        self.image_projection = nn.Linear(width, width)
        self.text_projection = nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, card.hparams["heads"], batch_first=True)
        self.classifier = _head(2 * width, width, len(card.labels))

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[B, L]` of images `[B, 3, S, S]` in [0, 1] with prompts `[B, T]`; both must be there."""
        image = self.image_projection(self.image_tower(pixels).embedding)
        text = self.text_projection(self.text_tower(input_ids, attention_mask).embedding)
        query, key = text[:, None], image[:, None]
        attended, _ = self.attention(query, key, key, need_weights=False)
        logits: Tensor = self.classifier(torch.cat([image, attended[:, 0]], dim=1))
        return logits


class Fusion(MultimodalNsfw):
    """The working model: attention over patch and token sequences in both directions, pooled with a gate.

    Either input may be missing: `image_present` `[B]` bool says so for the image, an all-zero `attention_mask`
    row for the prompt. A learned embedding stands in for what is missing, and nothing of it is looked at.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        width, heads = card.hparams["embedding_dim"], card.hparams["heads"]
        self.image_projection = nn.Linear(card.hparams["vision_width"], width)
        self.text_projection = nn.Linear(card.hparams["text_width"], width)
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
        words = self.text_norm(self.text_projection(self.text_tower(input_ids, attention_mask).sequence))
        image, image_mask = _with_stand_in(patches, self.image_missing, image_present[:, None] & _ones(patches))
        text, text_mask = _with_stand_in(words, self.text_missing, attention_mask > 0)
        seen, _ = self.text_to_image(text, image, image, key_padding_mask=~image_mask, need_weights=False)
        read, _ = self.image_to_text(image, text, text, key_padding_mask=~text_mask, need_weights=False)
        joint = torch.cat([_mean(image + read, image_mask), _mean(text + seen, text_mask)], dim=1)
        logits: Tensor = self.classifier(joint * torch.sigmoid(self.gate(joint)))
        return logits


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
