"""The multimodal NSFW classifier, as released and as meant, as data."""

from __future__ import annotations

from zoo.card import ModelCard, TextInput
from zoo.models.catalogue.clip_sizes import CLIP_SIZES, clip_hparams, clip_image
from zoo.registry import RANDOM, register_model


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


for _size in ("vit_b32", "tiny", "test"):
    for _tag in ("as_released", "fusion"):
        _multimodal(_size, _tag)
