"""What a transparent picture shows on other grounds than white, and that others cost nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.inputs.files import encoded
from zoo.inputs import pixels
from zoo.inputs.image import decode, decode_with_notes
from zoo.inputs.pixels import BARE, ON_BLACK

PHOTO = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)


def _with(alpha: Any, colours: Any = PHOTO) -> Image.Image:
    return Image.fromarray(np.dstack([colours, np.broadcast_to(np.uint8(alpha), colours.shape[:2])]))


def test_a_picture_lies_on_black_and_on_white() -> None:
    picture = _with(128)
    decoded = decode_with_notes(picture)
    assert (list(decoded.grounds), decoded.transparent) == ([ON_BLACK], 1.0)
    on_white, on_black = (np.asarray(one, dtype=int) for one in (decoded.image, decoded.grounds[ON_BLACK]))
    assert np.abs(on_white - on_black - 127).max() <= 1
    assert np.array_equal(on_white, np.asarray(decode(picture)))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
def test_a_picture_without_transparency_has_one_ground(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels.Grounds, "layers", None)  # it is not asked
    decoded = decode_with_notes(Image.fromarray(PHOTO).convert(mode))
    assert (decoded.grounds, decoded.transparent) == ({}, 0)


def test_what_is_hardly_transparent_has_one_ground() -> None:
    corner = np.full((96, 128), 255, np.uint8)
    corner[0, :8] = 0  # a rounded corner
    for alpha in (250, corner):
        decoded = decode_with_notes(_with(alpha))
        assert (decoded.grounds, decoded.transparent) == ({}, 0)


@pytest.mark.parametrize(("level", "found"), [(0, True), (40, True), (120, False)])
def test_a_picture_beneath_clear_pixels_is_found(level: int, found: bool) -> None:
    alpha = np.full((96, 128), 255, np.uint8)
    alpha[:48] = level
    decoded = decode_with_notes(encoded(_with(alpha)))
    assert (BARE in decoded.grounds) == found
    if found:
        assert np.array_equal(np.asarray(decoded.grounds[BARE]), PHOTO)


@pytest.mark.parametrize("colour", [0, 255])
def test_one_colour_beneath_clear_pixels_is_no_picture(colour: int) -> None:
    alpha = np.full((96, 128), 255, np.uint8)
    alpha[:48] = 0
    colours = PHOTO.copy()
    colours[:48] = colour
    assert list(decode_with_notes(_with(alpha, colours)).grounds) == [ON_BLACK]


def test_a_palette_and_a_grey_with_alpha_have_grounds_too() -> None:
    grey = Image.fromarray(np.dstack([PHOTO[..., 0], np.full((96, 128), 100, np.uint8)]))
    palette = _with(np.uint8(PHOTO[..., 0] // 128 * 255)).quantize(32)
    for image in (grey, palette):
        assert ON_BLACK in decode_with_notes(encoded(image)).grounds


def test_a_large_picture_is_reduced_on_every_ground(monkeypatch: pytest.MonkeyPatch) -> None:
    large = _with(0, PHOTO.repeat(8, 0).repeat(8, 1))
    decoded = decode_with_notes(encoded(large), need=24)
    assert decoded.scale == 8
    assert {image.size for image in (decoded.image, *decoded.grounds.values())} == {(128, 96)}
    assert np.array_equal(np.asarray(decoded.grounds[BARE]), PHOTO)
    monkeypatch.setattr(pixels, "_MOST_PIXELS", 1000)
    decoded = decode_with_notes(encoded(large), need=24)
    assert (decoded.grounds, decoded.transparent) == ({}, 1.0)
