"""Classifiers that others published, heads on CLIP and NSFWJS, as data."""

from __future__ import annotations

from typing import Any

from zoo.contract.card import ImageInput, ModelCard
from zoo.models.catalogue.clip_sizes import CLIP_SIZES, clip_image, vision_hparams
from zoo.models.upstream import UPSTREAM
from zoo.registry import RANDOM, register_model


def _nsfwjs(name: str, size: tuple[float, int, list[int]], pretrained: str | None) -> None:
    register_model(
        ModelCard(
            name=name,
            task="classification",
            summary="NSFWJS (GantMan): MobileNetV2 over drawing, hentai, neutral, porn, sexy",
            score="softmax",
            score_meaning="probability of each of the five classes; they add up to 1",
            # tf.image.resizeBilinear with align_corners on the whole image, as nsfwjs does it.
            image=ImageInput(224, "squash", "bilinear_align_corners", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            text=None,
            labels=("drawing", "hentai", "neutral", "porn", "sexy"),
            requires=("image",),
            licence="MIT",
            source="https://github.com/infinitered/nsfwjs",
            hparams=dict(zip(("depth_multiplier", "channel_step", "hidden"), size, strict=True)),
            limits=("Upstream documents no threshold; 0.5 on hentai + porn + sexy is common practice.",),
        ),
        builder="zoo.models.mobilenet:Nsfwjs",
        pretrained=pretrained,
        policy="configs/policy/nsfwjs.yaml",
    )


_nsfwjs("nsfwjs_mobilenet_v2.gantman", (1.0, 8, [256, 128]), None)
_nsfwjs("test_nsfwjs.random", (0.05, 8, [16, 8]), RANDOM)


_CONCEPTS = (*(f"concept_{number:02}" for number in range(17)), *(f"special_care_{number}" for number in range(3)))

#: What the cards of each kind of head on a CLIP embedding say, whatever the size of the tower.
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


def _embedding_classifier(kind: str, size: str, tag: str, hidden: list[int]) -> None:
    test = size == "test"
    architecture = f"test_{kind}" if test else f"{kind}_{size}"
    upstream = UPSTREAM.get(architecture)
    register_model(
        ModelCard(
            name=f"{architecture}.{tag}",
            task="classification",
            image=clip_image(CLIP_SIZES[size][0]),
            text=None,
            requires=("image",),
            licence=f"head: {upstream.licence}; CLIP tower: MIT (OpenAI CLIP weights)" if upstream else "Apache-2.0",
            source=upstream.source if upstream else "safety-zoo",
            hparams={**vision_hparams(size), "head": kind, "hidden": hidden},
            **_HEADS[kind],
        ),
        builder="zoo.models.heads:EmbeddingClassifier",
        pretrained=RANDOM if test else None,
        policy=f"configs/policy/{kind}.yaml",
    )


_embedding_classifier("laion_nsfw", "vit_l14", "published", [64, 512, 256])
_embedding_classifier("laion_nsfw", "vit_b32", "published", [32, 32])
_embedding_classifier("laion_nsfw", "test", "random", [16, 8])
for _size, _tag in (("vit_l14", "compvis"), ("test", "random")):
    _embedding_classifier("safety_checker", _size, _tag, [])
_embedding_classifier("multihead", "vit_l14", "unsafe_diffusion", [384])
_embedding_classifier("multihead", "test", "random", [8])
for _size, _tag in (("vit_b16", "prompts"), ("vit_b32", "prompts"), ("vit_l14", "prompts"), ("test", "random")):
    _embedding_classifier("q16", _size, _tag, [])
