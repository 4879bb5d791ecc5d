"""Colours come out as a viewer with colour management shows them: profiles, PNG's own chunks, CMYK, LAB."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tests.inputs import profiles
from tests.inputs.files import encoded, with_chunks
from zoo.inputs.colour import HDR_IGNORED, PROFILE_IGNORED
from zoo.inputs.image import decode, decode_with_notes

Array = NDArray[Any]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def drawn(mode: str = "RGB", size: int = 48) -> Image.Image:
    """Smooth colours that hold all hues."""
    down, across = np.mgrid[0:size, 0:size] * 255 // (size - 1)
    bands = [across, down, 255 - (across + down) // 2, (across - down) % 256 // 3]
    count = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.stack(bands[:count], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if count == 1 else pixels, mode)


def by_littlecms(image: Image.Image, profile: bytes) -> Array:
    shown = ImageCms.profileToProfile(image, io.BytesIO(profile), SRGB, outputMode="RGB")
    assert shown is not None
    return np.asarray(shown).astype(int)


def furthest(found: Image.Image, wanted: Array) -> int:
    return int(np.abs(np.asarray(found).astype(int) - wanted).max())


@pytest.mark.parametrize("profile", [profiles.ADOBE_RGB, profiles.SWAPPED], ids=["adobe_rgb", "swapped"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_profile_is_followed(kind: str, profile: bytes) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind != "TIFF" else {}
    data = encoded(drawn(), kind, icc_profile=profile, **options)
    plain = Image.open(io.BytesIO(data)).convert("RGB")
    decoded = decode_with_notes(data)
    assert furthest(decoded.image, by_littlecms(plain, profile)) <= 3
    assert furthest(decoded.image, np.asarray(plain).astype(int)) > 20
    assert decoded.notes == ()
    assert "icc_profile" not in decoded.image.info  # whoever saves the pixels must not give them a profile once more


def test_adobe_rgb_is_what_its_specification_says() -> None:
    """The pure green of Adobe RGB lies outside of sRGB; grey is grey in both."""
    image = Image.new("RGB", (2, 1), (128, 128, 128))
    image.putpixel((1, 0), (100, 150, 120))
    found = np.asarray(decode(encoded(image, icc_profile=profiles.ADOBE_RGB)))[0]
    linear = (np.array([100, 150, 120]) / 255) ** 2.19922
    to_srgb = np.array([[1.39836, -0.39836, 0.0], [0.0, 1.0, 0.0], [0.0, -0.04293, 1.04293]])
    wanted = srgb_of(to_srgb @ linear)
    assert np.abs(found[0].astype(int) - 128).max() <= 2
    assert np.abs(found[1] - wanted).max() <= 3


def test_an_srgb_profile_changes_nothing_and_says_nothing() -> None:
    image = drawn()
    decoded = decode_with_notes(encoded(image, icc_profile=SRGB.tobytes()))
    assert np.array_equal(np.asarray(decoded.image), np.asarray(image))
    assert decoded.notes == ()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA"])
def test_profiles_of_colours_apply_to_other_modes(mode: str) -> None:
    image = drawn("L" if mode in ("L", "LA") else "RGB").convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(255)
    data = encoded(image, icc_profile=profiles.ADOBE_RGB)
    assert furthest(decode(data), by_littlecms(image.convert("RGB"), profiles.ADOBE_RGB)) <= 3


def test_colours_are_converted_before_they_are_laid_on_white() -> None:
    image = drawn("RGBA")
    image.putalpha(128)
    opaque = by_littlecms(image.convert("RGB"), profiles.SWAPPED)
    found = decode(encoded(image, icc_profile=profiles.SWAPPED))
    assert furthest(found, np.round((opaque * 128 + 255 * 127) / 255).astype(int)) <= 3


def test_a_grey_profile_of_grey() -> None:
    image = drawn("L")
    found = decode(encoded(image, icc_profile=profiles.GREY))
    assert furthest(found, by_littlecms(image, profiles.GREY)) <= 3
    assert np.asarray(found)[0, 24, 0] > np.asarray(image)[0, 24] + 40  # linear light


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_with_its_profile(kind: str) -> None:
    """A JPEG of Adobe's has inverted inks, a TIFF has not: Pillow writes and reads both so."""
    image = drawn("CMYK")
    data = encoded(image, kind, icc_profile=profiles.PRESS, **({"quality": 95} if kind == "JPEG" else {}))
    plain = Image.open(io.BytesIO(data))
    assert plain.mode == "CMYK"
    decoded = decode_with_notes(data)
    assert furthest(decoded.image, by_littlecms(plain, profiles.PRESS)) <= 3
    assert furthest(decoded.image, np.asarray(plain.convert("RGB")).astype(int)) > 20
    assert decoded.notes == ()


def test_cmyk_without_a_profile_is_mixed_plainly() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert furthest(decode(data), np.array([255, 0, 0])) <= 3


def test_lab_is_shown() -> None:
    data = encoded(Image.new("LAB", (8, 8), (140, 180, 170)), "TIFF")
    red, green, blue = np.asarray(decode(data))[4, 4].tolist()
    assert red > 150 > 110 > green > blue


