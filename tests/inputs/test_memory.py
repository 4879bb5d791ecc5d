"""Decoding takes about 4 bytes a pixel, whatever the mode; of a JPEG far above the size that is needed, less.

Of a transparent picture that is not large, what it shows on other grounds is kept beside.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from tests.inputs.files import encoded
from zoo.contract.card import ImageInput
from zoo.errors import BadDataError
from zoo.inputs.avif import avif_rows
from zoo.inputs.image import ImageLimits, decode, decode_for, decode_with_notes, fit, load

SIZE = (4000, 3000)
SPEC = ImageInput(224, "shortest_edge_crop", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
#: Strips and blocks in work, and the allocator.
WORK = 45_000_000

_CHILD = """
import io, sys
import numpy as np
from PIL import Image, ImageCms
from zoo.inputs.image import decode, decode_with_notes
data = sys.stdin.buffer.read()
buffer = io.BytesIO()
Image.new("RGBA", (8, 8)).save(buffer, "PNG")
decode(buffer.getvalue())
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew: at first it is that of the parent
before = kilobytes("VmRSS")
for need in sys.argv[1:]:
    decoded = None
    decoded = decode_with_notes(data, need=int(need) or None)
    assert decoded.image.mode == "RGB" and sorted(decoded.size) == [3000, 4000] and not decoded.notes, decoded
