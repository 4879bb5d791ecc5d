"""Metadata never makes pixels unreadable: long texts of image generators, broken EXIF, XMP and thumbnails."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.inputs.files import encoded, tiff
from zoo.errors import BadDataError
from zoo.inputs.containers import png_chunk
from zoo.inputs.image import decode

RED = (200, 20, 20)


def red(kind: str, **options: Any) -> bytes:
    return encoded(Image.new("RGB", (64, 48), RED), kind, **options)


def is_red(data: bytes, size: tuple[int, int] = (64, 48)) -> bool:
    image = decode(data)
    return image.size == size and bool(np.abs(np.asarray(image).astype(int) - RED).max() <= 4)


def texts(*long: int, packed: bool) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for number, length in enumerate(long):
        info.add_text(f"workflow{number}", "x" * length, zip=packed)
        info.add_itxt(f"prompt{number}", "y" * length, zip=packed)
    return info


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("lengths", [(900_000,), (1_100_000,), (1_000_000,) * 3], ids=str)
def test_long_texts_of_a_png(lengths: tuple[int, ...], packed: bool) -> None:
    assert is_red(red("PNG", pnginfo=texts(*lengths, packed=packed)))


def test_more_text_than_pillow_reads() -> None:
    assert is_red(red("PNG", pnginfo=texts(*(1_000_000,) * 40, packed=True)))  # 80 MB; the bound is 64


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"a\0\x07what is packed by no known method"),
        png_chunk(b"iTXt", b"\xff\xfe\0\1\1\0\0\0broken"),
        png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 3_000_000)),
        png_chunk(b"tEXt", b"no text")[:-1] + b"?",
        png_chunk(b"eXIf", b"this is no EXIF"),
        png_chunk(b"eXIf", b"MM\0*" + b"\xff" * 40),
        png_chunk(b"pHYs", b"1"),
        png_chunk(b"tIME", b""),
    ],
    ids=["method", "itxt", "long", "checksum", "exif", "exif offsets", "phys", "time"],
)
def test_broken_chunks_of_a_png(chunk: bytes, place: str) -> None:
    data = red("PNG")
    at = 33 if place == "before" else len(data) - 12
    assert is_red(data[:at] + chunk + data[at:])


BROKEN_EXIF = {
    "no exif": b"Exif\0\0this is none",
    "empty": b"Exif\0\0",
    "offsets": b"Exif\0\0MM\0*" + b"\xff" * 60,
    "a loop": b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x8769, 4, 1, 8) + struct.pack("<I", 8),
    "orientation 99": b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIHH", 1, 0x0112, 3, 1, 99, 0) + bytes(4),
    "orientation text": b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHI4s", 1, 0x0112, 2, 4, b"six\0") + bytes(4),
    "resolution 0": b"Exif\0\0II*\0\x08\0\0\0"
    + struct.pack("<HHHII", 1, 0x011A, 5, 1, 26)
    + bytes(4)
    + struct.pack("<II", 0, 0),
}


@pytest.mark.parametrize("exif", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "AVIF"])
def test_broken_exif(kind: str, exif: bytes) -> None:
    if kind == "AVIF":  # Pillow's writer reads what it is given: the item is written whole and then overwritten
        whole = Image.Exif()
        whole[0x010E] = "z" * 100
        data = red(kind, exif=whole, quality=90)
        start = data.index(b"MM\0*" if b"MM\0*" in data else b"II*\0")
        data = data[:start] + exif[6:].ljust(60, b"\0")[:60] + data[start + 60 :]
    elif kind == "PNG":
        data = red(kind)
        data = data[:33] + png_chunk(b"eXIf", exif[6:]) + data[33:]
    else:
        data = red(kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {"quality": 95}))
    assert is_red(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_exif_that_is_well_turns_the_picture(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert is_red(red(kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {})), (48, 64))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_xmp(kind: str) -> None:
    xmp = b'<x:xmpmeta \xff\xfe not closed tiff:Orientation="9"' + b"z" * 3000
    assert is_red(red(kind, xmp=xmp, **({"quality": 95} if kind == "JPEG" else {"lossless": True})))


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xed\0\x18Photoshop 3.0\0" + b"8BIM\x04\x04\xff",
        b"\xff\xee\0\x05Ado",
        b"\xff\xe0\0\x05JFI",
        b"\xff\xe2\0\x20MPF\0II*\0\xff\xff\xff\xff" + bytes(18),
        b"\xff\xfe\x00\x06\xff\xd8\xff\xd9",
    ],
    ids=["photoshop", "adobe", "jfif", "mpf", "comment"],
)
def test_broken_segments_of_a_jpeg(segment: bytes) -> None:
    data = red("JPEG", quality=95)
    length = int.from_bytes(segment[2:4])
    assert is_red(data[:2] + segment.ljust(length + 2, b"\0") + data[2:])


@pytest.mark.parametrize("place", [3, 8, 2**31, 2**32 - 2])
@pytest.mark.parametrize("tag", [0x8769, 0x8825, 0xA005])
def test_a_broken_exif_directory_of_a_tiff(tag: int, place: int) -> None:
    data = tiff(bytes([77] * 16), (4, 4), 8, 1, more=((tag, 4, place),))
    assert np.asarray(decode(data)).tolist() == [[[77] * 3] * 4] * 4


def test_a_picture_without_pixels_stays_refused() -> None:
    data = red("PNG", pnginfo=texts(1_100_000, packed=True))
    with pytest.raises(BadDataError, match="broken or truncated image"):
        decode(data[: data.index(b"IDAT") + 30])
