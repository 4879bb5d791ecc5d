"""Every `test_*` model, as parameters of a test. Those that are alike are slow: `make test` leaves them out."""

from __future__ import annotations

import pytest

from zoo.registry import list_models

#: The panel holds the first four heads; the rest have the towers of other models, or convolutions as others have.
ALIKE = (
    "test_laion_nsfw.random",
    "test_multihead.random",
    "test_sentence_bert.random",
    "test_sentence_words.random",
    "test_q16.random",
    "test_safety_checker.random",
    "test_multimodal_nsfw.as_released",
    "test_clip_efficientnet.random",
    "test_clip_mobilenet_v1.random",
    "test_clip_resnet.random",
    "test_opennsfw.random",
    "test_vision_regnet.random",
)
#: Two towers with the phrases of a policy, convolutions and a fusion of both inputs, texts alone, a classifier.
KINDS = (
    "test_safeclip.random",
    "test_multimodal_conv.fusion",
    "test_prompt_bert.random",
    "test_terms.random",
    "test_nsfwjs.random",
)
EVERY_MODEL = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE), id=name) for name in list_models("test_*")
]
#: For what takes many seconds a model.
OF_EACH_KIND = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in KINDS), id=name) for name in list_models("test_*")
]
