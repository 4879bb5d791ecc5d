"""Image files of the kinds that decoders get wrong, drawn when they are needed. No torch."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def golden_images() -> dict[str, bytes]:
    """Image files by name: rotated by EXIF, CMYK, alpha, palette, 16 bits, grey, animated, 1 pixel, thin, large."""
    halves = Image.new("RGB", (60, 40), "red")
    halves.paste((0, 0, 255), (30, 0, 60, 40))  # left red, right blue
    orientation = Image.Exif()
    orientation[0x0112] = 6  # turn clockwise to see it upright: red on top
    clear = Image.new("RGBA", (20, 10), (255, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (10, 0, 20, 10))  # right half: transparent black
    palette = Image.new("P", (20, 10), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(1, (10, 0, 20, 10))
    steps = np.repeat(np.array([0, 256 * 100, 65535], dtype=np.uint16), 4)[None].repeat(6, axis=0)
    down, across = np.mgrid[0:1500, 0:2000]
    large = np.stack([across * 255 // 1999, down * 255 // 1499, np.full_like(down, 128)], axis=2).astype(np.uint8)
    return {
        "exif_rotated.jpg": _encode(halves, "JPEG", quality=95, exif=orientation),
        "cmyk.jpg": _encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95),
        "transparent.png": _encode(clear, "PNG"),
        "palette.png": _encode(palette, "PNG", transparency=1),
        "grey16.png": _encode(Image.fromarray(steps), "PNG"),
        "grey.jpg": _encode(Image.new("L", (16, 8), 77), "JPEG"),
        "animated.gif": _encode(
            Image.new("RGB", (12, 12), "lime"), "GIF", save_all=True, append_images=[Image.new("RGB", (12, 12), "red")]
        ),
        "pixel.png": _encode(Image.new("RGB", (1, 1), (10, 20, 30)), "PNG"),
        "thin.png": _encode(Image.new("RGB", (3000, 1), (200, 100, 50)), "PNG"),
        "large.jpg": _encode(Image.fromarray(large), "JPEG", quality=90),
        "webp.webp": _encode(halves, "WEBP", lossless=True),
        "progressive.jpg": _encode(halves, "JPEG", quality=95, progressive=True),
    }


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
