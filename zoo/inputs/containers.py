"""How image files are built: chunks of PNG and WebP, segments of JPEG, boxes of AVIF and HEIC. Nothing is decoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PNG_START = b"\x89PNG\r\n\x1a\n"
#: How Matroska and WebM begin.
EBML = b"\x1a\x45\xdf\xa3"


@dataclass(frozen=True)
class Chunk:
    """A piece of a file: its kind, the whole of it as `data[start:end]`, and its content as `data[inside:until]`."""

    kind: bytes
    start: int
    inside: int
    until: int
    end: int


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of a PNG that are whole, up to IEND or to the first that the file ends in."""
    place = len(PNG_START)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 12 + length
        if end > len(data):
            return
        kind = data[place + 4 : place + 8]
        yield Chunk(kind, place, place + 8, end - 4, end)
        if kind == b"IEND":
            return
        place = end


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def checksum_holds(data: bytes, chunk: Chunk) -> bool:
    """Whether a chunk of a PNG is what it was when it was written."""
    found = zlib.crc32(memoryview(data)[chunk.start + 4 : chunk.until])
    return found == int.from_bytes(data[chunk.until : chunk.end])


def riff_chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of a WebP that are whole. `end` is after the byte that makes their length even."""
    place = 12
    while place + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        until = place + 8 + length
        if until > len(data):
            return
        yield Chunk(data[place : place + 4], place, place + 8, until, until + (length & 1))
        place = until + (length & 1)


def boxes(data: bytes) -> Iterator[Chunk]:
    """The outermost boxes of an ISO file (AVIF, HEIC, JPEG XL) that are whole."""
    place = 0
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        inside = place + 8
        if length == 1 and place + 16 <= len(data):
            (length,) = struct.unpack_from(">Q", data, inside)
            inside += 8
        end = len(data) if length == 0 else place + length
        if end > len(data) or end < inside:
            return
        yield Chunk(data[place + 4 : place + 8], place, inside, end, end)
        place = end


@dataclass(frozen=True)
class JpegHead:
    """What a JPEG says before its first scan: kind of coding, components in all and in that scan, where data begin."""

    coding: int
    components: int
    scanned: int
    data_at: int

    @property
    def in_several_scans(self) -> bool:
        """Whether the decoder holds the coefficients of the whole picture until the last scan is read."""
        return self.coding in (0xC2, 0xC6, 0xCA, 0xCE) or self.scanned < self.components

    @property
    def huffman(self) -> bool:
        """Whether the data are Huffman coded, not arithmetically."""
        return self.coding <= 0xC7


def jpeg_segments(data: bytes, place: int = 2) -> Iterator[Chunk]:
    """The segments of a JPEG up to its first scan, with it; `kind` is the byte of the marker."""
    while place + 4 <= len(data):
        if data[place] != 0xFF:  # what decoders skip, too
            place = data.find(b"\xff", place)
            if place < 0:
                return
            continue
        marker = data[place + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # fill bytes, and markers without content
            place += 1 if marker == 0xFF else 2
            continue
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        if end > len(data) or end < place + 4:
            return
        yield Chunk(data[place + 1 : place + 2], place, place + 4, end, end)
        if marker == 0xDA:
            return
        place = end


def jpeg_head(data: bytes) -> JpegHead | None:
    """The head of a JPEG; None where it is broken."""
    coding = components = 0
    for segment in jpeg_segments(data):
        marker = segment.kind[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and segment.until - segment.inside >= 6:
            coding, components = marker, data[segment.inside + 5]
        elif marker == 0xDA and coding:
            return JpegHead(coding, components, data[segment.inside], segment.end)
    return None


def index_of_pictures(data: bytes) -> int | None:
    """Where the index of a JPEG with several pictures (MPF) begins, from which it counts; None where it has none."""
    places = (one.inside for one in jpeg_segments(data) if one.kind == b"\xe2")
    return next((place + 4 for place in places if data[place : place + 4] == b"MPF\0"), None)


#: What a gain map says of itself: Adobe's name space in XMP, or the name of ISO 21496-1.
_GAIN_MAP = (b"http://ns.adobe.com/hdr-gain-map/", b"urn:iso:std:iso:ts:21496:-1")


def is_gain_map(data: bytes, start: int) -> bool:
    """Whether the JPEG that starts there, behind another, brightens that one on a screen of high dynamic range."""
    segments = jpeg_segments(data, start + 2)
    return any(name in data[one.inside : one.end] for one in segments for name in _GAIN_MAP)


def gif_blocks(data: bytes) -> Iterator[Chunk]:
    """The blocks of a GIF that are whole: `,` a picture, `!` and its label an extension, `;` the end.

    The content of a picture begins with its code size, that of an extension with its first sub-block.
    """
    place = 13 + _palette(data[10] if len(data) > 10 else 0)
    while place < len(data):
        start, kind = place, data[place : place + 1]
        if kind == b";":
            yield Chunk(kind, start, place + 1, place + 1, place + 1)
            return
        if kind == b"," and place + 10 < len(data):
            inside = place + 10 + _palette(data[place + 9])
            place = inside + 1
        elif kind == b"!":
            kind, inside = data[place : place + 2], place + 2
            place = inside
        else:
            return
        while place < len(data) and data[place]:
            place += data[place] + 1
        if place >= len(data):
            return
        place += 1
        yield Chunk(kind, start, inside, place, place)


def _palette(flags: int) -> int:
    """The bytes of the palette that the flags of a GIF announce."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0