print((kilobytes("VmHWM") - before) * 1024)
"""


def _peak(data: bytes, *needs: int) -> int:
    """Bytes that decoding takes at most, for each of these needs in turn; 0 is the whole picture."""
    done = subprocess.run([sys.executable, "-c", _CHILD, *map(str, needs)], input=data, capture_output=True, check=True)
    return int(done.stdout)


def _large(mode: str) -> bytes:
    """A picture of 12 megapixels of a mode."""
    image = Image.new("RGB", SIZE, (200, 20, 20))
    turned = Image.Exif()
    turned[0x0112] = 6
    match mode:
        case "I;16":
            return encoded(Image.fromarray(np.full(SIZE[::-1], 51200, np.uint16)), compress_level=1)
        case "P":
            return encoded(image.quantize(8))
        case "P, clear":
            return encoded(image.quantize(8), transparency=0)
        case "RGBA" | "LA":
            image = image.convert("L") if mode == "LA" else image
            image.putalpha(128)
            return encoded(image, compress_level=1)
        case "CMYK":
            return encoded(image.convert("CMYK"), "JPEG")
        case "CMYK TIFF":
            return encoded(image.convert("CMYK"), "TIFF", compression="tiff_lzw")
        case "turned JPEG":
            return encoded(image, "JPEG", exif=turned)
        case "turned TIFF":
            return encoded(image, "TIFF", compression="tiff_lzw", tiffinfo=turned)
        case "turned PNG":
            return encoded(image, exif=turned, compress_level=1)
        case "JPEG":
            return encoded(image, "JPEG")
        case "GIF":
            return encoded(image.quantize(8), "GIF")
    return encoded(image.convert(mode), compress_level=1)


ALIKE = ("L", "LA", "P, clear", "CMYK TIFF", "turned PNG", "turned TIFF", "JPEG")
MODES = ["RGB", "RGBA", "P", "I;16", "CMYK", "turned JPEG", "GIF"]


@pytest.mark.parametrize("mode", MODES + [pytest.param(mode, marks=pytest.mark.slow) for mode in ALIKE])
def test_four_bytes_a_pixel(mode: str) -> None:
    data = _large(mode)
    pixels = SIZE[0] * SIZE[1]
    more = 9 * pixels if mode in ("RGBA", "LA", "P, clear") else 0  # on black, and bare, and how opaque it is
    assert _peak(data, 224, 0) <= 4 * pixels + more + WORK


@pytest.mark.parametrize("mode", ["JPEG", "turned JPEG", "CMYK"])
def test_a_large_jpeg_takes_less_where_the_size_is_known(mode: str) -> None:
    assert _peak(_large(mode), 64) <= WORK / 2  # the eighth of each side


def _phone(megapixels: int, **options: Any) -> bytes:
    """A JPEG whose header says so many megapixels; its data are those of a grey picture."""
    side = {64: (9248, 6936), 200: (16320, 12240)}[megapixels]
    return encoded(Image.new("L", side, 77), "JPEG", **options)


def test_photos_of_200_megapixels_are_read_for_a_model() -> None:
    data = _phone(200)
    decoded = decode_for(data, SPEC)
    assert (decoded.size, decoded.scale, decoded.image.size) == ((16320, 12240), 8, (2040, 1530))
    assert np.abs(fit(decoded, SPEC).astype(int) - 77).max() <= 1
    with pytest.raises(BadDataError, match=r"16320 x 12240 pixels, the limit is 64,000,000, which take 256 MB"):
        decode(data)
    with pytest.raises(BadDataError, match=r"the limit is 100,000,000 for a picture that is decoded at a"):
        load(data, SPEC, ImageLimits(max_header_pixels=100_000_000))
    with pytest.raises(BadDataError, match="the limit is 1,000,000"):
        load(data, SPEC, ImageLimits(max_pixels=1_000_000))


def test_progressive_photos_count_as_a_whole() -> None:
    """The decoder holds all coefficients until the last scan: they may take what the pixels of the limit take."""
    data = _phone(64, progressive=True)
    assert decode_for(data, SPEC).scale == 4
    with pytest.raises(BadDataError, match="9248 x 6936 pixels, the limit is 30,000,000"):
        load(data, SPEC, ImageLimits(max_pixels=30_000_000))  # 128 MB of grey, and 120 MB
    with pytest.raises(BadDataError, match="9248 x 6936 pixels, the limit is 64,000,000"):
        decode(data)


def test_a_header_is_no_bomb() -> None:
    data = bytearray(encoded(Image.new("L", (64, 64), 77), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 40000, 40000)
    with pytest.raises(BadDataError, match="40000 x 40000 pixels, the limit is 256,000,000"):
        load(bytes(data), SPEC)


def _detailed(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": True},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:4:4"},
        {"subsampling": "4:0:0"},
        {"range": "limited"},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_large_avif_is_converted_strip_by_strip(
    options: dict[str, Any], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av", reason='the extra "video" is not installed')
    exif = Image.Exif()
    exif[0x0112] = 6
    image = _detailed(259, 227)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    data = encoded(image, "AVIF", quality=90, speed=10, exif=exif, **options)
    wanted = decode_with_notes(data, need=16)
    monkeypatch.setattr("zoo.inputs.picture._MUCH", 0)
    monkeypatch.setattr("zoo.inputs.pixels._STRIP", 16 * 259)
    monkeypatch.setattr("PIL.AvifImagePlugin.AvifImageFile.load", None)  # which is not asked
    found = decode_with_notes(data, need=16)
    assert (found.size, found.scale, found.image.size) == (wanted.size, wanted.scale, wanted.image.size)
    assert (found.size, found.scale) == ((227, 259), 2)
    assert (found.transparent, list(found.grounds)) == (wanted.transparent, list(wanted.grounds))
    pictures = [(found.image, wanted.image), *((found.grounds[name], wanted.grounds[name]) for name in wanted.grounds)]
    for one, other in pictures:
        difference = np.abs(np.asarray(one).astype(int) - np.asarray(other))
        assert difference.mean() <= 3
        assert difference.max() <= 25


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_what_ffmpeg_cannot_reduce_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.inputs.picture._MUCH", 0)
    image = _detailed(160, 128)
    data = encoded(image, "AVIF", speed=10)
    assert avif_rows(data, (128, 160), "RGB") is None
    assert avif_rows(data, (160, 128), "RGBA") is None
    assert avif_rows(data[: len(data) // 2], (160, 128), "RGB") is None
    with pytest.raises(BadDataError, match="not an image"):
        load(data[: len(data) // 2], SPEC)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("size", [(1023, 897), (899, 1201)], ids=str)
@pytest.mark.parametrize("resize", ["shortest_edge_crop", "squash"])
def test_a_reduced_picture_fits_as_the_whole_one(kind: str, size: tuple[int, int], resize: Any) -> None:
    spec = ImageInput(56, resize, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    data = encoded(_detailed(*size), kind, **({"quality": 95} if kind == "JPEG" else {}))
    decoded = decode_for(data, spec)
    assert decoded.scale == 4
    assert min(decoded.image.size) >= 4 * 56
    difference = np.abs(fit(decoded, spec).astype(int) - fit(decode(data), spec))
    assert difference[:-1, :-1].max() <= 5
    assert difference.max() <= 20  # the last row and column hold fewer pixels than the others
    assert difference.mean() <= 0.6
    assert np.array_equal(load(data, spec), fit(decoded, spec))


def test_a_picture_is_reduced_only_where_four_times_the_need_is_left() -> None:
    data = encoded(_detailed(2048, 1792), "JPEG")
    assert [decode_with_notes(data, need=need).scale for need in (224, 225, 112, 56, 20, 1)] == [2, 1, 4, 8, 8, 8]
    assert decode_with_notes(data).scale == 1


def test_a_model_that_takes_single_pixels_gets_the_whole_picture() -> None:
    spec = ImageInput(112, "squash", "bilinear_align_corners", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    data = encoded(_detailed(2048, 1792), "JPEG")
    assert np.array_equal(load(data, spec), fit(decode(data), spec))


def test_turned_pictures_are_reduced_as_upright_ones() -> None:
    image = _detailed(900, 1000)
    for orientation, turn in ((2, Image.Transpose.FLIP_LEFT_RIGHT), (6, Image.Transpose.ROTATE_90)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("PNG", "WEBP"):
            upright = decode(encoded(image, kind, lossless=True, quality=0), need=56)
            found = decode(encoded(image.transpose(turn), kind, lossless=True, quality=0, exif=exif), need=56)
            assert np.abs(np.asarray(found).astype(int) - np.asarray(upright)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK"])
def test_large_pictures_are_turned_in_blocks_as_small_ones(
    mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.inputs.picture._SMALL", 0)
    image = _detailed(520, 1100).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    kind, options = ("JPEG", {}) if mode == "CMYK" else ("PNG", {"compress_level": 1})
    _is_turned(encoded(image, kind, exif=exif, **options))


@pytest.mark.parametrize("orientation", [4, 6, 7])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "YCbCr", "I;16"])
def test_large_tiffs_are_turned_as_pillow_turns_them(
    mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = _detailed(520, 1100)
    image = image.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 251)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "TIFF", compression="raw" if mode == "LA" else "tiff_lzw", tiffinfo=exif)
    wanted, small = decode_with_notes(data, need=32), decode(data)
    monkeypatch.setattr("zoo.inputs.picture._SMALL", 0)
    found = decode_with_notes(data, need=32)
    assert (found.size, found.scale, found.transparent) == (wanted.size, 4, wanted.transparent)
    assert np.array_equal(np.asarray(found.image), np.asarray(wanted.image))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(small))


def _is_turned(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as opened:
        wanted = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    assert np.array_equal(np.asarray(decode(data)), wanted)
