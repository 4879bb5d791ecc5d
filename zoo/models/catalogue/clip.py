"""Models that compare images with phrases, as data: SafeCLIP on CLIPs of every size, and CLIPs with convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zoo.contract.card import TEXT, VISION, ImageInput, TextInput
from zoo.registry import register

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_SHARE = "share of a phrase among all phrases of the policy; a category's score is their sum"


def clip_image(side: int) -> ImageInput:
    """CLIP's image input: short side to `side` pixels, antialiased bicubic, centre crop, CLIP's mean and std."""
    return ImageInput(side, "shortest_edge_crop", "bicubic", CLIP_MEAN, CLIP_STD)


@dataclass(frozen=True)
class ClipSize:
    """The sizes of one CLIP, by the names of its hyperparameters. Sides are in pixels, the context is in tokens.

    The defaults are those of OpenAI's CLIP (Radford et al. 2021, table 20), with the control tokens at the end of the
    vocabulary; ours has them first. `pretrained` is its Hub id, None for a CLIP without published weights.
    """

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_heads: int
    embedding_dim: int
    text_layers: int = 12
    vocabulary_size: int = 49408
    start_token: int = 49406
    end_token: int = 49407
    context_length: int = 77
    pretrained: str | None = None

    def vision_hparams(self) -> dict[str, Any]:
        """The hyperparameters of the vision transformer alone, as `zoo.models.clip.vision_config` reads them."""
        return {name: getattr(self, name) for name in VISION}

    def hparams(self) -> dict[str, Any]:
        """The hyperparameters of both towers, as `zoo.models.clip.clip_config` reads them."""
        return self.vision_hparams() | {name: getattr(self, name) for name in TEXT}


VIT_B32 = ClipSize(224, 32, 768, 12, 12, 512, 8, 512, pretrained="openai/clip-vit-base-patch32")
VIT_B16 = ClipSize(224, 16, 768, 12, 12, 512, 8, 512, pretrained="openai/clip-vit-base-patch16")
VIT_L14 = ClipSize(224, 14, 1024, 24, 16, 768, 12, 768, pretrained="openai/clip-vit-large-patch14")
VIT_L14_336 = ClipSize(336, 14, 1024, 24, 16, 768, 12, 768, pretrained="openai/clip-vit-large-patch14-336")
TINY = ClipSize(64, 8, 128, 4, 4, 128, 4, 128, 2, vocabulary_size=512, start_token=0, end_token=1, context_length=32)


def _safeclip(name: str, size: ClipSize) -> None:
    register(
        name,
        builder="zoo.models.clip:build_safeclip",
        pretrained=size.pretrained,
        policy="configs/policy/safeclip.yaml",
        task="zero_shot",
        summary="Zero-shot detector of toxic images from the CLS token of CLIP (SafeCLIP, arXiv 2503.00037)",
        score="softmax",
        score_meaning=_SHARE,
        image=clip_image(size.image_size),
        text=TextInput(size.context_length),
        licence="MIT (OpenAI CLIP weights)" if size.pretrained else "Apache-2.0",
        source=f"https://huggingface.co/{size.pretrained}" if size.pretrained else "safety-zoo",
        hparams={**size.hparams(), "layer": -2, "post_layernorm": False},
        limits=(
            "A score is relative to the policy's other phrases: it is not a probability of harm.",
            "Reproduced: the method's scores, to 1e-5 of an independent computation from its definition.",
            "Not reproduced, because the paper's data are not available: defence success 66.9 %, "
            "false positives 3.2 %, overhead 7.2 %.",
            "Not the SafeCLIP of ICML 2024 (pre-training) nor the Safe-CLIP of ECCV 2024 (unlearning).",
        ),
    )


_safeclip("safeclip_vit_b32.zeroshot", VIT_B32)
_safeclip("safeclip_vit_b16.zeroshot", VIT_B16)
_safeclip("safeclip_vit_l14.zeroshot", VIT_L14)
_safeclip("safeclip_vit_l14_336.zeroshot", VIT_L14_336)
_safeclip("safeclip_tiny.zeroshot", TINY)


def _conv_clip(name: str, builder: str, summary: str, image: ImageInput, context: int, hparams: dict[str, Any]) -> None:
    register(
        name,
        builder=builder,
        policy="configs/policy/dogs.yaml",
        task="zero_shot",
        summary=summary,
        score="softmax",
        score_meaning=_SHARE,
        image=image,
        text=TextInput(context),
        hparams=hparams,
        limits=("Trained on little data: for demonstrations, not for production.",),
    )


#: The hyperparameters of MiniLM (L6, 384 features), as `BertTextTower` reads them.
MINILM: dict[str, Any] = {
    "vocabulary_size": 30522,
    "text_width": 384,
    "text_layers": 6,
    "text_heads": 12,
    "text_positions": 512,
}
#: The hyperparameters of EfficientNet-Lite2, as `zoo.archives.efficientnet.blocks` reads them.
EFFICIENTNET_LITE2: dict[str, Any] = {
    "stem": 32,
    "stages": [
        [1, 3, 1, 1, 16],
        [3, 3, 2, 6, 24],
        [3, 5, 2, 6, 48],
        [4, 3, 2, 6, 88],
        [4, 5, 1, 6, 120],
        [5, 5, 2, 6, 208],
        [1, 3, 1, 6, 352],
    ],
    "features": 1280,
}


def efficientnet_lite_image(size: int) -> ImageInput:
    """The image input of an EfficientNet-Lite: what it was trained with, at `size` pixels."""
    return ImageInput(size, "shortest_edge_crop", "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)


_conv_clip(
    "clip_efficientnet_lite2.lit",
    "zoo.models.conv_clip:build_efficientnet",
    "CLIP of a locked ImageNet EfficientNet-Lite2 and a trained MiniLM (LiT, arXiv 2111.07991)",
    efficientnet_lite_image(260),
    32,
    MINILM | EFFICIENTNET_LITE2 | {"embedding_dim": 512, "head_width": 1024, "dropout": 0.2, "mirror": True},
)
_conv_clip(
    "clip_mobilenet_v1.lit",
    "zoo.models.conv_clip:build_mobilenet",
    "CLIP of a locked ImageNet MobileNetV1 0.75 and a trained MiniLM (LiT, arXiv 2111.07991)",
    ImageInput(224, "shortest_edge_crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    32,
    MINILM
    | {
        "embedding_dim": 512,
        "head_width": 1024,
        "dropout": 0.2,
        "mirror": True,
        "depth_multiplier": 0.75,
        "min_depth": 8,
    },
)
_conv_clip(
    "clip_resnet_small.scratch",
    "zoo.models.conv_clip:build_resnet",
    "Compact CLIP, ResNet and two-layer BERT, trained from random weights",
    clip_image(80),
    40,
    {
        "vocabulary_size": 4096,
        "text_width": 256,
        "text_layers": 2,
        "text_heads": 4,
        "text_positions": 64,
        "embedding_dim": 256,
        "head_width": 1024,
        "dropout": 0.2,
        "mirror": False,
        "image_widths": [64, 128, 256, 384],
    },
)
