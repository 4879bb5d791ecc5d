"""Published classifiers on the image embedding of a frozen CLIP, alone or several on one tower: a panel.

Every head maps embeddings `[B, D]`, as projected and not normalised, to logits `[B, L]`; L are the card's labels. Its
parameters are named as in the published files, so that an import renames next to nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError, close_match
from zoo.models.base import Normalise, ZooModel, image_of
from zoo.models.clip import (
    INITIAL_LOGIT_SCALE,
    MAX_LOGIT_SCALE,
    ClipImageTower,
    ClipTextTower,
    PhraseEncoder,
    unit,
    vision_config,
)

#: Half of the last decimal: the safety checker rounds its scores to 3 decimals.
HALF_STEP = 0.0005
#: What a special-care hit adds to the scores that follow it.
ADJUSTMENT = 0.01


class EmbeddingClassifier(ZooModel):
    """CLIP's image tower as CLIP itself uses it, and the head that `card.hparams["head"]` names."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        kind = card.hparams["head"]
        if kind not in HEADS:
            raise BadArgumentError(f'{card.name}: no head is named "{kind}"' + close_match(str(kind), HEADS))
        self.image_tower = ClipImageTower(card)
        self.head = HEADS[kind](card)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `[B, L]` of images `[B, 3, S, S]` in [0, 1]."""
        logits: Tensor = self.head(self.image_tower(pixels).embedding)
        return logits


class Laion(nn.Sequential):
    """LAION's CLIP-based NSFW detector: the standardised unit embedding through linear layers with ReLU.

    The published probability is the sigmoid of its one logit. Source: LAION-AI/CLIP-based-NSFW-Detector, where the
    layers were carried over from AutoKeras.
    """

    def __init__(self, card: ModelCard) -> None:
        widths = [card.hparams["embedding_dim"], *card.hparams["hidden"], len(card.labels)]
        layers: OrderedDict[str, nn.Module] = OrderedDict(norm=Standardise(widths[0]))
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            if number > 1:
                layers[f"relu_{number - 1}"] = nn.ReLU()
            layers[f"linear_{number}"] = nn.Linear(before, after)
        super().__init__(layers)

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits `[B, 1]`."""
        features = unit(embedding)
        for layer in self:
            features = layer(features)
        return features


class Standardise(nn.Module):
    """(x - mean) / sqrt(variance) per feature of `[B, D]`, with statistics that were fixed when it was trained."""

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.full((width,), 1 / width))  # of unit vectors in no special direction

    def forward(self, features: Tensor) -> Tensor:
        """Standardise a batch."""
        return (features - self.mean) / self.variance.sqrt()


class SafetyChecker(nn.Module):
    """Stable Diffusion's safety checker: cosines with 17 concepts and 3 special-care concepts, a threshold each.

    A score is cosine - threshold + adjustment, and a concept is hit when its score, **rounded to 3 decimals**, is
    above 0. The adjustment is 0 and becomes 0.01 for all scores that follow, in the order special care, concepts, as
    soon as one special-care score is above 0. An image is flagged when a concept is hit.

    Rounding has no gradient, and it turns a difference of 1e-7 between two engines into 1e-3. So nothing is rounded
    here. Instead every score is lowered by 0.0005, half of the last decimal: then it is above 0 exactly where the
    rounded score is. (Upstream rounds with numpy, half to even: 0.0005 becomes 0, which is not a hit here either.)
    The adjustment is decided in the same way. `round(logit + 0.0005, 3)` is the published score, and a sigmoid above
    0.5 is a hit.

    Source: CompVis/stable-diffusion-safety-checker and Rando et al. 2022, arXiv 2210.04610, who describe it.
    """

    concept_embeds: Tensor
    concept_embeds_weights: Tensor
    special_care_embeds: Tensor
    special_care_embeds_weights: Tensor

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        width = card.hparams["embedding_dim"]
        concepts = [label for label in card.labels if label.startswith("concept_")]
        special = [label for label in card.labels if label.startswith("special_care_")]
        if (*concepts, *special) != card.labels:
            raise BadArgumentError(
                f"{card.name}: labels must be concept_... and then special_care_..., got {card.labels}"
            )
        for name, count in (("concept", len(concepts)), ("special_care", len(special))):
            self.register_buffer(f"{name}_embeds", torch.randn(count, width))
            self.register_buffer(f"{name}_embeds_weights", torch.full((count,), 0.2))  # the thresholds

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits `[B, concepts + special care]`, above 0 for a hit."""
        image = unit(embedding)
        special = image @ unit(self.special_care_embeds).T - self.special_care_embeds_weights - HALF_STEP
        concepts = image @ unit(self.concept_embeds).T - self.concept_embeds_weights - HALF_STEP
        adjustment = torch.zeros_like(image[:, :1])
        adjusted = []
        for score in special.unbind(dim=1):
            adjusted.append(score[:, None] + adjustment)
            adjustment = torch.where(adjusted[-1] > 0, torch.full_like(adjustment, ADJUSTMENT), adjustment)
        return torch.cat([concepts + adjustment, *adjusted], dim=1)


class MultiHead(nn.ModuleDict):
    """One small network per label on the embedding **as projected, not normalised**.

    Linear, ReLU, Dropout, BatchNorm, Linear each; a label holds when the sigmoid of its logit is above 0.5. Source:
    Qu et al., "Unsafe Diffusion", CCS 2023, arXiv 2305.13873.
    """

    def __init__(self, card: ModelCard) -> None:
        width, hidden = card.hparams["embedding_dim"], card.hparams["hidden"][0]
        super().__init__()
        for label in card.labels:
            self[label] = nn.Sequential(
                nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(hidden), nn.Linear(hidden, 1)
            )

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits `[B, labels]`."""
        return torch.cat([network(embedding) for network in self.values()], dim=1)


class Q16(nn.Module):
    """Two learned prompts in CLIP's space, one per label; the scores are a softmax of 100 times their cosines.

    Source: Schramowski et al., "Can Machines Help Us Answering Question 16 in Datasheets", FAccT 2022,
    arXiv 2202.06675.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        width = card.hparams["embedding_dim"]
        # Untrained prompts are made nearly equal: with the factor of 100, others would be certain of one label.
        self.prompts = nn.Parameter(torch.randn(1, width) + 0.02 * torch.randn(len(card.labels), width))

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits `[B, 2]`: appropriate, inappropriate."""
        return 100.0 * unit(embedding) @ unit(self.prompts).T


HEADS: dict[str, type[nn.Module]] = {
    "laion_nsfw": Laion,
    "safety_checker": SafetyChecker,
    "multihead": MultiHead,
    "q16": Q16,
}


class PanelTower(nn.Module):
    """CLIP's vision transformer read at one or more hidden layers: `[B, 3, S, S]` in [0, 1] to `[B, D]` for each.

    Embeddings are projected and not normalised. Layers above the deepest reading are not built.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.readings = [(int(r["layer"]), bool(r["post_layernorm"])) for r in card.hparams["readings"]]
        self.normalise = Normalise(image_of(card))
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
        embeddings = []
        for (layer, post_layernorm), projection in zip(self.readings, self.projections, strict=True):
            cls = states[layer][:, 0]
            embeddings.append(projection(tower.post_layernorm(cls) if post_layernorm else cls))
        return embeddings


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
            self.text_tower = ClipTextTower(card)
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
