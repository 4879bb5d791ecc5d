"""The multimodal classifiers: as released the prompt is ignored; the fusion reads both, and either may be missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.models.base import ZooModel
from zoo.registry import create_model


def _outside_clip(name: str) -> int:
    with torch.device("meta"):
        model = create_model(name)
    return sum(p.numel() for key, p in model.named_parameters() if not key.startswith(("image_tower.", "text_tower.")))


def test_as_released_has_the_published_number_of_parameters() -> None:
    assert _outside_clip("multimodal_nsfw_vit_b32.as_released") == 2_366_466


#: The sizes of a test model on the architecture with convolutional towers.
SMALL = {
    "vocabulary_size": 300,
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "depth_multiplier": 0.1,
    "image_size": 32,
    "embedding_dim": 16,
    "heads": 2,
}
FUSIONS = ("test_multimodal_nsfw.fusion", "test_multimodal_conv.fusion")


def _model(name: str) -> ZooModel:
    torch.manual_seed(1)
    return create_model(name, **(SMALL if "mobilenet" in name else {}))


def _inputs(model: ZooModel) -> tuple[Tensor, Tensor, Tensor]:
    tokens = model.codec().encode(["a quiet street at noon", "two dogs", "the red car near a house"])
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    return pixels, torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)


@pytest.mark.parametrize("name", ["test_multimodal_nsfw.as_released", "multimodal_nsfw_mobilenet.as_released"])
def test_as_released_ignores_the_prompt(name: str) -> None:
    model = _model(name).double()  # in float64 rounding cannot be mistaken for an influence
    pixels, ids, mask = _inputs(model)
    pixels = pixels.double()
    logits = model(pixels, ids, mask)
    assert (model(pixels, ids.roll(1, 0), mask.roll(1, 0)) - logits).abs().max() < 1e-12
    assert (model(pixels, torch.randint(2, 300, ids.shape), torch.ones_like(mask)) - logits).abs().max() < 1e-12
    assert (model(pixels.roll(1, 0), ids, mask) - logits).abs().amax(dim=1).min() > 1e-6
    logits.sum().backward()
    learned = [
        p.grad.abs().max() for key, p in model.named_parameters() if key.startswith("text_") and p.grad is not None
    ]
    assert max(learned, default=0) < 1e-12  # so it could not learn to read the prompt either
    assert any("the prompt never changes the answer" in limit for limit in model.card.limits)


@torch.inference_mode()
@pytest.mark.parametrize("name", [*FUSIONS, "multimodal_nsfw_mobilenet.fusion"])
def test_fusion_reads_the_prompt_and_the_image(name: str) -> None:
    model = _model(name)
    pixels, ids, mask = _inputs(model)
    here = torch.ones(3, dtype=torch.bool)
    logits = model(pixels, ids, mask, here)
    other_prompt = model(pixels, ids.roll(1, 0), mask.roll(1, 0), here) - logits
    other_image = model(pixels.roll(1, 0), ids, mask, here) - logits
    assert other_prompt.abs().amax(dim=1).min() > 1e-4
    assert other_image.abs().amax(dim=1).min() > 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FUSIONS)
def test_fusion_never_looks_at_what_is_missing(name: str, attention: str) -> None:
    model = _model(name)
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = attention
    pixels, ids, mask = _inputs(model)
    present = torch.tensor([True, False, True])
    mask[2] = 0
    logits = model(pixels, ids, mask, present)
    assert logits.isfinite().all()
    pixels[1], ids[2] = 1 - pixels[1], 7
    ids[mask == 0] = 9  # padding of the others, too
    assert (model(pixels, ids, mask, present) - logits).abs().max() < 1e-6
    pixels[0] = 1 - pixels[0]
    assert (model(pixels, ids, mask, present) - logits)[0].abs().max() > 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("name", FUSIONS)
def test_a_neighbour_in_the_batch_does_not_matter(name: str) -> None:
    model = _model(name)
    pixels, ids, mask = _inputs(model)
    mask[0] = 0
    present = torch.tensor([True, False, True])
    together = model(pixels, ids, mask, present)
    alone = torch.cat([model(pixels[i : i + 1], ids[i : i + 1], mask[i : i + 1], present[i : i + 1]) for i in range(3)])
    assert (together - alone).abs().max() < 1e-5


@pytest.mark.parametrize("name", FUSIONS)
def test_a_missing_input_trains_its_stand_in_without_nan(name: str) -> None:
    model = _model(name)
    pixels, ids, mask = _inputs(model)
    mask[2] = 0
    model(pixels, ids, mask, torch.tensor([True, False, True])).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), key
    for key in ("image_missing", "text_missing"):
        gradient = model.get_parameter(key).grad
        assert gradient is not None
        assert gradient.abs().max() > 0
