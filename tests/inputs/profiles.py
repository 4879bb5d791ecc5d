"""ICC profiles made on the spot, for tests of colours."""

from __future__ import annotations

import itertools
import struct

import numpy as np


def fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def profile(kind: bytes, space: bytes, between: bytes, tags: dict[bytes, bytes], version: int = 0x02400000) -> bytes:
    """A profile of a class, a colour space and a connection space, with its tags."""
    table, body = struct.pack(">I", len(tags)), b""
    first = 132 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", first + len(body), len(content))
        body += content
    head = struct.pack(">I4xI", first + len(body), version) + kind + space + between + bytes(12) + b"acsp" + bytes(28)
    return head + fixed(0.9642, 1.0, 0.8249) + bytes(48) + table + body


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def rgb(columns: tuple[tuple[float, float, float], ...], gamma: float) -> bytes:
    """Of the XYZ of red, green and blue, adapted to D50, and a power."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)}
    tags |= {
        name: b"XYZ \0\0\0\0" + fixed(*xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)
    }
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma))
    return profile(b"mntr", b"RGB ", b"XYZ ", tags)


#: Adobe RGB (1998) as its specification gives it, and a made-up space in which red and blue change places.
ADOBE_RGB = rgb(((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)), 2.19922)
SWAPPED = rgb(((0.14307, 0.06061, 0.71410), (0.38515, 0.71687, 0.09708), (0.43607, 0.22249, 0.01392)), 2.2)
GREY = profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249), b"kTRC": curve(1.0)})


def _press() -> bytes:
    """A printer whose inks are weak: full cyan, magenta, yellow and black are L, a, b values between which it mixes."""
    inks = np.array([(-30, -20, -40), (-35, 60, 0), (-5, 0, 70), (-70, 0, 0)], dtype=float)
    corners = b""
    for amounts in itertools.product((0, 1), repeat=4):
        lab = np.array([100.0, 0, 0]) + np.array(amounts) @ inks
        corners += bytes(np.clip(np.round([lab[0] * 2.55, lab[1] + 128, lab[2] + 128]), 0, 255).astype(int).tolist())
    straight = bytes(range(256))
    identity = fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + straight * 4 + corners + straight * 3
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut, b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)})


PRESS = _press()