@pytest.mark.parametrize(
    "broken",
    [b"not a profile at all, but long enough to be taken for one" * 4, profiles.ADOBE_RGB[:200], b"", profiles.PRESS],
    ids=["text", "cut", "empty", "of other colours"],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_broken_profile_leaves_the_plain_pixels_and_says_so(kind: str, broken: bytes) -> None:
    image = drawn()
    png = with_chunks(encoded(image), (b"iCCP", b"some name\0\0" + zlib.compress(broken)))
    segment = b"\xff\xe2" + struct.pack(">H", 2 + 14 + len(broken)) + b"ICC_PROFILE\0\x01\x01" + broken
    jpeg = encoded(image, "JPEG", quality=95)
    decoded = decode_with_notes(png if kind == "PNG" else jpeg[:2] + segment + jpeg[2:])
    assert decoded.notes == (PROFILE_IGNORED,)
    assert (
        furthest(decoded.image, np.asarray(image if kind == "PNG" else Image.open(io.BytesIO(jpeg))).astype(int)) == 0
    )


def test_a_profile_that_lacks_a_piece_is_ignored() -> None:
    jpeg = encoded(drawn(), "JPEG")
    segment = b"\xff\xe2" + struct.pack(">H", 2 + 14 + 200) + b"ICC_PROFILE\0\x01\x02" + profiles.ADOBE_RGB[:200]
    assert decode_with_notes(jpeg[:2] + segment + jpeg[2:]).notes == (PROFILE_IGNORED,)


def test_huge_profiles_are_no_reason_to_refuse_a_picture() -> None:
    image = drawn()
    known = profiles.ADOBE_RGB + bytes(2_000_000)  # Pillow itself reads no more than 1 MB
    huge = profiles.ADOBE_RGB + bytes(30_000_000)
    for profile, notes in ((known, ()), (huge, (PROFILE_IGNORED,))):
        decoded = decode_with_notes(with_chunks(encoded(image), (b"iCCP", b"x\0\0" + zlib.compress(profile))))
        assert decoded.notes == notes
    found = decode(with_chunks(encoded(image), (b"iCCP", b"x\0\0" + zlib.compress(known))))
    assert furthest(found, by_littlecms(image, profiles.ADOBE_RGB)) <= 3


def srgb_of(light: Array) -> Array:
    """Levels of light in [0, 1], by sRGB's curve."""
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(1e-9) ** (1 / 2.4) - 0.055)


def gamma(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 100_000))


#: x and y of white, red, green and blue.
DISPLAY_P3 = (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
SRGB_CHROMA = (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))


def test_the_gamma_of_a_png() -> None:
    image = Image.new("RGB", (1, 1), (128, 64, 255))
    assert furthest(decode(with_chunks(encoded(image), gamma(1.0))), np.array([188, 137, 255])) <= 2
    grey = Image.new("L", (1, 1), 128)
    assert furthest(decode(with_chunks(encoded(grey), gamma(1.0))), np.array([188, 188, 188])) <= 2
    for same in (1 / 2.2, 0.46):
        assert furthest(decode(with_chunks(encoded(image), gamma(same), SRGB_CHROMA)), np.array([128, 64, 255])) == 0


def test_the_primaries_of_a_png() -> None:
    """Display P3 by cHRM, with sRGB's curve where there is no gamma."""
    linear = np.array([0.6, 0.2, 0.3])
    to_srgb = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
    image = Image.new("RGB", (1, 1), tuple(np.round(srgb_of(linear)).astype(int).tolist()))
    for chunks in ((DISPLAY_P3,), (DISPLAY_P3, gamma(1 / 2.2)), ((b"cICP", bytes([12, 13, 0, 1])),)):
        found = decode(with_chunks(encoded(image), *chunks))
        assert furthest(found, np.round(srgb_of(to_srgb @ linear)).astype(int)) <= 3, chunks


def test_srgb_and_profiles_come_before_gamma() -> None:
    image = drawn()
    data = with_chunks(encoded(image), (b"sRGB", b"\0"), gamma(1.0))
    assert furthest(decode(data), np.asarray(image).astype(int)) == 0
    data = with_chunks(encoded(image, icc_profile=profiles.SWAPPED), gamma(1.0))
    assert furthest(decode(data), by_littlecms(image, profiles.SWAPPED)) <= 3


@pytest.mark.parametrize(
    "chunk", [gamma(0.0), (b"cHRM", bytes(32)), (b"cHRM", b"\xff" * 32)], ids=["gamma", "0", "max"]
)
def test_colours_that_cannot_be_are_ignored(chunk: tuple[bytes, bytes]) -> None:
    image = drawn()
    decoded = decode_with_notes(with_chunks(encoded(image), chunk))
    assert decoded.notes == (PROFILE_IGNORED,)
    assert furthest(decoded.image, np.asarray(image).astype(int)) == 0


def test_high_dynamic_range_is_noted() -> None:
    decoded = decode_with_notes(with_chunks(encoded(drawn()), (b"cICP", bytes([9, 16, 0, 1]))))
    assert decoded.notes == (HDR_IGNORED,)
    avif = encoded(drawn(), "AVIF")
    place = avif.index(b"colrnclx") + 8
    assert decode_with_notes(avif).notes == ()
    assert decode_with_notes(avif[:place] + struct.pack(">HH", 9, 16) + avif[place + 4 :]).notes == (HDR_IGNORED,)


def test_a_large_picture_is_converted_in_strips_as_a_small_one() -> None:
    image = drawn("RGBA", 64).resize((1500, 1400))
    image.putalpha(255)
    found = decode(encoded(image, icc_profile=profiles.ADOBE_RGB, compress_level=1))
    assert furthest(found, by_littlecms(image.convert("RGB"), profiles.ADOBE_RGB)) <= 3
