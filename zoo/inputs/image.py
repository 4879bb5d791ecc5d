"""From any image a user may send to uint8 RGB pixels: decode, orient, convert, limit, fit. Pillow and numpy only.

Training, prediction and exported bundles all decode here, so that they see the same pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.contract.card import ImageInput
from zoo.errors import BadArgumentError, BadDataError, BadInputError

Pixels: TypeAlias = NDArray[np.uint8]
#: Left, top, right, bottom in pixels of a picture.
Box: TypeAlias = tuple[float, float, float, float]
ImageSource: TypeAlias = str | Path | bytes | NDArray[np.generic]

#: Raster formats only. Pillow would also hand PostScript to Ghostscript, and read sixty rare formats.
#: MPO comes with JPEG: naming it here would make Pillow raise KeyError, as it registers no opener of that name.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


@dataclass(frozen=True)
class ImageLimits:
    """Limits that are checked before any pixel is decoded. `max_pixels` is width x height.

    Decoding takes about 4 bytes a pixel, 8 where four channels become three (RGBA, CMYK) or an image is turned
    upright: at most 512 MB with the defaults.
    """

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 64_000_000


DEFAULT_LIMITS = ImageLimits()


def decode(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode a path, the bytes of a file, or a uint8 `[H, W, 3]` RGB array to an upright RGB image.

    EXIF orientation is honoured; transparency is laid on white, as a browser shows it; 16-bit grey keeps its
    high byte; of an animation the first frame counts, and `info["frames"]` says how many there are. Raises
    BadInputError, naming the source and the reason.
    """
    if isinstance(source, np.ndarray):
        return Image.fromarray(check_array(source))
    data, name = _read(source, limits)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.max_pixels:
                raise BadDataError(
                    f"{name}: {width} x {height} pixels, the limit is {limits.max_pixels:,}, which take up to "
                    f"{8 * limits.max_pixels / 1e6:,.0f} MB (`max_pixels`; a decompression bomb?)"
                )
            image.seek(0)
            ImageOps.exif_transpose(image, in_place=True)  # a copy of an upright image would take most of the time
            frames = getattr(image, "n_frames", 1)
            shown = _to_rgb(image)
            shown.info["frames"] = frames
            return shown
    except Image.DecompressionBombError:
        raise BadDataError(f"{name}: more than {limits.max_pixels:,} pixels (a decompression bomb?)") from None
    except UnidentifiedImageError:
        raise BadDataError(f"{name}: not an image ({_guess(data)}); readable are {', '.join(FORMATS)}") from None
    except BadInputError:
        raise
    except Exception as problem:  # Pillow's decoders raise anything from OSError to struct.error on broken files
        raise BadDataError(f"{name}: broken or truncated image: {problem}") from None


def check_array(array: NDArray[np.generic]) -> Pixels:
    """Return the array if it is uint8 `[H, W, 3]`. Raises BadInputError saying what it is instead."""
    given = f"got {array.dtype} {list(array.shape)}"
    if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
        raise BadDataError(f"image array holds NaN; expected uint8 [H, W, 3] RGB, {given}")
    if array.dtype != np.uint8:
        raise BadArgumentError(f"image array must be uint8 in [0, 255] (not floats in [0, 1]), {given}")
    if array.ndim != 3 or array.shape[2] != 3:
        hint = "; transpose to channels last" if array.ndim == 3 and array.shape[0] == 3 else ""
        raise BadArgumentError(f"image array must be [H, W, 3] RGB, {given}{hint}")
    if 0 in array.shape:
        raise BadDataError(f"image array has no pixels, {given}")
    return np.ascontiguousarray(array, dtype=np.uint8)


def fit(image: Image.Image, spec: ImageInput) -> Pixels:
    """Resize an RGB image to the model's `[size, size, 3]` uint8, as `spec` says.

    Pillow's antialiased filters are CLIP's definition of the resize; `zoo.models.base.Resize` is the same in torch,
    within one grey level.
    """
    return resize(image, spec, (spec.size, spec.size), own_box(image.width, image.height, spec))


