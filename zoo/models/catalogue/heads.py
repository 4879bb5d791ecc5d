"""Classifiers that others published, heads on CLIP, and panels of them on one tower, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoo.contract.card import panel_card
from zoo.models.catalogue.clip import VIT_B16, VIT_B32, VIT_L14, ClipSize, clip_image
from zoo.models.upstream import UPSTREAM
from zoo.registry import model_card, register, register_model

_CONCEPTS = (*(f"concept_{number:02}" for number in range(17)), *(f"special_care_{number}" for number in range(3)))

#: The fields that the cards of each kind of head on a CLIP embedding share, for all sizes of the tower.
_HEADS: dict[str, dict[str, Any]] = {
    "laion_nsfw": {
        "summary": "LAION's CLIP-based NSFW detector, a small network on the CLIP embedding",
        "labels": ("nsfw",),
        "score": "sigmoid",
        "score_meaning": "probability of NSFW, as published",
        "limits": ("Upstream documents no threshold: 0.5 is ours, measure your own.",),
    },
    "safety_checker": {
        "summary": "Stable Diffusion's safety checker: CLIP's cosine with 17 unnamed concepts (CompVis)",
        "labels": _CONCEPTS,
        "score": "sigmoid",
        "score_meaning": "above 0.5 where the cosine is above the concept's published threshold; no probability",
        "limits": (
            "What the concepts stand for was never published; they were found to be sexual alone (arXiv 2210.04610).",
            "A special-care hit raises every concept by 0.01: a step, at which the score is not continuous.",
        ),
    },
    "multihead": {
        "summary": "Five heads on CLIP: sexual, violent, disturbing, hateful, political (arXiv 2305.13873)",
        "labels": ("sexual", "violent", "disturbing", "hateful", "political"),
        "score": "sigmoid",
        "score_meaning": "probability of each label; they do not exclude each other",
        "limits": ("Upstream has no licence file: do not redistribute its weights.",),
    },
    "q16": {
        "summary": "Q16: two learned prompts in CLIP's space, appropriate or not (arXiv 2202.06675)",
        "labels": ("appropriate", "inappropriate"),
        "score": "softmax",
        "score_meaning": "probability of each label; the two add up to 1",
        "limits": ("Learned from moral ratings of the SMID photos: broad, and no category tells what is wrong.",),
    },
}


def _head(name: str, kind: str, size: ClipSize, hidden: Sequence[int] = ()) -> None:
    upstream = UPSTREAM[name.partition(".")[0]]
    register(
        name,
        builder="zoo.models.heads:EmbeddingClassifier",
        policy=f"configs/policy/{kind}.yaml",
        image=clip_image(size.image_size),
        licence=f"head: {upstream.licence}; CLIP tower: MIT (OpenAI CLIP weights)",
        source=upstream.source,
        hparams={**size.vision_hparams(), "head": kind, "hidden": list(hidden)},
        **_HEADS[kind],
    )


_head("laion_nsfw_vit_l14.published", "laion_nsfw", VIT_L14, hidden=(64, 512, 256))
_head("laion_nsfw_vit_b32.published", "laion_nsfw", VIT_B32, hidden=(32, 32))
_head("safety_checker_vit_l14.compvis", "safety_checker", VIT_L14)
_head("multihead_vit_l14.unsafe_diffusion", "multihead", VIT_L14, hidden=(384,))
_head("q16_vit_b16.prompts", "q16", VIT_B16)
_head("q16_vit_b32.prompts", "q16", VIT_B32)
_head("q16_vit_l14.prompts", "q16", VIT_L14)


def _panel(name: str, *heads: str) -> None:
    card = panel_card(name, {head: model_card(head) for head in heads})
    register_model(card, builder="zoo.models.heads:Panel", policy="")


_panel("clip_tiny.panel", "safeclip_tiny.zeroshot")
_panel("clip_vit_b16.panel", "safeclip_vit_b16.zeroshot", "q16_vit_b16.prompts")
_panel("clip_vit_b32.panel", "safeclip_vit_b32.zeroshot", "laion_nsfw_vit_b32.published", "q16_vit_b32.prompts")
_panel(
    "clip_vit_l14.panel",
    "safeclip_vit_l14.zeroshot",
    "laion_nsfw_vit_l14.published",
    "safety_checker_vit_l14.compvis",
    "multihead_vit_l14.unsafe_diffusion",
    "q16_vit_l14.prompts",
)
_panel("clip_vit_l14_336.panel", "safeclip_vit_l14_336.zeroshot")
