"""The multimodal NSFW classifier, as released and as meant, on CLIP towers and on smaller ones, as data."""

from __future__ import annotations

from typing import Any

from zoo.contract.card import ImageInput, TextInput
from zoo.models.catalogue.clip import MINILM, TINY, VIT_B32, ClipSize, clip_image
from zoo.registry import register

#: The fields that the cards of one tag share, for all towers.
_FUSION: dict[str, Any] = {
    "builder": "zoo.models.multimodal:build_fusion",
    "summary": "Judges prompt and image together (multimodal NSFW classifier, arXiv 2504.11707, "
    "attention in both directions)",
    "requires": (),
    "limits": ("Trained weights are not published here: train it with a recipe on your data.",),
}
_AS_RELEASED: dict[str, Any] = {
    "builder": "zoo.models.multimodal:build_as_released",
    "summary": "Judges prompt and image together (multimodal NSFW classifier, arXiv 2504.11707; as released, "
    "it ignores the prompt)",
    "requires": ("image", "text"),
    "limits": (
        "With a single key the attention weight is 1: the prompt never changes the answer. For comparison only.",
    ),
}
_SOURCE = "safety-zoo, after https://arxiv.org/abs/2504.11707"


def _on_clip(name: str, tag: dict[str, Any], size: ClipSize) -> None:
    register(
        name,
        policy="configs/policy/unsafe.yaml",
        score="softmax",
        score_meaning="probability of each label; unsafe and safe add up to 1",
        labels=("unsafe", "safe"),
        image=clip_image(size.image_size),
        text=TextInput(size.context_length),
        source=_SOURCE,
        hparams=size.hparams() | {"heads": 4},
        **tag,
    )


_on_clip("multimodal_nsfw_vit_b32.fusion", _FUSION, VIT_B32)
_on_clip("multimodal_nsfw_vit_b32.as_released", _AS_RELEASED, VIT_B32)
_on_clip("multimodal_nsfw_tiny.fusion", _FUSION, TINY)
_on_clip("multimodal_nsfw_tiny.as_released", _AS_RELEASED, TINY)


def _on_mobilenet(name: str, tag: dict[str, Any], hparams: dict[str, Any]) -> None:
    """For the proxy task of `zoo data proxy`: the binary answer, and beside it where the concept is."""
    register(
        name,
        policy="configs/policy/dogs_multimodal.yaml",
        score="sigmoid",
        score_meaning="probability of each label by itself; unsafe is the answer, the others say where it comes from",
        labels=("unsafe", "in_image", "in_prompt"),
        image=ImageInput(96, "shortest_edge_crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        text=TextInput(32),
        source=_SOURCE,
        hparams=hparams,
        **tag,
    )


_sizes = MINILM | {"depth_multiplier": 0.75, "min_depth": 8, "mirror": False, "embedding_dim": 256, "heads": 4}
_projected = _sizes | {"head_width": 512, "dropout": 0.2}
_on_mobilenet("multimodal_nsfw_mobilenet.fusion", _FUSION, _sizes)
_on_mobilenet("multimodal_nsfw_mobilenet.as_released", _AS_RELEASED, _projected)
