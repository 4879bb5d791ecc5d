"""What of a picture the vision tower is not given: told in the verdict, never safe beyond the tolerance."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from zoo.contract.policy import Policy
from zoo.contract.verdict import Unseen
from zoo.errors import BadArgumentError
from zoo.guard.detector import Detector
from zoo.guard.guard import Guard
from zoo.guard.lvlm import unseen_by_tower
from zoo.inputs.image import decode_with_notes

if TYPE_CHECKING:
    from tests.guard.conftest import Setup

SHORT = "USER: <image>\nWhat? ASSISTANT:"
CROP: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
SQUARE: dict[str, Any] = {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}}
PROCESSORS: dict[str, Any] = {
    "crop": CLIPImageProcessorPil(**CROP),
    "crop of more": CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 32, "width": 40}),
    "no crop": CLIPImageProcessorPil(**CROP, do_center_crop=False),
    "no resize": CLIPImageProcessorPil(**CROP, do_resize=False),
    "squash": CLIPImageProcessorPil(**SQUARE),
    "llava": LlavaImageProcessorPil(**CROP),
    "pad": LlavaImageProcessorPil(**CROP, do_pad=True),
    "pad, crop of more": LlavaImageProcessorPil(**(CROP | {"size": {"shortest_edge": 64}}), do_pad=True),
    "tiles": LlavaNextImageProcessorPil(**CROP, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]]),
}
STRIPS = 32


def _shown(processor: Any, size: tuple[int, int], axis: int) -> float:
    """The share of strips along an axis that change a pixel of what the processor gives."""
    pictures = [np.zeros((size[1], size[0], 3), np.uint8) for _ in range(STRIPS + 1)]
    for strip, picture in enumerate(pictures[1:]):
        length = picture.shape[axis]
        first, last = strip * length // STRIPS, (strip + 1) * length // STRIPS
        picture[(slice(None),) * axis + (slice(first, last),)] = 255
    black, *others = processor(images=[Image.fromarray(one) for one in pictures], return_tensors="pt")["pixel_values"]
    return float(np.mean([bool((other - black).abs().max() > 0.5) for other in others]))


@pytest.mark.parametrize("size", [(96, 96), (160, 96), (96, 320)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_border_is_what_changes_no_pixel(name: str, size: tuple[int, int]) -> None:
    processor = PROCESSORS[name]
    unseen = unseen_by_tower(processor, decode_with_notes(Image.new("RGB", size)))
    assert set(unseen) <= {"border"}
    found = unseen["border"].share if unseen else 0.0
    wanted = 1 - _shown(processor, size, 0) * _shown(processor, size, 1)
    assert found == pytest.approx(wanted, abs=2.5 / STRIPS)
    assert (found == 0) == (wanted == 0)


def test_a_processor_that_is_not_known_may_leave_out_everything() -> None:
    picture = decode_with_notes(Image.new("RGB", (8, 8)))
    for other in (ViTImageProcessorPil(), CLIPImageProcessorPil(size={"longest_edge": 32})):
        assert str(unseen_by_tower(other, picture)["border"]).endswith("crops is not known)")
        assert unseen_by_tower(other, picture)["border"].share == 1


@pytest.mark.parametrize("correction", ["instruct", "refuse", "flag"])
def test_what_neither_sees_is_for_review_and_changes_no_answer(tiny: Setup, correction: Any) -> None:
    guard, wide = tiny.guard(correction=correction), tiny.plain("green", (192, 64))
    inputs = guard.inputs([wide, tiny.plain("red", (192, 64))], [SHORT, SHORT])
    output = guard.generate(**inputs, max_new_tokens=4)
    (green,), (red,) = output.verdicts
    assert (green.decision, green.category, green.is_safe, green.is_flagged) == ("review", None, False, False)
    assert green.unseen is not None
    assert green.unseen["border"].share == pytest.approx(2 / 3)
    assert green.detail == "not looked at: border 0.67"
    assert (red.decision, red.category, red.unseen) == ("unsafe", "red_signs", green.unseen)
    assert output.flagged == [False, True]
    plain = tiny.model.generate(**tiny.inputs([wide], [SHORT]), max_new_tokens=4)
    alone = guard.generate(**guard.inputs([wide], [SHORT]), max_new_tokens=4)
    assert torch.equal(alone.sequences, plain)
    (answer,) = guard.answer([wide], [SHORT], max_new_tokens=4)
    assert (answer.flagged, answer.corrected, answer.verdicts) == (False, False, [green])


def test_nothing_is_unseen_where_tiles_show_it_all(tall: Setup) -> None:
    (answer,) = tall.guard().answer([tall.plain("green", (192, 64))], [SHORT], max_new_tokens=2)
    assert (answer.verdicts[0].decision, answer.verdicts[0].unseen) == ("safe", {})


def test_a_border_within_the_tolerance_is_told(tiny: Setup) -> None:
    narrow, wide = tiny.plain("green", (70, 64)), tiny.plain("green", (96, 64))
    guard = tiny.guard()
    verdict = guard.screen(**guard.inputs([narrow], [SHORT])).verdicts[0][0]
    assert verdict.is_safe
    assert verdict.unseen is not None
    assert verdict.unseen["border"].tolerated
    allowing = replace(tiny.policy, unseen="allow")
    guard = Guard(tiny.model, tiny.processor, Detector(tiny.release, allowing))
    assert guard.screen(**guard.inputs([wide], [SHORT])).verdicts[0][0].is_safe


def test_of_pixels_alone_it_is_not_known(tiny: Setup) -> None:
    inputs = tiny.inputs([tiny.plain("green", (192, 64))], [SHORT])
    assert tiny.guard().screen(**inputs).verdicts[0][0].unseen is None
    told = tiny.guard().correct({**inputs, "unseen": [{"frames": Unseen(1, 2)}]})
    assert told.screening.verdicts[0][0].decision == "review"
    assert "unseen" not in told.inputs
    with pytest.raises(BadArgumentError, match="`unseen` is of 2 images, and pixel_values of 1"):
        tiny.guard().generate(**inputs, unseen=[None, None])


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_frames_damage_and_what_is_hidden_are_told(setup: Setup) -> None:
    animation = _file(setup.green, "GIF", save_all=True, append_images=[setup.red, setup.blue])
    damaged = _file(setup.green, "PNG")[:-4] + b"0000"  # the last checksum
    hidden = _file(Image.merge("RGBA", [*setup.red.split(), Image.new("L", (64, 64), 0)]), "PNG")
    guard = setup.guard(correction="refuse")
    prompts = ["<image><image>\nBoth?", SHORT, SHORT]
    answers = guard.answer([[setup.green, animation], damaged, hidden], prompts, max_new_tokens=2)
    verdicts = [verdict for answer in answers for verdict in answer.verdicts]
    assert [[*(verdict.unseen or {})] for verdict in verdicts] == [[], ["frames"], ["damaged"], ["hidden"]]
    assert str((verdicts[1].unseen or {})["frames"]) == "2 of 3"
    assert [verdict.decision == "safe" for verdict in verdicts] == [True, False, False, False]


def test_a_flagged_tile_outranks_what_is_unseen(tiny: Setup) -> None:
    """Both are for review: the tile that a category was flagged in decides, though another one has a higher score."""
    content = tiny.policy.to_dict()
    neutral, red = content["categories"]
    red = red | {"action": "review", "threshold": {"value": 0.2}}
    other = red | {"name": "dogs", "descriptors": ["a dog in a park"], "threshold": {"value": 0.5}}
    content["categories"] = [neutral, red, other]
    detector = Detector(tiny.release, Policy.from_dict(content))
    table = torch.tensor([[0.35, 0.35, 0.25, 0.05], [0.30, 0.29, 0.01, 0.40]])
    (verdict,) = detector.verdicts(table, [2], [{"border": Unseen(0.5, 1)}])
    assert (verdict.decision, verdict.category, verdict.is_flagged) == ("review", "red_signs", True)
