"""Other vision-language models with a CLIP tower: several layers at once, videos beside images, adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import CLIPVisionConfig

from zoo.errors import BadInputError
from zoo.guard.insertion import instructed

if TYPE_CHECKING:
    from tests.guard.conftest import Setup

PROMPT = "USER: <image>\nWhat is shown in this image? ASSISTANT:"
CORRECTED = "USER: <image>" + instructed("\nWhat is shown in this image? ASSISTANT:")
SHORT = "<image><image>\nBoth? ASSISTANT:"


@pytest.fixture
def several_layers(tiny: Setup) -> Setup:
    """VipLLaVA, whose projector reads several layers, and never the one that the detector reads."""
    from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(**tiny.model.config.vision_config.to_dict()),
        text_config=tiny.model.config.text_config,
        image_token_index=tiny.model.config.image_token_id,
        vision_feature_layers=[-1, 0],
    )
    return tiny.other(VipLlavaForConditionalGeneration, config)


@pytest.fixture
def with_video(tall: Setup) -> Setup:
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**tall.model.config.vision_config.to_dict()),
        text_config=tall.model.config.text_config,
        image_token_index=tall.model.config.image_token_id,
        video_token_index=5,
        image_grid_pinpoints=tall.model.config.image_grid_pinpoints,
        vision_feature_layer=-2,
    )
    return tall.other(LlavaNextVideoForConditionalGeneration, config)


@pytest.fixture(params=["several_layers", "with_video"])
def other(request: pytest.FixtureRequest) -> Setup:
    setup: Setup = request.getfixturevalue(request.param)
    return setup


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}])
def test_safe_pictures_are_answered_bit_for_bit(other: Setup, options: dict[str, Any]) -> None:
    inputs = other.inputs([other.green, other.blue, other.green], [PROMPT, SHORT])
    torch.manual_seed(0)
    plain = other.model.generate(**inputs, max_new_tokens=5, **options)
    torch.manual_seed(0)
    assert torch.equal(other.guard().generate(**inputs, max_new_tokens=5, **options).sequences, plain)


def test_flagged_pictures_are_instructed_or_refused(other: Setup) -> None:
    pictures = [other.red, other.green, other.green]
    inputs = other.inputs(pictures, [PROMPT, SHORT])
    fresh = other.inputs(pictures, [CORRECTED, SHORT])
    guard = other.guard()
    assert guard.tower_matches
    plain = other.model.generate(**fresh, max_new_tokens=5)
    assert torch.equal(guard.generate(**inputs, max_new_tokens=5).sequences, plain)
    refused = other.guard(correction="refuse").generate(**inputs, max_new_tokens=5)
    assert refused.flagged == [True, False]
    unguarded = other.model.generate(**inputs, max_new_tokens=5)
    width = inputs["input_ids"].shape[1]
    assert refused.text[1] == other.processor.tokenizer.decode(unguarded[1, width:], skip_special_tokens=True)


def test_videos_are_not_let_through(with_video: Setup) -> None:
    with pytest.raises(BadInputError, match="no videos"):
        with_video.guard().generate(
            input_ids=torch.tensor([[1, 5, 5]]), pixel_values_videos=torch.zeros(1, 2, 3, 32, 32), max_new_tokens=2
        )


def test_inside_peft(tiny: Setup) -> None:
    peft = pytest.importorskip("peft")
    tiny.model = peft.get_peft_model(
        tiny.model, peft.LoraConfig(r=2, target_modules=r".*language_model.*q_proj", task_type="CAUSAL_LM")
    ).eval()
    guard = tiny.guard()
    inputs = tiny.inputs([tiny.red, tiny.green, tiny.green], [PROMPT, SHORT])
    fresh = tiny.inputs([tiny.red, tiny.green, tiny.green], [CORRECTED, SHORT])
    assert guard.tower_matches
    assert torch.equal(
        guard.generate(**inputs, max_new_tokens=4).sequences, tiny.model.generate(**fresh, max_new_tokens=4)
    )
    corrected = guard.correct(inputs).inputs
    assert torch.equal(tiny.model(**corrected).logits, tiny.model(**fresh).logits)
