"""The multimodal NSFW classifier, as released and as meant, on CLIP towers and on smaller ones, as data."""

from __future__ import annotations

from typing import Any

from zoo.contract.card import ImageInput, ModelCard, TextInput
from zoo.models.catalogue.clip_sizes import CLIP_SIZES, clip_hparams, clip_image
from zoo.models.catalogue.conv_clip import bert
from zoo.registry import RANDOM, register_model

#: What the cards of one tag say, whatever their towers.
_TAGS: dict[str, dict[str, Any]] = {
    "fusion": {
        "summary": "Judges prompt and image together (multimodal NSFW classifier, arXiv 2504.11707, "
        "attention in both directions)",
        "requires": (),
        "limits": ("Trained weights are not published here: train it with a recipe on your data.",),
    },
    "as_released": {
        "summary": "Judges prompt and image together (multimodal NSFW classifier, arXiv 2504.11707; as released, "
        "it ignores the prompt)",
        "requires": ("image", "text"),
        "limits": (
            "With a single key the attention weight is 1: the prompt never changes the answer. For comparison only.",
        ),
    },
}
_SOFTMAX: dict[str, Any] = {
    "score": "softmax",
    "score_meaning": "probability of each label; unsafe and safe add up to 1",
    "labels": ("unsafe", "safe"),
}
#: The proxy task of `zoo data proxy`: the binary answer, and beside it where the concept is.
_PROXY: dict[str, Any] = {
    "score": "sigmoid",
    "score_meaning": "probability of each label by itself; unsafe is the answer, the others say where it comes from",
    "labels": ("unsafe", "in_image", "in_prompt"),
}


def _multimodal(
    name: str,
    towers: str,
    policy: str,
    image: ImageInput,
    context: int,
    outputs: dict[str, Any],
    hparams: dict[str, Any],
) -> None:
    tag = name.partition(".")[2]
    register_model(
        ModelCard(
            name=name,
            task="classification",
            image=image,
            text=TextInput(context),
            licence="Apache-2.0",
            source="safety-zoo, after https://arxiv.org/abs/2504.11707",
            hparams=hparams,
            **outputs,
            **_TAGS[tag],
        ),
        builder=f"zoo.models.multimodal:build_{towers}_{tag}",
        pretrained=RANDOM if name.startswith("test_") else None,
        policy=f"configs/policy/{policy}.yaml",
    )


for _size in ("vit_b32", "tiny", "test"):
    for _tag in ("as_released", "fusion"):
        _multimodal(
            f"test_multimodal_nsfw.{_tag}" if _size == "test" else f"multimodal_nsfw_{_size}.{_tag}",
            "clip",
            "unsafe",
            clip_image(CLIP_SIZES[_size][0]),
            CLIP_SIZES[_size][10],
            _SOFTMAX,
            {**clip_hparams(_size), "heads": 2 if _size == "test" else 4},
        )


_mobilenet = {
    **bert(30522, 384, 6, 12, 512),  # MiniLM
    "depth_multiplier": 0.75,
    "min_depth": 8,
    "mirror": False,
    "embedding_dim": 256,
    "heads": 4,
}
_projection = {"head_width": 512, "dropout": 0.2}
for _tag in ("as_released", "fusion"):
    _multimodal(
        f"multimodal_nsfw_mobilenet.{_tag}",
        "mobilenet",
        "dogs_multimodal",
        ImageInput(96, "shortest_edge_crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        32,
        _PROXY,
        _mobilenet if _tag == "fusion" else _mobilenet | _projection,
    )
_multimodal(
    "test_multimodal_conv.fusion",
    "resnet",
    "dogs_multimodal",
    clip_image(32),
    24,
    _PROXY,
    {**bert(300, 16, 1, 2, 32), "image_widths": [8, 16], "mirror": False, "embedding_dim": 16, "heads": 2},
)
