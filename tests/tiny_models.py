"""The `test_*` models: shipped architectures with tiny sizes, and random weights that are the same on every machine.

`tests/conftest.py` imports them for the tests. A command in a child process needs `--import tests.tiny_models`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zoo.contract.card import ModelCard, panel_card
from zoo.registry import RANDOM, Builder, model_card, model_entry, register_model

if TYPE_CHECKING:
    from zoo.models.base import ZooModel

_VISION: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "vision_width": 32,
    "vision_layers": 2,
    "vision_heads": 2,
    "embedding_dim": 16,
}
_CLIP: dict[str, Any] = _VISION | {
    "context_length": 24,
    "text_width": 32,
    "text_layers": 2,
    "text_heads": 2,
    "vocabulary_size": 300,
}
_BERT: dict[str, Any] = {
    "context_length": 24,
    "vocabulary_size": 300,
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "text_positions": 32,
}
_PROJECTION: dict[str, Any] = {"embedding_dim": 16, "head_width": 16, "dropout": 0.1, "mirror": True}


#: The vocabulary of the tiny model of terms.
WORDS = ("cat", "dog", "dogs", "dog runs", "mat", "photo", "runs", "two")


def _terms(card: ModelCard) -> ZooModel:
    import json

    from zoo.inputs.terms import Terms
    from zoo.models.classifiers import TermClassifier

    model = TermClassifier(card)
    idf = tuple(1 + number / 8 for number in range(len(WORDS)))
    terms = Terms(WORDS, idf, pairs=True, ascii_words=False, left_out=("a", "on", "the"))
    model.tokenizer_json = json.dumps(terms.to_dict())
    return model


def _sentence(card: ModelCard) -> ZooModel:
    from zoo.models.classifiers import SentenceClassifier

    model = SentenceClassifier(card)
    for weight in model.layers.parameters():
        weight.data *= 6  # as drawn, three layers make nearly one answer of all texts
    return model


def _tiny(name: str, like: str, side: int = 0, **hparams: Any) -> None:
    """Register `name`: the model `like` with other hyperparameters, and images of `side` pixels."""
    card = model_card(like, **hparams)
    if side and card.image:
        card = card.replace(image=replace(card.image, size=side))
    _register(card, name, like)


def _register(card: ModelCard, name: str, like: str, builder: Builder | None = None) -> None:
    entry = model_entry(like)
    card = card.replace(name=name, licence="Apache-2.0", source="safety-zoo")
    register_model(card, builder=builder or entry.builder, policy=entry.policy, pretrained=RANDOM)


def _resnet_fusion(card: ModelCard) -> ZooModel:
    from zoo.models.conv_clip import BertTextTower, resnet_tower
    from zoo.models.multimodal import Fusion

    return Fusion(card, resnet_tower(card, project=False), BertTextTower(card, project=False))


_tiny("test_safeclip.random", "safeclip_tiny.zeroshot", **_CLIP)
_tiny("test_laion_nsfw.random", "laion_nsfw_vit_b32.published", hidden=[16, 8], **_VISION)
_tiny("test_safety_checker.random", "safety_checker_vit_l14.compvis", **_VISION)
_tiny("test_multihead.random", "multihead_vit_l14.unsafe_diffusion", hidden=[8], **_VISION)
_tiny("test_q16.random", "q16_vit_b32.prompts", **_VISION)
_tiny("test_multimodal_nsfw.as_released", "multimodal_nsfw_tiny.as_released", heads=2, **_CLIP)
_tiny("test_multimodal_nsfw.fusion", "multimodal_nsfw_tiny.fusion", heads=2, **_CLIP)
_tiny(
    "test_clip_mobilenet_v1.random",
    "clip_mobilenet_v1.lit",
    side=64,
    depth_multiplier=0.01,
    min_depth=32,
    **_BERT,
    **_PROJECTION,
)
_tiny(
    "test_clip_efficientnet.random",
    "clip_efficientnet_lite2.lit",
    side=65,
    stem=8,
    features=32,
    stages=[[1, 3, 1, 1, 8], [2, 5, 2, 2, 12], [1, 3, 2, 2, 16]],
    **_BERT,
    **_PROJECTION,
)
_tiny(
    "test_clip_resnet.random",
    "clip_resnet_small.scratch",
    image_size=32,
    image_widths=[8, 16],
    **_BERT,
    **_PROJECTION,
)
_tiny("test_nsfwjs.random", "nsfwjs_mobilenet_v2.gantman", side=64, depth_multiplier=0.05, hidden=[16, 8])
_tiny("test_opennsfw.random", "opennsfw.yahoo", side=64, stem=8, stages=[[4, 2], [6, 1], [8, 1]])
_tiny("test_prompt_bert.random", "prompt_minilm.multilabel", **_BERT)
_register(
    model_card("prompt_injection_minilm.jailguard", **_BERT, hidden=[8, 4]),
    "test_sentence_bert.random",
    "prompt_injection_minilm.jailguard",
    _sentence,
)
_tiny("test_sentence_words.random", "prompt_safety_minilm.zoo", **_BERT)
_words = {"context_length": len(WORDS), "vocabulary_size": len(WORDS), "folds": 2}
_register(
    model_card("profanity_tfidf.alt_profanity_check", **_words),
    "test_terms.random",
    "profanity_tfidf.alt_profanity_check",
    _terms,
)
_tiny("test_vision_regnet.random", "vision_regnet_tiny.plain", widths=[8, 16], depths=[1, 1], group_width=8)

_fusion = model_card("multimodal_nsfw_mobilenet.fusion", context_length=24)
_sizes = {key: value for key, value in _BERT.items() if key in _fusion.hparams}
_register(
    _fusion.replace(
        image=model_card("test_clip_resnet.random").image,
        hparams=_sizes | {"image_widths": [8, 16], "mirror": False, "embedding_dim": 16, "heads": 2},
    ),
    "test_multimodal_conv.fusion",
    "multimodal_nsfw_mobilenet.fusion",
    _resnet_fusion,
)

_heads = (
    "test_safeclip.random",
    "test_laion_nsfw.random",
    "test_safety_checker.random",
    "test_multihead.random",
    "test_q16.random",
)
register_model(
    panel_card("test_clip.panel", {name: model_card(name) for name in _heads}),
    builder="zoo.models.heads:Panel",
    policy="",
    pretrained=RANDOM,
)
