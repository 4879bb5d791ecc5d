"""Pictures of 1 to 32 bits come out as a viewer shows them, or are refused with a reason."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.inputs.files import png, tiff
from zoo.errors import BadDataError
from zoo.inputs.image import decode


def greys(data: bytes) -> list[int]:
    pixels = np.asarray(decode(data))
    assert (pixels == pixels[..., :1]).all()
    return [int(level) for level in pixels[0, :, 0]]


RAMP = np.array([[0, 21845, 43690, 65535]])
LEVELS = [0, 85, 170, 255]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_16_bits(order: str) -> None:
    assert greys(tiff(RAMP.astype(order + "u2").tobytes(), (4, 1), 16, 1, order=order)) == LEVELS


def test_a_tiff_of_12_bits() -> None:
    """Two values lie in three bytes; white is 4,095."""
    bits = "".join(f"{value:012b}" for value in (0, 1365, 2730, 4095))
    assert greys(tiff(int(bits, 2).to_bytes(6), (4, 1), 12, 1)) == LEVELS


def test_a_tiff_of_32_bits() -> None:
    values = np.array([0, 0x55555555, 0xAAAAAAAA, 0xFFFFFFFF], dtype="<u4")
    assert greys(tiff(values.tobytes(), (4, 1), 32, 1)) == LEVELS


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_white_is_zero(bits: int) -> None:
    most = 2**bits - 1
    values = [0, most, most, 0] if bits == 1 else [0, most // 3, most * 2 // 3, most]
    if bits == 16:
        pixels = np.array(values, dtype="<u2").tobytes()
    else:
        pixels = int("".join(f"{value:0{bits}b}" for value in values).ljust(8 * -(-4 * bits // 8), "0"), 2).to_bytes(
            -(-4 * bits // 8)
        )
    assert greys(tiff(pixels, (4, 1), bits, 0)) == ([255, 0, 0, 255] if bits == 1 else LEVELS[::-1])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(RAMP.astype("<i2").tobytes(), (4, 1), 16, 1, form=2), "signed pixels have no defined black"),
        (tiff(RAMP.astype("<i4").tobytes(), (4, 1), 32, 1, form=2), "signed pixels have no defined black"),
        (tiff(bytes(4), (4, 1), 8, 1, form=2), "signed pixels have no defined black"),
        (tiff(RAMP.astype("<f4").tobytes(), (4, 1), 32, 1, form=3), "floating-point pixels have no defined range"),
        (tiff(RAMP.astype("<f8").tobytes(), (4, 1), 64, 1, form=3), "a TIFF of a kind that is not read"),
        (tiff(RAMP.astype(">u2").tobytes(), (4, 1), 16, 0, order=">"), "a TIFF of a kind that is not read"),
        (tiff(RAMP.astype("<u4").tobytes(), (4, 1), 32, 0), "a TIFF of a kind that is not read"),
    ],
    ids=["signed 16", "signed 32", "signed 8", "float", "double", "big-endian white is 0", "32 bits white is 0"],
)
def test_what_has_no_look_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadDataError, match=reason):
        decode(data)


@pytest.mark.parametrize(
    ("kind", "values", "wanted"),
    [
        (0, RAMP[..., None], [[level] * 3 for level in LEVELS]),
        (2, np.array([[[65535, 0, 0], [0, 32896, 65535]]]), [[255, 0, 0], [0, 128, 255]]),
        (4, np.array([[[0, 65535], [0, 0], [65535, 0], [0, 32896]]]), [[0] * 3, [255] * 3, [255] * 3, [127] * 3]),
        (6, np.array([[[65535, 0, 0, 65535], [0, 0, 0, 0]]]), [[255, 0, 0], [255, 255, 255]]),
    ],
    ids=["grey", "colours", "grey with alpha", "colours with alpha"],
)
def test_a_png_of_16_bits(kind: int, values: NDArray[Any], wanted: list[list[int]]) -> None:
    assert np.abs(np.asarray(decode(png(values, 16, kind)))[0].astype(int) - np.array(wanted)).max() <= 1


def test_transparent_grey_of_16_bits() -> None:
    """One value is clear; its neighbour, which has the same upper byte, is not."""
    data = png(np.array([[[0x1234], [0x1235], [0x9234]]]), 16, 0, (b"tRNS", struct.pack(">H", 0x1234)))
    assert greys(data) == [255, 0x12, 0x92]


def test_a_transparent_colour_of_16_bits() -> None:
    values = np.array([[[0x1234, 0x5678, 0x9ABC], [0x1234, 0x5678, 0x9ABD], [0x1234, 0x5679, 0x9ABC], [0, 0, 0]]])
    data = png(values, 16, 2, (b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)))
    assert np.asarray(decode(data))[0].tolist() == [[255] * 3, [0x12, 0x56, 0x9A], [0x12, 0x56, 0x9A], [0, 0, 0]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_grey_of_few_bits(depth: int) -> None:
    data = png(np.array([[[1], [0], [1], [0]]]), depth, 0, (b"tRNS", struct.pack(">H", 1)))
    assert greys(data) == [255, 0, 255, 0]
    data = png(np.array([[[1], [0], [1], [0]]]), depth, 0, (b"tRNS", struct.pack(">H", 0)))
    assert greys(data) == [255 // (2**depth - 1), 255, 255 // (2**depth - 1), 255]


def test_a_transparent_colour_of_8_bits() -> None:
    values = np.array([[[200, 20, 20], [20, 200, 20]]])
    data = png(values, 8, 2, (b"tRNS", struct.pack(">HHH", 200, 20, 20)))
    assert np.asarray(decode(data))[0].tolist() == [[255] * 3, [20, 200, 20]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa", "PA", "P"])
def test_alpha_of_every_mode_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 1), (100, 100, 100, 255))
    image.putpixel((1, 0), (100, 100, 100, 0))
    image.putpixel((2, 0), (100, 100, 100, 128))
    shown = image.convert("LA" if mode in ("LA", "La", "PA") else "RGBA")
    if mode == "P":
        palette = Image.new("P", (4, 1))
        palette.putpalette([100, 100, 100] * 3)
        palette.putdata([0, 1, 2, 0])
        stream = io.BytesIO()
        palette.save(stream, "PNG", transparency=bytes([255, 0, 128]))
        pixels = np.asarray(decode(stream.getvalue()))
    else:
        shown = image.convert("LA" if mode in ("LA", "La", "PA") else "RGBA").convert(mode)
        if mode == "PA":
            shown.putalpha(image.getchannel("A"))  # Pillow loses it on the way to PA
        pixels = np.asarray(decode(shown))
    assert np.abs(pixels[0, :, 0].astype(int) - [100, 255, 177, 100]).max() <= 1
