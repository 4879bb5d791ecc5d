"""The sizes of the CLIPs that the zoo knows, and the parts of a card that follow from them. No torch here."""

from __future__ import annotations

from typing import Any

from zoo.contract.card import ImageInput
from zoo.registry import RANDOM

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

#: Sizes of OpenAI's CLIP (Radford et al. 2021, table 20) and of our own: image side, patch, vision width, layers,
#: heads; text width, layers, heads; embedding; vocabulary; context; Hub id.
CLIP_SIZES: dict[str, tuple[int, int, int, int, int, int, int, int, int, int, int, str | None]] = {
    "vit_b32": (224, 32, 768, 12, 12, 512, 12, 8, 512, 49408, 77, "openai/clip-vit-base-patch32"),
    "vit_b16": (224, 16, 768, 12, 12, 512, 12, 8, 512, 49408, 77, "openai/clip-vit-base-patch16"),
    "vit_l14": (224, 14, 1024, 24, 16, 768, 12, 12, 768, 49408, 77, "openai/clip-vit-large-patch14"),
    "vit_l14_336": (336, 14, 1024, 24, 16, 768, 12, 12, 768, 49408, 77, "openai/clip-vit-large-patch14-336"),
    "tiny": (64, 8, 128, 4, 4, 128, 2, 4, 128, 512, 32, None),
    "test": (32, 8, 32, 2, 2, 32, 2, 2, 16, 300, 24, RANDOM),
}


def clip_image(size: int) -> ImageInput:
    """CLIP's image input: short side to `size`, antialiased bicubic, centre crop, CLIP's mean and std."""
    return ImageInput(size, "shortest_edge_crop", "bicubic", CLIP_MEAN, CLIP_STD)


def clip_hparams(size: str) -> dict[str, Any]:
    """The hyperparameters of a CLIP of this size, as `towers.clip_config` reads them."""
    names = ("text_width", "text_layers", "text_heads")
    hparams = vision_hparams(size) | dict(zip(names, CLIP_SIZES[size][5:8], strict=True))
    vocabulary = CLIP_SIZES[size][9]
    published = vocabulary == 49408  # OpenAI's tokenizer has its control tokens last; ours has them first
    hparams["vocabulary_size"] = vocabulary
    hparams["start_token"] = vocabulary - 2 if published else 0
    hparams["end_token"] = vocabulary - 1 if published else 1
    return hparams


def vision_hparams(size: str) -> dict[str, Any]:
    """The hyperparameters of a CLIP's vision transformer alone, as `towers.vision_config` reads them."""
    names = ("patch_size", "vision_width", "vision_layers", "vision_heads")
    return dict(zip(names, CLIP_SIZES[size][1:5], strict=True)) | {"embedding_dim": CLIP_SIZES[size][8]}
