"""Decoding: golden files come out with the right size and colours; what is no image is refused with its reason."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.contract.card import ImageInput
from zoo.errors import BadInputError, BadTypeError
from zoo.inputs.image import ImageLimits, decode, fit, load

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
Colours = dict[tuple[int, int], tuple[int, int, int]]

#: Size, and the colour at chosen pixels (x, y), of each golden file.
EXPECTED: dict[str, tuple[tuple[int, int], Colours]] = {
    "exif_rotated.jpg": ((40, 60), {(20, 10): RED, (20, 50): BLUE}),
    "cmyk.jpg": ((16, 16), {(8, 8): RED}),
    "transparent.png": ((20, 10), {(4, 5): RED, (15, 5): WHITE}),
    "palette.png": ((20, 10), {(4, 5): RED, (15, 5): WHITE}),
    "grey16.png": ((12, 6), {(1, 3): (0, 0, 0), (5, 3): (100, 100, 100), (9, 3): WHITE}),
    "grey.jpg": ((16, 8), {(8, 4): (77, 77, 77)}),
    "animated.gif": ((12, 12), {(6, 6): GREEN}),
    "pixel.png": ((1, 1), {(0, 0): (10, 20, 30)}),
    "thin.png": ((3000, 1), {(1500, 0): (200, 100, 50)}),
    "large.jpg": ((2000, 1500), {(1000, 750): (127, 127, 128), (1990, 10): (253, 1, 128)}),
    "webp.webp": ((60, 40), {(10, 20): RED, (50, 20): BLUE}),
    "progressive.jpg": ((60, 40), {(10, 20): RED, (50, 20): BLUE}),
}
SPEC = ImageInput(32, "shortest_edge_crop", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_every_golden_file_is_expected(golden: dict[str, bytes]) -> None:
    assert set(golden) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_files_decode(name: str, golden: dict[str, bytes], tmp_path: Path) -> None:
    size, colours = EXPECTED[name]
    path = tmp_path / name
    path.write_bytes(golden[name])
    for source in (golden[name], path, str(path)):
        image = decode(source)
        assert (image.mode, image.size) == ("RGB", size)
        for place, colour in colours.items():
            found = np.array(image.getpixel(place))
            assert np.abs(found - colour).max() <= 5, f"{place} is {found}"
    pixels = load(path, SPEC)
    assert (pixels.shape, pixels.dtype.name) == ((32, 32, 3), "uint8")


def test_an_array_is_taken_as_it_is() -> None:
    array = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(decode(array)), array)
    assert np.array_equal(np.asarray(decode(array[:, ::-1])), array[:, ::-1])


@pytest.mark.parametrize(
    ("resize", "interpolation"),
    [
        ("shortest_edge_crop", "bicubic"),
        ("shortest_edge_crop", "bilinear"),
        ("squash", "bilinear"),
        ("squash", "bilinear_align_corners"),
    ],
)
def test_an_array_that_fits_is_what_resizing_it_would_give_and_a_copy(resize: Any, interpolation: Any) -> None:
    spec = ImageInput(32, resize, interpolation, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = load(array, spec)
    assert np.array_equal(found, fit(decode(array), spec))
    assert np.array_equal(found, array)
    array[:] = 0  # a caller may use its buffer again before the engine has run
    assert found.any()
    with pytest.raises(BadTypeError, match="int64"):
        load(array.astype(np.int64), spec)


def test_dark_16_bit_grey_stays_dark(tmp_path: Path) -> None:
    path = tmp_path / "dark.png"
    Image.fromarray(np.full((4, 4), 250, dtype=np.uint16)).save(path)
    assert np.asarray(decode(path)).max() == 0  # 250 of 65,535


def test_the_crop_is_the_centre() -> None:
    stripes = np.zeros((32, 96, 3), dtype=np.uint8)
    stripes[:, :32, 0], stripes[:, 32:64, 1], stripes[:, 64:, 2] = 255, 255, 255
    assert load(stripes, SPEC)[16, 16].tolist() == [0, 255, 0]
    assert np.array_equal(load(stripes, SPEC), stripes[:, 32:64])  # no resize at all


def test_squash_keeps_the_whole() -> None:
    halves = np.zeros((10, 200, 3), dtype=np.uint8)
    halves[:, 100:] = 255
    for interpolation in ("bicubic", "bilinear", "bilinear_align_corners"):
        spec = ImageInput(32, "squash", interpolation, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        pixels = fit(decode(halves), spec)
        assert (pixels[16, 0, 0], pixels[16, 31, 0]) == (0, 255)


def _header_of_a_huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not an image .it looks like HTML"),
        (b"%PDF-1.7 and so on", "it is a PDF"),
        (b"\x00\x01\x02\x03 nothing known", r"it starts with 00 01 02 03"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (_header_of_a_huge_png(), "more than .* pixels, Pillow's own limit .a decompression bomb"),
        ("null\0character.jpg", "cannot be read"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_what_is_no_image_is_refused(source: Any, named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        decode(source)


def test_bad_paths_are_refused_by_name(tmp_path: Path, golden: dict[str, bytes]) -> None:
    with pytest.raises(BadInputError, match=r"gone\.jpg: no such file"):
        decode(tmp_path / "gone.jpg")
    with pytest.raises(BadInputError, match="is a directory"):
        decode(tmp_path)
    page = tmp_path / "page.jpg"
    page.write_bytes(b"\n  <html>error</html>")
    with pytest.raises(BadInputError, match=r"page\.jpg: not an image .it looks like HTML"):
        decode(page)
    strange = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.jpg"))
    with pytest.raises(BadInputError, match=r"udcff\.jpg: no such file") as refusal:
        decode(strange)
    str(refusal.value).encode()  # valid Unicode, so that it can be written to a log


@pytest.mark.parametrize("name", ["large.jpg", "progressive.jpg", "webp.webp", "transparent.png"])
def test_a_truncated_file_is_refused_and_not_padded_with_grey(name: str, golden: dict[str, bytes]) -> None:
    with pytest.raises(BadInputError, match="broken or truncated image"):
        decode(golden[name][: len(golden[name]) * 2 // 3])


def test_limits(golden: dict[str, bytes], tmp_path: Path) -> None:
    data = golden["large.jpg"]
    path = tmp_path / "large.jpg"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(BadInputError, match="larger than the limit of 1,000 bytes"):
            decode(source, ImageLimits(max_bytes=1000))
        with pytest.raises(BadInputError, match=r"2000 x 1500 pixels, the limit is 2,999,999"):
            decode(source, ImageLimits(max_pixels=2_999_999))
        assert decode(source, ImageLimits(len(data), 3_000_000)).size == (2000, 1500)


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.tiff"
    Image.new("F", (4, 4), 0.5).save(path)
    with pytest.raises(BadInputError, match="floating-point pixels"):
        decode(path)
