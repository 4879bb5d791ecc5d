"""Opens image files of the formats that are read; leaves out metadata that a reader stumbles over. No pixels yet.

What is a video is told here, too: `zoo.inputs.video` opens those.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, BinaryIO

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from zoo.errors import BadDataError
from zoo.inputs.colour import MOST_BYTES
from zoo.inputs.containers import EBML, PNG_START, Chunk, checksum_holds, jpeg_segments, png_chunks

#: Raster formats only. Pillow would also hand PostScript to Ghostscript, and read sixty rare formats.
#: MPO comes with JPEG: naming it here would make Pillow raise KeyError, as it registers no opener of that name.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
#: They are registered with Pillow when they are imported; `Image.init` would import those of all formats.
_PLUGINS = (
    *(AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin),
    *(PngImagePlugin, TiffImagePlugin, WebPImagePlugin),
)
#: Endings of the names of pictures and of videos that are read, in lower case with the dot; those of HEIC and JPEG XL,
#: and of videos, by extras.
PICTURE_ENDINGS = frozenset(
    {suffix for suffix, kind in Image.EXTENSION.items() if kind in (*FORMATS, "MPO")}
    | {".heic", ".heif", ".hif", ".jxl"}
)
VIDEO_ENDINGS = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv"})

#: Brands of an ISO file whose pictures are coded as HEVC.
_HEVC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_STARTS = (b"\xff\xd8\xff", PNG_START, b"GIF8")
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
#: Brands of ISO files that hold pictures, or sequences of them: AVIF, HEIF of any coding, JPEG XL, a camera's raw file.
_PICTURES = (*_HEVC, b"avif", b"avis", b"mif1", b"mif2", b"msf1", b"miaf", b"jpeg", b"jpgs", b"jxl ", b"crx ")
#: The first box of a QuickTime file that has no brand.
_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


#: The entry of EXIF or XMP in the list of items of an AVIF or HEIC.
_ITEM = re.compile(rb"(infe[\x02\x03].{7,9})(?:Exif|mime)", re.DOTALL)


def is_jpeg(data: bytes) -> bool:
    """Whether the bytes of a file begin as a JPEG does."""
    return data.startswith(b"\xff\xd8\xff")


def open_image(stream: BinaryIO, data: bytes) -> Image.Image:
    """Open a stream of the file `data` as a lazy Pillow image. Raises what Pillow raises for what it cannot open."""
    if is_jpeg(data):  # Pillow's bound on pixels does not know of decoding at a smaller scale: it is not asked
        return JpegImagePlugin.jpeg_factory(stream)
    if _is_heic(data):
        return _by_extra("heic", ("pi_heif.as_plugin", "pillow_heif.as_plugin"), "HeifImageFile")(stream)
    if data.startswith(_JXL):
        return _by_extra("jxl", ("pylibjxl.pillow_plugin",), "JxlImageFile")(stream)
    return Image.open(stream, formats=FORMATS)


def is_media(path: str) -> bool:
    """Whether a file begins as a picture or a video that is read, whatever it is called; also one that cannot be read.

    What cannot be opened is to be judged, so that its verdict says why.
    """
    try:
        with open(path, "rb") as stream:
            head = stream.read(4096)
            if demuxer(head) is not None or _is_heic(head) or head.startswith((*_JXL, *_STARTS)):
                return True
            stream.seek(0)
            with Image.open(stream, formats=FORMATS):
                return True
    except UnidentifiedImageError:
        return False
    except Exception:
        return True


def _is_heic(data: bytes) -> bool:
    brands = data[8 : int.from_bytes(data[:4])] if data[4:8] == b"ftyp" else b""
    return b"avif" not in brands and any(brand in brands for brand in _HEVC)


def demuxer(head: bytes) -> str | None:
    """FFmpeg's name of what reads a video that begins so (4 KB are enough): "mov", "matroska"; None for no video.

    >>> demuxer(b"\\0\\0\\0\\x18ftypmp42\\0\\0\\0\\0mp42isom"), demuxer(b"\\0\\0\\0\\x14ftypavif\\0\\0\\0\\0mif1")
    ('mov', None)
    """
    if head.startswith(EBML):
        return "matroska"
    if head[4:8] in _BOXES:
        return "mov"
    if head[4:8] != b"ftyp":
        return None
    words = head[8 : int.from_bytes(head[:4])]  # the brand, its version, and compatible brands, of four bytes each
    brands = [words[place : place + 4] for place in range(0, len(words), 4)]
    return None if any(brand in _PICTURES for brand in brands) else "mov"


def _by_extra(extra: str, modules: tuple[str, ...], name: str) -> Callable[[BinaryIO], Image.Image]:
    """The class of a package that opens a format; it is not registered with Pillow. Raises BadDataError without one."""
    return getattr(module_of_extra(extra, *modules), name)  # type: ignore[no-any-return]


def module_of_extra(extra: str, *modules: str) -> Any:
    """The first of these modules that can be imported. Raises BadDataError, which names the extra, without one."""
    for module in modules:
        try:
            return import_module(module)
        except ImportError:
            continue
    raise BadDataError(f'a file that the extra "{extra}" reads: pip install "safety-zoo[{extra}]"')


def why_not(data: bytes) -> str:
    """Why a file that no format knows cannot be read."""
    head = data[:256].lstrip().lower()
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "a TIFF of a kind that is not read (its bits, channels or compression)"
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        guess = "it looks like HTML or SVG text"
    elif head.startswith(b"%pdf"):
        guess = "it is a PDF"
    elif head.isascii() and head.decode().isprintable():
        guess = "it looks like text"
    else:
        guess = f"it starts with {data[:8].hex(' ')}"
    return f"not an image ({guess}); readable are {', '.join(FORMATS)}, and HEIC, JPEG XL and video by extras"


def open_without_metadata(data: bytes) -> tuple[Image.Image, bytes] | None:
    """Open a file without texts, EXIF, XMP and thumbnails; None where it has none. With the bytes that are left."""
    if is_jpeg(data):
        plain = _jpeg_without(data)
    elif data.startswith(PNG_START):
        plain = _png_without(data)
    elif data[4:8] == b"ftyp":
        # An item of a kind that nobody reads is passed over, and no offset in the file changes.
        plain = _ITEM.sub(rb"\1skip", data[:65536]) + data[65536:]
    else:
        return None
    if plain == data:
        return None
    image = open_image(io.BytesIO(plain), plain)
    if image.format == "PNG":
        _restore_profile(image, data)
    return image, plain


def _jpeg_without(data: bytes) -> bytes:
    parts, end = [data[:2]], 2
    for segment in jpeg_segments(data):
        marker, content = segment.kind[0], data[segment.inside : segment.end]
        if not (0xE1 <= marker <= 0xEF or marker == 0xFE) or content.startswith((b"ICC_PROFILE\0", b"Adobe")):
            parts.append(data[segment.start : segment.end])
        end = segment.end
    return b"".join([*parts, data[end:]])


#: Chunks of a PNG that make its pixels, and those that change them where they are not damaged.
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
_PNG_LOOKS = (b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"eXIf")


def _png_without(data: bytes) -> bytes:
    def kept(chunk: Chunk) -> bool:
        return chunk.kind in _PNG_PIXELS or (chunk.kind in _PNG_LOOKS and checksum_holds(data, chunk))

    parts, end = [PNG_START], len(PNG_START)
    for chunk in png_chunks(data):
        parts += [data[chunk.start : chunk.end]] if kept(chunk) else []
        end = chunk.end
    return b"".join([*parts, data[end:]])


def _restore_profile(image: Image.Image, data: bytes) -> None:
    """The profile of a PNG, which Pillow refuses above 1 MB; one that is damaged stands as None."""
    for chunk in png_chunks(data):
        if chunk.kind == b"iCCP":
            packed = data[chunk.inside : chunk.until].partition(b"\0")[2][1:]
            try:
                image.info["icc_profile"] = zlib.decompressobj().decompress(packed, MOST_BYTES + 1)
            except zlib.error:
                image.info["icc_profile"] = None
