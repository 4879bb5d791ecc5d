"""A panel: one CLIP image tower, read once per image, and any number of heads on its embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from zoo.contract.card import ModelCard
from zoo.inputs.resize import Normalise
from zoo.models.dual_encoder import INITIAL_LOGIT_SCALE, MAX_LOGIT_SCALE, PhraseEncoder
from zoo.models.heads import HEADS
from zoo.models.towers import ClipTextTower, clip_config, unit, vision_config


class PanelTower(nn.Module):
    """CLIP's vision transformer read at one or more hidden layers: `[B, 3, S, S]` in [0, 1] to `[B, D]` for each.

    Embeddings are projected and not normalised. Layers that nobody reads are not built.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        assert card.image is not None  # panel_card() gave it the heads' image input
        self.readings = [(int(r["layer"]), bool(r["post_layernorm"])) for r in card.hparams["readings"]]
        self.normalise = Normalise(card.image)
        self.vision_model = CLIPVisionModel(vision_config(card))
        deepest = max(layer for layer, _ in self.readings)
        self.vision_model.encoder.layers = self.vision_model.encoder.layers[:deepest]
        width, dim = card.hparams["vision_width"], card.hparams["embedding_dim"]
        self.projections = nn.ModuleList([nn.Linear(width, dim, bias=False) for _ in self.readings])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The embeddings `[B, D]` of every reading, from one pass."""
        tower = self.vision_model
        states = [tower.pre_layrnorm(tower.embeddings(self.normalise(pixels)))]
        for layer in tower.encoder.layers:
            states.append(layer(states[-1], None))
        found = []
        for (layer, post_layernorm), projection in zip(self.readings, self.projections, strict=True):
            cls = states[layer][:, 0]
            found.append(projection(tower.post_layernorm(cls) if post_layernorm else cls))
        return found


class ZeroShotHead(nn.Module):
    """Embeddings `[B, D]` against a bank of phrase embeddings `[P, D]`: logits `[B, P]`, as `DualEncoder.forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def forward(self, embedding: Tensor, text_bank: Tensor) -> Tensor:
        """Compare with a bank, unit norm over temperature."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp() * unit(embedding) @ text_bank.transpose(0, 1)


class Panel(PhraseEncoder):
    """The heads of `card.heads` on one tower. Logits `[B, N]` are those of all heads in turn."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.image_tower = PanelTower(card)
        if card.bank_names:
            self.text_tower = ClipTextTower(clip_config(card))
        cards = card.heads.values()
        self.heads = nn.ModuleList([_head(head) for head in cards])
        self.scores = [head.score for head in cards]
        self.reading_of = [int(entry["reading"]) for entry in card.hparams["heads"]]

    def forward(self, pixels: Tensor, *text_banks: Tensor) -> Tensor:
        """Logits `[B, N]` of images `[B, 3, S, S]` in [0, 1] with one bank `[P, D]` for each zero-shot head."""
        return torch.cat(self.by_head(pixels, *text_banks), dim=1)

    def answer(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and scores `[B, N]`, each head with its own score function."""
        logits = [part.float() for part in self.by_head(*inputs)]
        scores = [
            part.softmax(dim=-1) if score == "softmax" else part.sigmoid()
            for part, score in zip(logits, self.scores, strict=True)
        ]
        return torch.cat(logits, dim=1), torch.cat(scores, dim=1)

    def by_head(self, pixels: Tensor, *text_banks: Tensor) -> list[Tensor]:
        """The logits of each head."""
        embeddings = self.image_tower(pixels)
        banks = iter(text_banks)
        return [
            head(embeddings[reading], next(banks)) if isinstance(head, ZeroShotHead) else head(embeddings[reading])
            for head, reading in zip(self.heads, self.reading_of, strict=True)
        ]


def _head(card: ModelCard) -> nn.Module:
    return ZeroShotHead() if card.task == "zero_shot" else HEADS[card.hparams["head"]](card)
