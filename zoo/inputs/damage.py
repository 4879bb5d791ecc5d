"""What can be known of damage to an image file beside its pixels: end markers, checksums, sizes, and data left over.

A decoder fills in what it cannot read, mostly without a word: the picture is judged, and is not the one that was made.
"""

from __future__ import annotations

import io
import math
import os
import random
import re
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image, JpegImagePlugin

from zoo.inputs.containers import (
    EBML,
    PNG_START,
    boxes,
    checksum_holds,
    gif_blocks,
    index_of_pictures,
    jpeg_head,
    jpeg_segments,
    png_chunks,
    riff_chunks,
)

#: Causes, as they stand in `Decoded.notes`.
END_MISSING = "damaged: end missing"
BYTES_AFTER_END = "damaged: bytes after the end"
CHECKSUM = "damaged: png checksum"
SIZES = "damaged: sizes do not fit"
JPEG_DATA = "damaged: jpeg data do not fit the picture"
BROKEN = "damaged: frames that cannot be decoded"
#: Not damage: a film that a phone's camera puts behind the picture, and that viewers show on demand.
FILM = "film of a motion photo"
DAMAGE = (END_MISSING, BYTES_AFTER_END, CHECKSUM, SIZES, JPEG_DATA, BROKEN)

#: Chunks of a PNG whose damage changes no pixel, but for those of its colours.
_COLOURS = (b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP")


def damage_of(data: bytes) -> tuple[str, ...]:
    """The causes that the bytes of a file show, without decoding it; `Watch` tells what decoding a JPEG shows."""
    if data.startswith(PNG_START):
        causes = _of_png(data)
    elif data.startswith(b"GIF8"):
        causes = _of_gif(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        causes = _of_webp(data)
    elif data[4:8] in (b"ftyp", b"JXL "):
        causes = _of_boxes(data)
    elif data.startswith(b"BM"):
        causes = _of_length(int.from_bytes(data[2:6], "little"), data)
    else:
        return ()
    return tuple(dict.fromkeys(causes))


def damage_of_video(file: BinaryIO) -> tuple[str, ...]:
    """The causes that the outermost boxes of an MP4 show, or the elements of a WebM; only their heads are read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    end_of = _element_end if file.read(4) == EBML else _box_end
    end = 0
    while end < size:
        file.seek(end)
        head, start = file.read(16), end
        if not head.strip(b"\0"):  # padding
            return ()
        end = end_of(head, start, size)
        if end <= start:
            return (BYTES_AFTER_END,)
    return (END_MISSING,) if end > size else ()


#: The boxes of an MP4 that hold most of it: a file that is cut ends in one of them.
_LARGE = (b"mdat", b"moov", b"moof", b"free", b"skip", b"uuid", b"meta")


def _box_end(head: bytes, start: int, size: int) -> int:
    """Where a box of an MP4 ends that starts so; `start` for what is none."""
    length, kind = int.from_bytes(head[:4]), head[4:8]
    if length == 1:
        length = int.from_bytes(head[8:16])
    if len(kind) < 4 or 0 < length < 8:
        return start
    end = start + length if length else size
    return end if end <= size or kind in _LARGE else start


def _element_end(head: bytes, start: int, size: int) -> int:
    """Where an outermost element of a WebM ends: its name, the length of its content, and the content."""
    name = 9 - head[0].bit_length()
    if head[:name] not in (EBML, b"\x18\x53\x80\x67", b"\xec") or len(head) <= name:  # a segment, a gap
        return start
    length = 9 - head[name].bit_length()
    content = int.from_bytes(head[name : name + length]) & (1 << 7 * length) - 1
    unknown = content == (1 << 7 * length) - 1  # of a live recording
    return size if unknown else start + name + length + content


def _of_length(said: int, data: bytes) -> Iterator[str]:
    """What it tells that a file is not as long as it says. Zeros behind its end are padding."""
    if said > len(data):
        yield SIZES
    elif data[said:].strip(b"\0"):
        yield BYTES_AFTER_END


def _of_png(data: bytes) -> Iterator[str]:
    end = len(PNG_START)
    kind = b""
    for chunk in png_chunks(data):
        kind, end = chunk.kind, chunk.end
        if (kind[0] & 32 == 0 or kind in _COLOURS or kind in (b"fcTL", b"fdAT")) and not checksum_holds(data, chunk):
            yield CHECKSUM
    if kind != b"IEND":
        yield END_MISSING
    elif data[end:].strip(b"\0\r\n"):
        yield BYTES_AFTER_END


def _of_webp(data: bytes) -> Iterator[str]:
    said = int.from_bytes(data[4:8], "little") + 8
    yield from _of_length(said + (said & 1), data)
    ends = [chunk.end for chunk in riff_chunks(data)]
    if not ends or max(ends) < min(said, len(data)):
        yield SIZES


def _of_boxes(data: bytes) -> Iterator[str]:
    found = list(boxes(data))
    second = next((box.start for box in found[1:] if box.kind == b"ftyp"), len(data))
    if not found:
        yield SIZES
    elif data[found[-1].end :].strip(b"\0") or second < len(data):
        yield FILM if _is_film(data, second) else BYTES_AFTER_END


def _of_gif(data: bytes) -> Iterator[str]:
    blocks = list(gif_blocks(data))
    if not blocks or blocks[-1].kind != b";":
        yield END_MISSING
    elif data[blocks[-1].end :].strip(b"\0\r\n"):
        yield BYTES_AFTER_END


_END = b"\xff\xd9"
#: The most bytes that a camera's trailer of dates takes.
_TRAILER = 16_384
#: The last bytes of the coded data that are withheld: some encoders add one that no decoder needs.
_WITHHELD = 2
#: The most blocks of 8 x 8 that need them: a block takes two bits at least, and libjpeg reads 64 bits ahead.
_BLOCKS = 4 * _WITHHELD + 32
#: What stands in a row that the decoder has not reached.
_UNREACHED = random.Random(0).randbytes(4096)


class Watch(io.BytesIO):
    """A JPEG that sees whether its data fit its picture, while the decoder reads it.

    The last bytes of the data are handed over last. A whole picture lacks its last blocks until then, and no more: a
    decoder that never asks for them had data left over, and one that lacks more had too few, for which grey fills in.
    libjpeg warns of both, and Pillow passes no warning on. `causes` is asked after the picture was loaded.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = data
        self._end = len(data)
        self._hold: int | None = None
        self._row: _Row | None = None
        self._paused = self._misfit = False

    def begin(self, image: JpegImagePlugin.JpegImageFile, canvas: Image.Image) -> None:
        """Watch the image, which was opened on this stream, decode into a canvas."""
        head = jpeg_head(self._data)
        if head is None:
            return
        if head.in_several_scans or not head.huffman or not self._data.endswith(_END):
            self._end = self._data.find(_END, head.data_at) + 2 or len(self._data)
        if head.in_several_scans:
            self._misfit = not _scans_complete(self._data[: self._end])
        elif head.huffman:
            self._hold = max(head.data_at, _last_byte(self._data, self._end - 2) - _WITHHELD)
            self._row = _Row(image, canvas)
            image.decodermaxblock = len(self._data)

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any stream, but that a read of the whole file ends before the last bytes of its data."""
        if self._hold is not None and self.tell() < self._hold:
            return super().read(self._hold - self.tell())
        if self._row is not None and not self._paused:
            self._paused, self._misfit = True, not self._row.reached
        return super().read(size)

    def causes(self) -> tuple[str, ...]:
        """What is known after the picture was loaded."""
        if self._hold is not None and not self._paused:
            head = jpeg_head(self._data)
            self._end = self._data.find(_END, head.data_at if head else 0) + 2
            self._misfit = self._end > self._hold  # else it ends before
        after = _after_jpeg(self._data, self._end)
        return (JPEG_DATA,) * self._misfit + ((after,) if after else ())


class _Row:
    """The lowest row of a picture that is not missing while the last bytes of its data are."""

    def __init__(self, image: JpegImagePlugin.JpegImageFile, canvas: Image.Image) -> None:
        scale = image.decoderconfig[0] if image.decoderconfig else 1
        wide, tall = (max(layer[axis] for layer in image.layer) for axis in (1, 2))
        blocks = sum(layer[1] * layer[2] for layer in image.layer) if len(image.layer) > 1 else 1
        wide, tall = (wide, tall) if blocks > 1 else (1, 1)
        across, down = math.ceil(image.width * scale / 8 / wide), math.ceil(image.height * scale / 8 / tall)
        missing = math.ceil(math.ceil(_BLOCKS / blocks) / across)
        # Each row of blocks waits for the next one, whose first rows its last ones are smoothed with.
        self._place = math.floor((down - missing) * 8 * tall / scale) - 2 * tall - 1
        self._canvas = canvas
        length = image.width * len(canvas.getbands())
        self._pixels = (_UNREACHED * (length // len(_UNREACHED) + 1))[:length]
        if self._place >= 0:
            canvas.paste(Image.frombytes(canvas.mode, (image.width, 1), self._pixels), (0, self._place))

    @property
    def reached(self) -> bool:
        """Whether the decoder has written it."""
        row = (0, self._place, self._canvas.width, self._place + 1)
        return self._place < 0 or self._canvas.crop(row).tobytes() != self._pixels


def _last_byte(data: bytes, marker: int) -> int:
    """Where the coded data before a marker end: it may have fill bytes."""
    while data[marker - 1] == 0xFF:
        marker -= 1
    return marker


#: What ends the data of a scan, and what may follow it: tables, another scan, comments, the end.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_AFTER_SCAN = {0xC4, 0xDA, 0xDB, 0xDC, 0xDD, 0xD9, 0xFE, *range(0xE0, 0xF0)}


def _scans_complete(data: bytes) -> bool:
    """Whether the scans of a JPEG follow each other up to its end, and give what they began to the last bit."""
    bits: dict[int, dict[int, int]] = {}  # of each component, the lowest bit sent of each coefficient
    place = 2
    while data[place : place + 2] != _END:
        segment = None
        for segment in jpeg_segments(data, place):
            content = data[segment.inside : segment.end]
            if segment.kind[0] in (0xC0, 0xC1, 0xC2):
                bits = {component: {} for component in content[6::3]}
        if segment is None or segment.kind != b"\xda" or len(content) < 4 + 2 * content[0]:
            return False
        first, last, low = content[1 + 2 * content[0] :][:3]
        for component in content[1 : 1 + 2 * content[0] : 2]:
            bits.setdefault(component, {}).update(dict.fromkeys(range(first, last + 1), low & 15))
        marker = _MARKER.search(data, segment.end)
        if marker is None or data[marker.start() + 1] not in _AFTER_SCAN:
            return False
        place = marker.start()
    return bool(bits) and all(sent and not any(sent.values()) for sent in bits.values())


def _after_jpeg(data: bytes, end: int) -> str | None:
    """What follows the end of a JPEG that nobody sees and that is not known to be harmless.

    Fill bytes are, and pictures that an index lists (MPF: `frames` gives them), and the trailer of Samsung's cameras.
    """
    listed = index_of_pictures(data) is not None
    while rest := data[end:].lstrip(b"\0\xff\r\n"):
        start = len(data) - len(rest) - 1  # lstrip took the first byte of a marker
        head = jpeg_head(data[start:]) if listed and rest[:2] == b"\xd8\xff" else None
        if head is None:
            if len(rest) <= _TRAILER and rest.endswith(b"SEFT"):
                return None
            return FILM if _is_film(data, data.find(b"ftyp", end, end + 256) - 4) else BYTES_AFTER_END
        end = data.find(_END, start + head.data_at) + 2
        if end < 2:
            return BYTES_AFTER_END
    return None


def _is_film(data: bytes, start: int) -> bool:
    """Whether a file ends in an MP4 that its XMP, or the trailer of Samsung's cameras, says to be there."""
    if data[start + 4 : start + 8] != b"ftyp" or start < 0:
        return False
    said = any(name in data[: start + 8] for name in (b"MotionPhoto", b"MicroVideo"))
    return said and any(box.kind == b"moov" for box in boxes(data[start:]))
