"""What can be known of damage is noted, and whole pictures are never noted."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.inputs.files import encoded
from zoo.errors import BadDataError
from zoo.inputs.containers import png_chunk, png_chunks
from zoo.inputs.damage import BYTES_AFTER_END, CHECKSUM, DAMAGE, END_MISSING, FILM, JPEG_DATA, SIZES
from zoo.inputs.image import decode, decode_with_notes


def notes(data: bytes) -> tuple[str, ...]:
    return decode_with_notes(data).notes


def photo(size: tuple[int, int] = (160, 120), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


WHOLE: dict[str, bytes] = {
    "jpeg": encoded(photo(), "JPEG", quality=90),
    "jpeg 4:4:4": encoded(photo(), "JPEG", quality=90, subsampling=0),
    "jpeg grey": encoded(photo(mode="L"), "JPEG"),
    "jpeg cmyk": encoded(photo(mode="CMYK"), "JPEG"),
    "jpeg progressive": encoded(photo(), "JPEG", progressive=True),
    "jpeg restarts": encoded(photo(), "JPEG", restart_marker_rows=1),
    "jpeg optimised": encoded(photo(), "JPEG", optimize=True, quality=30),
    "jpeg of one colour": encoded(Image.new("RGB", (500, 400), "red"), "JPEG", optimize=True),
    "jpeg of one block": encoded(Image.new("RGB", (3, 2), "red"), "JPEG"),
    "jpeg, narrow": encoded(photo((8, 900)), "JPEG"),
    "jpeg, narrow and grey": encoded(Image.new("L", (8, 900), 77), "JPEG", optimize=True),
    "jpeg, flat": encoded(photo((900, 8)), "JPEG"),
    "png": encoded(photo()),
    "png interlaced": encoded(photo(mode="RGBA")),
    "png palette": encoded(photo().quantize(16), transparency=3),
    "apng": encoded(photo(), save_all=True, append_images=[photo(mode="L").convert("RGB")]),
    "gif": encoded(photo().quantize(16), "GIF"),
    "gif animated": encoded(photo().quantize(16), "GIF", save_all=True, append_images=[photo((160, 120), "L")]),
    "webp": encoded(photo(), "WEBP"),
    "webp lossless": encoded(photo(mode="RGBA"), "WEBP", lossless=True),
    "webp animated": encoded(photo(), "WEBP", save_all=True, append_images=[Image.new("RGB", (160, 120))]),
    "webp odd": encoded(Image.new("RGB", (1, 1), "red"), "WEBP", lossless=True, exif=b"Exif\0\0odd"),
    "avif": encoded(photo(), "AVIF"),
    "bmp": encoded(photo(), "BMP"),
    "tiff": encoded(photo(), "TIFF"),
    "mpo": encoded(photo(), "MPO", save_all=True, append_images=[photo((80, 60))]),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("padding", [b"", bytes(7)], ids=["bare", "padded"])
def test_whole_pictures_have_no_notes(name: str, padding: bytes) -> None:
    assert notes(WHOLE[name] + padding) == ()


@pytest.mark.parametrize("name", WHOLE)
def test_a_reduced_picture_has_no_notes(name: str) -> None:
    assert decode_with_notes(WHOLE[name], need=8).notes == ()


def test_golden_images_have_no_notes(golden: dict[str, bytes]) -> None:
    assert {name: notes(data) for name, data in golden.items() if notes(data)} == {}


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "tiff"])  # its parts may lie in any order
@pytest.mark.parametrize("more", ["a picture", "text"])
def test_bytes_after_the_end(name: str, more: str) -> None:
    data = WHOLE[name] + (encoded(photo(), "JPEG" if "jpeg" in name else "PNG") if more == "a picture" else b"secret")
    assert notes(data) == (BYTES_AFTER_END,)


def test_trailers_of_cameras_are_no_damage() -> None:
    data = WHOLE["jpeg"] + b"\0\0\x01\x0aImage_UTC_Data1700000000000SEFH" + bytes(30) + b"SEFT"
    assert notes(data) == ()
    assert notes(WHOLE["jpeg"] + bytes(20_000) + b"x" * 20_000 + b"SEFT") == (BYTES_AFTER_END,)


def test_the_film_of_a_motion_photo_is_no_damage_where_the_camera_says_that_it_is_there() -> None:
    film = b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08moov" + b"\0\0\x80\0mdat".ljust(0x8000)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta GCamera:MotionPhoto='1'/>"
    said = WHOLE["jpeg"][:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + WHOLE["jpeg"][2:]
    samsung = b"\0\0\x30\x0a\x10\0\0\0MotionPhoto_Data" + film + b"SEFH" + bytes(30) + b"SEFT"
    assert [notes(data) for data in (said + film, WHOLE["jpeg"] + samsung)] == [(FILM,), (FILM,)]
    for data in (WHOLE["jpeg"] + film, said + film.replace(b"moov", b"free"), said + b"MotionPhoto"):
        assert notes(data) == (BYTES_AFTER_END,)


def test_a_gain_map_that_the_index_lists_is_no_damage() -> None:
    """Ultra HDR: a JPEG in front, with an index (MPF) of the second."""
    data = WHOLE["mpo"]
    place = data.index(b"MPF\0")
    assert notes(data[:place] + b"XXX\0" + data[place + 4 :]) == (BYTES_AFTER_END,)


@pytest.mark.parametrize("name", ["png", "png palette", "apng", "gif", "gif animated"])
def test_a_missing_end(name: str) -> None:
    assert notes(WHOLE[name][: -12 if "png" in name else -1]) == (END_MISSING,)


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive"])
def test_a_jpeg_without_its_end_is_refused(name: str) -> None:
    with pytest.raises(BadDataError, match="truncated"):
        decode_with_notes(WHOLE[name][:-2])


@pytest.mark.parametrize("kind", [b"IDAT", b"tRNS", b"gAMA"])
def test_checksums_of_a_png(kind: bytes) -> None:
    """Pillow does not look at those of the pixels."""
    data = encoded(photo(mode="P"), transparency=b"\x80" * 16)
    data = data[:33] + png_chunk(b"gAMA", struct.pack(">I", 45455)) + data[33:]
    chunk = next(chunk for chunk in png_chunks(data) if chunk.kind == kind)
    broken = data[: chunk.until] + bytes([data[chunk.until] ^ 1]) + data[chunk.until + 1 :]
    assert notes(broken) == (CHECKSUM,)


def test_a_damaged_comment_is_no_damage_to_the_picture() -> None:
    data = WHOLE["png"]
    chunk = bytearray(png_chunk(b"tEXt", b"Comment\0a dog"))
    chunk[15] ^= 1
    assert notes(data[:33] + bytes(chunk) + data[33:]) == ()


@pytest.mark.parametrize("name", ["webp", "webp lossless", "bmp"])
def test_sizes_that_do_not_fit(name: str) -> None:
    data = bytearray(WHOLE[name])
    place = 4 if "webp" in name else 2
    said = int.from_bytes(data[place : place + 4], "little")
    data[place : place + 4] = (said + 1000).to_bytes(4, "little")
    try:
        assert notes(bytes(data)) == (SIZES,)
    except BadDataError:
        assert "webp" in name


def _scan(data: bytes) -> int:
    """Where the coded data of a baseline JPEG begin."""
    place = data.index(b"\xff\xda")
    return place + 2 + int.from_bytes(data[place + 2 : place + 4])


@pytest.mark.parametrize("name", ["jpeg", "jpeg 4:4:4", "jpeg grey", "jpeg cmyk"])
@pytest.mark.parametrize("taken", [0.3, 0.45])
def test_jpeg_data_that_are_too_few(name: str, taken: float) -> None:
    """The rest of the picture would be grey without a word."""
    data = WHOLE[name]
    middle = (_scan(data) + len(data)) // 2
    until = middle + int(taken * (len(data) - _scan(data)))
    assert notes(data[:middle] + data[until:]) == (JPEG_DATA,)


@pytest.mark.parametrize("name", ["jpeg", "jpeg 4:4:4", "jpeg grey", "jpeg cmyk"])
def test_jpeg_data_that_are_too_many(name: str) -> None:
    data = WHOLE[name]
    middle = (_scan(data) + len(data)) // 2
    assert notes(data[:middle] + data[middle - 300 : middle] + data[middle:]) == (JPEG_DATA,)


def test_an_end_in_the_middle_of_a_jpeg() -> None:
    data = WHOLE["jpeg"]
    middle = (_scan(data) + len(data)) // 2
    assert BYTES_AFTER_END in notes(data[:middle] + b"\xff\xd9" + data[middle:])


def test_a_progressive_jpeg_without_its_last_scan() -> None:
    data = WHOLE["jpeg progressive"]
    last = data.rindex(b"\xff\xda")
    start = data.rindex(b"\xff\xc4", 0, last)
    assert notes(data[:start] + b"\xff\xd9") == (JPEG_DATA,)


def test_most_desynchronised_jpegs_are_noted() -> None:
    """One flipped bit that shifts all that follow it is seen; one in a coefficient cannot be."""
    rng = random.Random(0)
    data, plain = WHOLE["jpeg"], np.asarray(Image.open(io.BytesIO(WHOLE["jpeg"])).convert("RGB")).astype(int)
    start, torn, noted = _scan(data), 0, 0
    for _ in range(150):
        broken = bytearray(data)
        broken[rng.randrange(start, len(data) - 200)] ^= 1 << rng.randrange(8)
        try:
            decoded = decode_with_notes(bytes(broken))
        except BadDataError:
            continue
        different = np.abs(np.asarray(decoded.image) - plain).max(axis=2) > 24
        if different.mean() > 0.2:
            torn += 1
            noted += bool(decoded.notes)
    assert torn > 30
    assert noted >= 0.3 * torn  # the others have all colours moved from there on, and fit


@pytest.mark.shared_data
def test_real_photos_have_no_notes(shared: Path) -> None:
    paths = sorted((shared / "flickr8k_small" / "images").glob("*.jpg"))[:300]
    assert [path.name for path in paths if notes(path.read_bytes())] == []


def test_causes_are_distinct_words() -> None:
    assert len(set(DAMAGE)) == len(DAMAGE) == 6
    assert all(cause.startswith("damaged: ") for cause in DAMAGE)


def test_a_broken_file_costs_no_note_on_another() -> None:
    values: dict[str, Any] = {name: notes(data) for name, data in list(WHOLE.items())[:3]}
    assert set(values.values()) == {()}


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [(160, 120), (2000, 1200)], ids=["small", "large"])
def test_a_jpeg_without_data_is_refused(mode: str, size: tuple[int, int]) -> None:
    """Whatever memory it would be decoded into, what lies there is not judged."""
    data = encoded(Image.new(mode, size), "JPEG")
    for end in (data.index(b"\xff\xda"), data.index(b"\xff\xc4")):
        for read in (decode, decode_with_notes):
            with pytest.raises(BadDataError):
                read(data[:end])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(160, 120), (2000, 1200)], ids=["small", "large"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_file_without_data_is_refused(mode: str, size: tuple[int, int], form: str) -> None:
    data = encoded(Image.new(mode, size), form)
    if form == "PNG":
        chunks = {chunk.kind: data[chunk.start : chunk.end] for chunk in png_chunks(data)}
        data = b"".join([data[:8], *(chunks[kind] for kind in (b"IHDR", b"PLTE", b"IEND") if kind in chunks)])
    else:
        data = data.replace(struct.pack("<H", 273), struct.pack("<H", 65000))  # StripOffsets
    for read in (decode, decode_with_notes):
        with pytest.raises(BadDataError):
            read(data)
