"""SafeCLIP on every size of CLIP, as data."""

from __future__ import annotations

from zoo.contract.card import ModelCard, TextInput
from zoo.models.catalogue.clip_sizes import CLIP_SIZES, clip_hparams, clip_image
from zoo.registry import RANDOM, register_model


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
        builder="zoo.models.clip:build_safeclip",
        pretrained=pretrained,
        policy="configs/policy/safeclip.yaml",
    )


for _size in CLIP_SIZES:
    _safeclip(_size)
