"""Image files made on the spot, of kinds that Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.inputs.containers import PNG_START, png_chunk


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file as Pillow writes it."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def with_chunks(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with chunks behind its header."""
    return data[:33] + b"".join(png_chunk(*chunk) for chunk in chunks) + data[33:]


def png(values: NDArray[Any], depth: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of `[H, W, C]` values; depth in bits, kind as in its header."""
    rows = values.reshape(len(values), -1)
    if depth == 16:
        lines = [b"\0" + row.astype(">u2").tobytes() for row in rows]
    else:
        step = 8 // depth
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % step))).reshape(len(rows), -1, step)
        packed = (padded << np.arange(8 - depth, -1, -depth)).sum(2).astype(np.uint8)
        lines = [b"\0" + line.tobytes() for line in packed]
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, kind, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")]
    return PNG_START + b"".join(png_chunk(*part) for part in parts)


def tiff(
    pixels: bytes,
    size: tuple[int, int],
    bits: int,
    photometric: int,
    *,
    form: int = 1,
    order: str = "<",
    more: tuple[tuple[int, int, int], ...] = (),
) -> bytes:
    """An uncompressed TIFF of one strip and one sample a pixel; `more` tags are tag, kind, value."""
    tags = [
        (256, 3, size[0]),
        (257, 3, size[1]),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, size[1]),
        (279, 4, len(pixels)),
        (339, 3, form),
        *more,
    ]
    start = 8 + len(pixels) + len(pixels) % 2
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    table = struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        table += struct.pack(order + "HHI", tag, kind, 1)
        table += struct.pack(order + ("HH" if kind == 3 else "I"), *((value, 0) if kind == 3 else (value,)))
    return head + pixels.ljust(start - 8, b"\0") + table + bytes(4)
