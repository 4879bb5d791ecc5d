"""Every model that the zoo ships, as data: its card, its builder, where its weights come from. No torch here."""

from __future__ import annotations

from typing import Any

from zoo.card import ImageInput, ModelCard, TextInput
from zoo.models.upstream import UPSTREAM
from zoo.registry import RANDOM, register_model

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


def _safeclip(size: str) -> None:
    image, context, pretrained = CLIP_SIZES[size][0], CLIP_SIZES[size][10], CLIP_SIZES[size][11]
    test = size == "test"
    register_model(
        ModelCard(
            name="test_safeclip.random" if test else f"safeclip_{size}.zeroshot",
            task="zero_shot",
            summary="Zero-shot detector of toxic images from the CLS token of CLIP (SafeCLIP, arXiv 2503.00037)",
            score="softmax",
            score_meaning="share of a phrase among all phrases of the policy; a category's score is their sum",
            image=clip_image(image),
            text=TextInput(context),
            labels=(),
            requires=("image",),
            licence="Apache-2.0" if pretrained in (None, RANDOM) else "MIT (OpenAI CLIP weights)",
            source=f"https://huggingface.co/{pretrained}" if pretrained not in (None, RANDOM) else "safety-zoo",
            hparams={**clip_hparams(size), "layer": -2, "post_layernorm": False},
            limits=(
                "A score is relative to the policy's other phrases: it is no probability of harm.",
                "Reproduced: the method's scores, to 1e-5 of an independent computation from its definition.",
                "Not reproduced, for want of the paper's data: defence success 66.9 %, false positives 3.2 %, "
                "overhead 7.2 %.",
                "Not the SafeCLIP of ICML 2024 (pre-training) nor the Safe-CLIP of ECCV 2024 (unlearning).",
            ),
        ),
        builder="zoo.models.dual_encoder:build_safeclip",
        pretrained=pretrained,
        policy="configs/policy/safeclip.yaml",
    )


def _multimodal(size: str, tag: str) -> None:
    image, context = CLIP_SIZES[size][0], CLIP_SIZES[size][10]
    test, fusion = size == "test", tag == "fusion"
    limit = (
        "Trained weights are not published here: train it with a recipe on your data."
        if fusion
        else "With a single key the attention weight is 1: the prompt never changes the answer. For comparison only."
    )
    register_model(
        ModelCard(
            name=f"test_multimodal_nsfw.{tag}" if test else f"multimodal_nsfw_{size}.{tag}",
            task="classification",
            summary="Judges prompt and image together (multimodal NSFW classifier, arXiv 2504.11707"
            + (", attention in both directions)" if fusion else "; as released, it ignores the prompt)"),
            score="softmax",
            score_meaning="probability of each label; unsafe and safe add up to 1",
            image=clip_image(image),
            text=TextInput(context),
            labels=("unsafe", "safe"),
            requires=() if fusion else ("image", "text"),
            licence="Apache-2.0",
            source="safety-zoo, after https://arxiv.org/abs/2504.11707",
            hparams={**clip_hparams(size), "heads": 2 if test else 4},
            limits=(limit,),
        ),
        builder="zoo.models.multimodal:" + ("Fusion" if fusion else "AsReleased"),
        pretrained=RANDOM if test else None,
        policy="configs/policy/unsafe.yaml",
    )


for _size in CLIP_SIZES:
    _safeclip(_size)
for _size in ("vit_b32", "tiny", "test"):
    for _tag in ("as_released", "fusion"):
        _multimodal(_size, _tag)


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
        builder="zoo.models.nsfwjs:Nsfwjs",
        pretrained=pretrained,
        policy="configs/policy/nsfwjs.yaml",
    )


def _conv_clip(name: str, builder: str, summary: str, image: ImageInput, context: int, hparams: dict[str, Any]) -> None:
    register_model(
        ModelCard(
            name=name,
            task="zero_shot",
            summary=summary,
            score="softmax",
            score_meaning="share of a phrase among all phrases of the policy; a category's score is their sum",
            image=image,
            text=TextInput(context),
            labels=(),
            requires=("image",),
            licence="Apache-2.0",
            source="safety-zoo",
            hparams=hparams,
            limits=("Trained on little data: for demonstrations, not for production.",),
        ),
        builder=f"zoo.models.conv_clip:{builder}",
        pretrained=RANDOM if name.startswith("test_") else None,
        policy="configs/policy/dogs.yaml",
    )


def _bert(vocabulary: int, width: int, layers: int, heads: int, positions: int) -> dict[str, Any]:
    names = ("vocabulary_size", "text_width", "text_layers", "text_heads", "text_positions")
    return dict(zip(names, (vocabulary, width, layers, heads, positions), strict=True))


_head = {"embedding_dim": 512, "head_width": 1024, "dropout": 0.2, "mirror": False}
_small_head = {"embedding_dim": 16, "head_width": 16, "dropout": 0.1, "mirror": True}
_mobilenet_image = ImageInput(224, "shortest_edge_crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_conv_clip(
    "clip_mobilenet_v1.lit",
    "build_mobilenet",
    "CLIP of a locked ImageNet MobileNetV1 0.75 and a trained MiniLM (LiT, arXiv 2111.07991)",
    _mobilenet_image,
    32,
    {**_bert(30522, 384, 6, 12, 512), **_head, "mirror": True, "depth_multiplier": 0.75, "min_depth": 8},
)
_conv_clip(
    "clip_resnet_small.scratch",
    "build_resnet",
    "Compact CLIP, ResNet and two-layer BERT, trained from random weights",
    clip_image(80),
    40,
    {**_bert(4096, 256, 2, 4, 64), **_head, "embedding_dim": 256, "image_widths": [64, 128, 256, 384]},
)
_conv_clip(
    "test_clip_mobilenet_v1.random",
    "build_mobilenet",
    "Tiny random CLIP with MobileNetV1, for tests",
    _mobilenet_image,
    24,
    {**_bert(300, 16, 1, 2, 32), **_small_head, "depth_multiplier": 0.01, "min_depth": 32},
)
_conv_clip(
    "test_clip_resnet.random",
    "build_resnet",
    "Tiny random CLIP with a ResNet, for tests",
    clip_image(32),
    24,
    {**_bert(300, 16, 1, 2, 32), **_small_head, "image_widths": [8, 16]},
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
