"""What may be given as an image: a file, its bytes, a stream, pixels, a Pillow image. Torch is never imported."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.errors import BadArgumentError, BadDataError, BadInputError, BadTypeError

Pixels: TypeAlias = NDArray[np.uint8]


class Tensor(Protocol):
    """A torch tensor, without an import of torch."""

    def detach(self) -> Any:
        """The same values without gradients."""
        ...


@dataclass(frozen=True)
class Decoded:
    """A picture as people see it.

    `image` is upright RGB, on white, in sRGB. `size` is its width and height in the file, upright; where the caller
    said which size it needs, `image` is `scale` times smaller, and its last row and column cover what is left over.
    `notes` are short causes for which it may not show what was meant: those of `zoo.inputs.damage`, and
    `PROFILE_IGNORED` and `HDR_IGNORED` of `zoo.inputs.colour`. It is the first that is shown of `frames`, or of pages.
    Through the share `transparent` of it the ground is seen; `grounds` hold the picture on others, by name.
    """

    image: Image.Image
    size: tuple[int, int]
    scale: int = 1
    notes: tuple[str, ...] = ()
    frames: int = 1
    transparent: float = 0.0
    grounds: dict[str, Image.Image] = field(default_factory=dict)


ImageSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | Image.Image
    | Decoded
    | NDArray[np.generic]
    | Tensor
)

_TAKEN = (
    "an image is a path, the bytes of a file, a file open for reading bytes, a Pillow image, an array [H, W, 3] or "
    "[H, W], or a torch tensor [3, H, W]"
)

#: How far rounding may carry a float out of [0, 1].
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ImageLimits:
    """Limits that are checked before any pixel is decoded. Pixels are width x height.

    `max_bytes` bounds a file, `max_pixels` what is decoded of it. Where a JPEG is decoded at a smaller scale, because
    the caller says which size it needs, `max_header_pixels` bounds the size that its header gives.

    Of a video `max_pixels` bounds one frame, and `max_video_pixels` all that are decoded: an hour of 1920 x 1080 at 30
    frames a second by default. `max_bytes` bounds its bytes or stream, and no path: it is read piece by piece.

    Decoding takes about 4 bytes a pixel, 256 MB with the defaults. It takes more where the decoder does: animated
    WebP 16 bytes (libwebp's decoder of animations holds two canvases; any WebP where Pillow has libwebp built in),
    AVIF 10 (libavif's planes and its copy; 2 to 5 where the extra "video" converts it), progressive JPEG 2 to 6 more
    (libjpeg's coefficients of the whole picture, which `max_pixels` bounds where it is decoded at a smaller scale).
    """

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 64_000_000
    max_header_pixels: int = 256_000_000
    max_video_pixels: int = 224_000_000_000


DEFAULT_LIMITS = ImageLimits()


def check_source(source: object) -> None:
    """Raise BadTypeError if a value has none of the types that an image is given as, or pixels of another type."""
    if isinstance(source, io.TextIOBase):
        raise BadTypeError(f'{_TAKEN}; this file is open for text: open it with "rb"')
    by_class = isinstance(source, (str, os.PathLike, Image.Image, Decoded)) or is_bytes(source) or is_pixels(source)
    if not by_class and not callable(getattr(source, "read", None)):
        raise BadTypeError(f"{_TAKEN}, got {type(source).__name__}")
    if is_pixels(source) and (what := _without_range(source)):
        raise BadTypeError(f"{_TAKEN}; pixels are uint8 in [0, 255] or floats in [0, 1], got {what}")


def _without_range(source: NDArray[np.generic] | Tensor) -> str:
    """What the pixels are instead of uint8 or floats, which have a known range, in memory; "" for these."""
    if isinstance(source, np.ndarray):
        known = source.dtype == np.uint8 or np.issubdtype(source.dtype, np.floating)
        return "" if known else f"an array of {source.dtype}"
    tensor: Any = source
    if str(tensor.layout) != "torch.strided" or tensor.is_meta:
        return f"a tensor of {tensor.layout} on {tensor.device}"
    return "" if tensor.is_floating_point() or str(tensor.dtype) == "torch.uint8" else f"a tensor of {tensor.dtype}"


def is_bytes(source: object) -> TypeGuard[bytes | bytearray | memoryview]:
    """Whether a source is the bytes of a file."""
    return isinstance(source, (bytes, bytearray, memoryview))


def is_pixels(source: object) -> TypeGuard[NDArray[np.generic] | Tensor]:
    """Whether a source is an array or a torch tensor."""
    torch: Any = sys.modules.get("torch")  # who gives a tensor has imported it
    return isinstance(source, np.ndarray) or (torch is not None and isinstance(source, torch.Tensor))


def source_name(source: object) -> str:
    """The name of a source in messages and verdicts: a path as valid Unicode for any bytes; else empty."""
    if not isinstance(source, (str, os.PathLike)):
        return ""
    return os.fsdecode(source).encode("utf-8", "backslashreplace").decode()


def copied(source: ImageSource, limits: ImageLimits) -> ImageSource:
    """A source other than Pillow's that keeps its value: pixels are copied, a stream is read."""
    if isinstance(source, np.ndarray):
        return source.copy()
    if is_pixels(source):
        return source.detach().clone()  # type: ignore[union-attr,no-any-return]
    if isinstance(source, (str, os.PathLike)):
        return source
    return bytes(source) if is_bytes(source) else _read_stream(source, limits)[0]


def read(
    source: ImageSource, limits: ImageLimits, in_pieces: Callable[[bytes], object] = lambda head: None
) -> tuple[bytes, str]:
    """The bytes of a file, given by path, as a stream or as they are, and its name in messages.

    Of a path the first 4 KB are all where they say (`in_pieces`) that the file is not to be held in memory. A stream is
    read from where it stands, and not closed. Raises BadInputError, BadTypeError.
    """
    check_source(source)
    if is_bytes(source):
        data, name = bytes(source), f"{len(source)} bytes"
    elif isinstance(source, (str, os.PathLike)):
        data, name = _read_path(source, limits.max_bytes + 1, in_pieces), source_name(source)
        if in_pieces(data[:_HEAD]):
            return data, name
    else:
        data, name = _read_stream(source, limits)
    if not data:
        raise BadDataError(f"{name}: empty file")
    if len(data) > limits.max_bytes:
        raise BadDataError(f"{name}: larger than the limit of {limits.max_bytes:,} bytes (`max_bytes`)")
    return data, name


#: Bytes of a file that tell what it is.
_HEAD = 4096


def _read_path(source: str | os.PathLike[str], most: int, in_pieces: Callable[[bytes], object]) -> bytes:
    path, name = Path(source), source_name(source)
    try:
        if path.is_dir():
            raise BadDataError(f"{name}: is a directory, expected an image file")
        if path.exists() and not path.is_file():  # a pipe or a device would never end
            raise BadDataError(f"{name}: is not a regular file, expected an image file")
        with path.open("rb") as stream:
            if len(head := stream.read(_HEAD)) < _HEAD or in_pieces(head):
                return head
            stream.seek(0)
            return stream.read(most)
    except FileNotFoundError:
        raise BadDataError(f"{name}: no such file") from None
    except BadInputError:
        raise
    except (OSError, ValueError) as problem:  # ValueError: a null character in the name
        raise BadDataError(f"{name[:200]}: cannot be read: {getattr(problem, 'strerror', problem)}") from None


def _read_stream(stream: Any, limits: ImageLimits) -> tuple[bytes, str]:
    name = source_name(getattr(stream, "name", None)) or "a stream"
    parts, size = [], 0
    try:
        while size <= limits.max_bytes and (part := stream.read(limits.max_bytes + 1 - size)):  # a socket gives parts
            if not isinstance(part, bytes):
                raise BadTypeError(f"{_TAKEN}; reading {name} gave {type(part).__name__}")
            parts.append(part)
            size += len(part)
    except (OSError, ValueError) as problem:  # ValueError: the stream is closed
        raise BadDataError(f"{name}: cannot be read: {problem}") from None
    return b"".join(parts), name


def pixels_of(source: NDArray[np.generic] | Tensor) -> Pixels:
    """An array or a tensor as uint8 `[H, W, 3]`, the same memory where it is that already.

    Arrays are `[H, W, 3]`, `[H, W, 1]` or `[H, W]`, tensors `[3, H, W]` or `[1, H, W]`; uint8 in [0, 255] or floats in
    [0, 1]. Raises BadTypeError for values of another type, and BadInputError for another shape or range, saying what it
    is instead.
    """
    check_source(source)
    if isinstance(source, np.ndarray):
        given = f"image array must be [H, W, 3] RGB or [H, W] grey, got {source.dtype} {list(source.shape)}"
        _refuse_both_ways(source.shape, given)
        return _rgb(source, given)
    tensor = source.detach().cpu()
    given = f"image tensor must be [3, H, W] RGB or [1, H, W] grey, got {tensor.dtype} {list(tensor.shape)}"
    if tensor.ndim == 4 and len(tensor) == 1:
        raise BadArgumentError(f"{given}; a batch of one: give tensor[0]")
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise BadArgumentError(given + ("; permute it to channels first" if tensor.shape[-1:] == (3,) else ""))
    _refuse_both_ways(tuple(tensor.shape), given)
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
    return _rgb(array.transpose(1, 2, 0), given)


def _refuse_both_ways(shape: tuple[int, ...], given: str) -> None:
    if len(shape) == 3 and shape[0] == shape[2] == 3:
        raise BadArgumentError(f"{given}, which reads as [3, H, W] and as [H, W, 3]: give a Pillow image")


def _rgb(array: NDArray[np.generic], given: str) -> Pixels:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 3):
        raise BadArgumentError(given + _hint(array.shape))
    if 0 in array.shape:
        raise BadDataError(f"the image has no pixels: {given}")
    levels = array if array.dtype == np.uint8 else _levels(array, given)
    colours = levels if array.ndim == 3 else np.broadcast_to(levels[:, :, None], (*levels.shape, 3))
    return np.ascontiguousarray(colours, dtype=np.uint8)


def _hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 4:
        return "; a batch: give its images one by one"
    if len(shape) == 3 and shape[0] in (1, 3):
        return "; transpose to channels last"
    return "; lay it on a ground first, as a viewer would" if len(shape) == 3 and shape[2] == 4 else ""


def _levels(array: NDArray[np.generic], given: str) -> Pixels:
    """Floats in [0, 1] as uint8, a few rows at a time."""
    least, most = float(array.min()), float(array.max())  # NaN comes through both
    if least != least:
        raise BadDataError(f"the image holds NaN: {given}")
    if not (least >= -_ROUNDING and most <= 1 + _ROUNDING):
        raise BadArgumentError(f"floats of an image lie in [0, 1], found {least:g} to {most:g}: {given}")
    levels = np.empty(array.shape, dtype=np.uint8)
    rows = max(1, 1_000_000 // array[0].size)
    for top in range(0, len(array), rows):
        part: NDArray[np.floating] = array[top : top + rows]  # type: ignore[assignment]
        levels[top : top + rows] = np.rint(part.astype(np.float32) * 255).clip(0, 255)
    return levels
