"""CLIP's towers from transformers, and the zero-shot models that compare images with a bank of phrases.

SafeCLIP (Zhao et al., EMNLP Findings 2025, arXiv 2503.00037) is the case of a CLIP vision transformer whose CLS
token is read at layer -2 without the final LayerNorm. Not to be mistaken for SafeCLIP (poisoning-safe
pre-training, ICML 2024) or Safe-CLIP (NSFW unlearning, ECCV 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from zoo.contract.card import QUICK_GELU, ModelCard
from zoo.errors import BadArgumentError, BadDataError
from zoo.judging.judge import LARGEST_SCALE
from zoo.models.base import Normalise, ZooModel, image_of, token_tensors


class Encoded(NamedTuple):
    """`embedding [B, D]`, projected and not normalised; `sequence [B, T, W]`, the tower's last hidden states.

    `W` is the tower's `width`.
    """

    embedding: Tensor
    sequence: Tensor


class ClipImageTower(nn.Module):
    """CLIP's vision transformer with its projection: `[B, 3, S, S]` in [0, 1] to `Encoded`.

    `layer` is the hidden state whose CLS token is projected (-1 the last, -2 what LLaVA's projector reads);
    later layers are not built. `post_layernorm` applies CLIP's final LayerNorm before the projection. The defaults are
    how CLIP itself reads it.
    """

    def __init__(self, card: ModelCard, layer: int = -1, post_layernorm: bool = True) -> None:
        super().__init__()
        vision = vision_config(card)
        depth = vision.num_hidden_layers
        if not -depth - 1 <= layer <= -1:
            raise BadArgumentError(f"layer must lie in [{-depth - 1}, -1] for a tower of {depth} layers, got {layer}")
        self.normalise = Normalise(image_of(card))
        self.vision_model = CLIPVisionModel(vision)
        # hidden_states[-1 - k] is the output without the last k layers: build only the others.
        self.vision_model.encoder.layers = self.vision_model.encoder.layers[: depth + 1 + layer]
        self.visual_projection = nn.Linear(vision.hidden_size, vision.projection_dim, bias=False)
        self.width: int = vision.hidden_size
        self.post_layernorm = post_layernorm
        if not post_layernorm:
            # transformers' module always runs it, and its output is unused here: freeze it, so that nothing trains it.
            self.vision_model.post_layernorm.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Encoded:
        """Encode a batch of images."""
        output = self.vision_model(pixel_values=self.normalise(pixels))
        cls = output.pooler_output if self.post_layernorm else output.last_hidden_state[:, 0]
        return Encoded(self.visual_projection(cls), output.last_hidden_state)


class ClipTextTower(nn.Module):
    """CLIP's text transformer with its projection: ids and mask `[B, T]` int64 to `Encoded`."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        text: CLIPTextConfig = clip_config(card).text_config
        self.width: int = text.hidden_size
        self.text_model = CLIPTextModel(text)
        self.text_projection = nn.Linear(text.hidden_size, text.projection_dim, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        """Encode a batch of texts; the embedding is pooled at the first end token."""
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask)
        return Encoded(self.text_projection(output.pooler_output), output.last_hidden_state)


def clip_config(card: ModelCard) -> CLIPConfig:
    """transformers' configuration of the CLIP that a card's `hparams`, image and text inputs describe."""
    h: dict[str, Any] = card.hparams
    if card.text is None:
        raise BadArgumentError(f"{card.name}: CLIP needs a text input on its card")
    text = {
        "hidden_size": h["text_width"],
        "intermediate_size": 4 * h["text_width"],
        "num_hidden_layers": h["text_layers"],
        "num_attention_heads": h["text_heads"],
        "vocab_size": h["vocabulary_size"],
        "max_position_embeddings": card.text.context_length,
        "bos_token_id": h["start_token"],
        "eos_token_id": h["end_token"],
        "pad_token_id": h["end_token"],
        "projection_dim": h["embedding_dim"],
        "hidden_act": h.get("hidden_act", QUICK_GELU),
    }
    return CLIPConfig(text_config=text, vision_config=vision_config(card), projection_dim=h["embedding_dim"])


def vision_config(card: ModelCard) -> CLIPVisionConfig:
    """transformers' configuration of the vision transformer alone; the card needs no text input."""
    h: dict[str, Any] = card.hparams
    return CLIPVisionConfig(
        hidden_size=h["vision_width"],
        intermediate_size=4 * h["vision_width"],
        num_hidden_layers=h["vision_layers"],
        num_attention_heads=h["vision_heads"],
        patch_size=h["patch_size"],
        image_size=image_of(card).size,
        projection_dim=h["embedding_dim"],
        hidden_act=h.get("hidden_act", QUICK_GELU),
    )


def copy_tower(state: Mapping[str, Tensor], tower: nn.Module) -> None:
    """Copy a CLIP's tensors into a tower; names are transformers', and what the tower lacks is left out.

    Raises BadInputError naming every tensor that is absent or of another shape.
    """
    wanted = tower.state_dict()
    wrong = sorted(
        f"{key} {list(state[key].shape)} (expected {list(value.shape)})" if key in state else f"{key} (absent)"
        for key, value in wanted.items()
        if key not in state or state[key].shape != value.shape
    )
    if wrong:
        raise BadDataError(f"the pretrained CLIP does not fit the architecture: {', '.join(wrong[:4])}")
    tower.load_state_dict({key: state[key] for key in wanted})


def unit(embedding: Tensor) -> Tensor:
    """L2-normalise `[..., D]` in float32: the epsilon of `F.normalize` underflows in float16."""
    return torch.nn.functional.normalize(embedding.float(), dim=-1).to(embedding.dtype)


#: What CLIP's temperature starts from in training, as a logit scale (Radford et al. 2021, section 2.5).
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
#: exp(logit_scale) is kept at or below this, as CLIP does.
MAX_LOGIT_SCALE = math.log(LARGEST_SCALE)


class PhraseEncoder(ZooModel):
    """A model that embeds the phrases of policies with its `text_tower` (`ids, mask -> Encoded`)."""

    text_tower: nn.Module

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask `[B, T]` to unit embeddings `[B, D]`."""
        return unit(self.text_tower(input_ids, attention_mask).embedding)

    @torch.no_grad()
    def embed_phrases(self, phrases: tuple[str, ...]) -> Tensor:
        """The text bank `[P, D]` of these phrases, unit norm, on the model's device."""
        device = next(self.text_tower.parameters()).device
        return self.encode_text(*token_tensors(self.codec(), phrases, device))


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
    image = ClipImageTower(card, card.hparams["layer"], card.hparams["post_layernorm"])
    return DualEncoder(card, image, ClipTextTower(card))
