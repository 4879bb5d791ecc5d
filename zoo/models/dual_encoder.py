"""Zero-shot models: an image tower and a text tower that share an embedding space, and a bank of phrases.

SafeCLIP (Zhao et al., EMNLP Findings 2025, arXiv 2503.00037) is the case of a CLIP vision transformer whose CLS
token is read at layer -2 without the final LayerNorm. Not to be mistaken for SafeCLIP (poisoning-safe
pre-training, ICML 2024) or Safe-CLIP (NSFW unlearning, ECCV 2024).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.contract.card import ModelCard
from zoo.models.base import ZooModel
from zoo.models.towers import ClipImageTower, ClipTextTower, clip_config, unit

#: What CLIP's temperature starts from in training, as a logit scale (Radford et al. 2021, section 2.5).
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
#: exp(logit_scale) is kept at or below 100, as CLIP does (Radford et al. 2021, section 2.5).
MAX_LOGIT_SCALE = math.log(100.0)


class PhraseEncoder(ZooModel):
    """A model that embeds the phrases of policies with its `text_tower` (`ids, mask -> Encoded`)."""

    text_tower: nn.Module

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask `[B, T]` to unit embeddings `[B, D]`."""
        return unit(self.text_tower(input_ids, attention_mask).embedding)

    @torch.no_grad()
    def embed_phrases(self, phrases: tuple[str, ...]) -> Tensor:
        """The text bank `[P, D]` of these phrases, unit norm, on the model's device."""
        tokens = self.codec().encode(phrases)
        device = next(self.text_tower.parameters()).device
        return self.encode_text(torch.from_numpy(tokens.ids).to(device), torch.from_numpy(tokens.mask).to(device))


class DualEncoder(PhraseEncoder):
    """Image tower (`pixels -> Encoded`) and text tower (`ids, mask -> Encoded`) with a learned temperature."""

    def __init__(self, card: ModelCard, image_tower: nn.Module, text_tower: nn.Module) -> None:
        super().__init__(card)
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """`[B, 3, S, S]` in [0, 1] to unit embeddings `[B, D]`."""
        return unit(self.image_tower(pixels).embedding)

    def forward(self, pixels: Tensor, text_bank: Tensor) -> Tensor:
        """Logits `[B, P]` of images against a bank of phrase embeddings `[P, D]`, unit norm over temperature."""
        return self.scale() * self.encode_image(pixels) @ text_bank.transpose(0, 1)

    def scale(self) -> Tensor:
        """The factor that cosines are multiplied by before the softmax: exp(logit_scale), at most 100."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()


def build_safeclip(card: ModelCard) -> DualEncoder:
    """The SafeCLIP head on a CLIP with the sizes of `card.hparams`; `layer` and `post_layernorm` among them."""
    config = clip_config(card)
    image = ClipImageTower(card, config, card.hparams["layer"], card.hparams["post_layernorm"])
    return DualEncoder(card, image, ClipTextTower(config))