def resize(image: Image.Image, spec: ImageInput, size: tuple[int, int], box: Box) -> Pixels:
    """The part of an RGB image in `box`, as `[height, width, 3]` uint8 of this size."""
    if spec.interpolation == "bilinear_align_corners":
        # Pixel centres of the corners map onto each other (TensorFlow's align_corners); no antialiasing.
        left, top, right, bottom = box
        across, down = (right - left - 1) / max(size[0] - 1, 1), (bottom - top - 1) / max(size[1] - 1, 1)
        matrix = (across, 0.0, left + 0.5 - 0.5 * across, 0.0, down, top + 0.5 - 0.5 * down)
        resized = image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    else:
        method = Image.Resampling.BICUBIC if spec.interpolation == "bicubic" else Image.Resampling.BILINEAR
        resized = image.resize(size, method, box=box)
    return np.array(resized)  # a copy: torch takes no read-only arrays


def load(source: ImageSource, spec: ImageInput, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Decode and fit in one go: any image source to `[size, size, 3]` uint8. Raises BadInputError."""
    if isinstance(source, np.ndarray) and source.shape == (spec.size, spec.size, 3):
        return np.array(check_array(source))  # it fits; a copy, because the caller may write into its own array
    return fit(decode(source, limits), spec)


def source_name(source: ImageSource | None) -> str:
    """The name of a source in messages and verdicts: a path as valid Unicode for any bytes; else empty."""
    if not isinstance(source, (str, Path)):
        return ""
    return str(source).encode("utf-8", "backslashreplace").decode()


def own_box(width: int, height: int, spec: ImageInput) -> Box:
    """The part of the source that the card's own view keeps, so that only that part is resized."""
    if spec.resize == "squash":
        return 0.0, 0.0, float(width), float(height)
    size, short = spec.size, min(width, height)
    full_width, full_height = size * width // short, size * height // short
    left, top = (full_width - size) // 2, (full_height - size) // 2
    across, down = width / full_width, height / full_height
    return (
        left * across,
        top * down,
        min((left + size) * across, float(width)),
        min((top + size) * down, float(height)),
    )


def _read(source: str | Path | bytes, limits: ImageLimits) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        data, name = source, f"{len(source)} bytes"
    elif isinstance(source, (str, Path)):
        path, name = Path(source), source_name(source)
        try:
            if path.is_dir():
                raise BadDataError(f"{name}: is a directory, expected an image file")
            if path.exists() and not path.is_file():  # a pipe or a device would never end
                raise BadDataError(f"{name}: is not a regular file, expected an image file")
            with path.open("rb") as stream:
                data = stream.read(limits.max_bytes + 1)
        except FileNotFoundError:
            raise BadDataError(f"{name}: no such file") from None
        except BadInputError:
            raise
        except (OSError, ValueError) as problem:  # ValueError: a null character in the name
            raise BadDataError(f"{name[:200]}: cannot be read: {getattr(problem, 'strerror', problem)}") from None
    else:
        raise BadArgumentError(f"an image is a path, bytes or a uint8 array, got {type(source).__name__}")
    if not data:
        raise BadDataError(f"{name}: empty file")
    if len(data) > limits.max_bytes:
        raise BadDataError(f"{name}: larger than the limit of {limits.max_bytes:,} bytes")
    return data, name


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image.copy() if image.readonly else image
    image.load()
    if image.mode.startswith("I"):  # 16 bits a pixel: keep the high byte; Pillow's own conversion would clip
        extremes: Any = image.getextrema()
        return _by_strips(image, partial(_high_bytes, shift=8 if image.mode != "I" or extremes[1] > 255 else 0))
    if image.mode == "F":
        raise BadDataError("floating-point pixels have no defined range; convert to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _by_strips(image, _on_white)
    return image.convert("RGB")


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """An image converted to RGB in strips, which need little memory in between."""
    result = Image.new("RGB", image.size)
    height = max(1, 1_000_000 // image.width)
    for top in range(0, image.height, height):
        strip = image.crop((0, top, image.width, min(top + height, image.height)))
        result.paste(convert(strip), (0, top))
    return result


def _high_bytes(image: Image.Image, shift: int) -> Image.Image:
    grey = np.asarray(image).astype(np.int64)
    return Image.fromarray((grey >> shift).clip(0, 255).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    clear = image.convert("RGBA")
    white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, clear).convert("RGB")


def _guess(data: bytes) -> str:
    head = data[:256].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "it looks like HTML or SVG text"
    if head.startswith(b"%pdf"):
        return "it is a PDF"
    if head.isascii() and head.decode().isprintable():
        return "it looks like text"
    return f"it starts with {data[:8].hex(' ')}"
