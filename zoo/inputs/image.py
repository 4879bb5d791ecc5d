"""From any image a user may send to uint8 RGB pixels: decode, turn upright, convert to sRGB, limit, fit.

Training, prediction and exported bundles all decode here, so that they see the same pixels.
"""

from __future__ import annotations

import io
import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import version
from typing import TypeAlias

import numpy as np
import PIL
from PIL import Image

from zoo.contract.card import ImageInput
from zoo.contract.policy import PolicyFile
from zoo.contract.verdict import Cause, Unseen
from zoo.errors import BadInputError
from zoo.inputs.formats import FORMATS, demuxer
from zoo.inputs.picture import Frame, from_bytes, from_pillow, later_frames
from zoo.inputs.sources import (
    DEFAULT_LIMITS,
    Decoded,
    ImageLimits,
    ImageSource,
    Pixels,
    check_source,
    copied,
    is_pixels,
    pixels_of,
    read,
    source_name,
)
from zoo.inputs.video import Film, Video, video_of

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "LARGEST",
    "Box",
    "Decoded",
    "Frame",
    "ImageLimits",
    "ImageSource",
    "Pixels",
    "check_source",
    "decode",
    "decode_for",
    "decode_with_notes",
    "fit",
    "frames_for",
    "load",
    "needed",
    "own_box",
    "owned",
    "resize",
    "resizer",
    "source_name",
]

#: Left, top, right, bottom in pixels of a picture.
Box: TypeAlias = tuple[float, float, float, float]
#: What to give as `need` to a model whose processor resizes by itself: none takes more.
LARGEST = 1024

_Resize: TypeAlias = Callable[[Image.Image, tuple[int, int], Image.Resampling, Box], Image.Image]
#: From version 13 on, Pillow begins with the height where that shrinks by more than twice as many pixels.
_DOWN_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
log = logging.getLogger("zoo.inputs.image")


def decode(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS, *, need: int | None = None) -> Image.Image:
    """Decode an image to upright RGB in sRGB, as a viewer shows it.

    A source is a path, the bytes of a file, a file open for reading, a Pillow image, an array `[H, W, 3]` or `[H, W]`,
    or a torch tensor `[3, H, W]`; arrays and tensors are uint8, or floats in [0, 1]. A `Decoded` is taken as it is.

    EXIF orientation and colour profiles are honoured; transparency is laid on white, as a browser shows it; of 16 bits
    the higher 8 count; of an animation or video the first frame counts, and `info["frames"]` says how many there are.
    With `need`, a picture whose short side is at least 8 times that many pixels comes at a half, a quarter or an eighth
    of its size, and keeps 4 times `need`.

    Raises BadInputError, naming the source and the reason, and BadTypeError for a source of another type.

    >>> decode("photo.jpg").mode
    'RGB'
    """
    return _decoded(source, limits, need, watched=False).image


def decode_with_notes(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS, *, need: int | None = None) -> Decoded:
    """As `decode`, with what is known to be amiss with the file: see `Decoded`."""
    return _decoded(source, limits, need, watched=True)


def fit(image: Image.Image | Decoded, spec: ImageInput, box: Box | None = None, *, pad: bool = False) -> Pixels:
    """Resize an RGB image, or the part of it in `box`, to the model's `[size, size, 3]` uint8, as `spec` says.

    Without a box it is the part that the card's own view shows. With `pad` the aspect ratio is kept by bars. Of a
    `Decoded` that is reduced the same part is taken as of the whole picture.

    Pillow's antialiased filters are CLIP's definition of the resize; `zoo.models.base.Resize` is the same in torch, and
    the extra "fast" the same in less time (`resizer`), each within one grey level.
    """
    box = box or own_box(*image.size, spec)
    if not pad:
        return _recompressed(resize(image, spec, (spec.size, spec.size), box), spec)
    scale = spec.size / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    left, top = (spec.size - width) // 2, (spec.size - height) // 2
    pixels = np.empty((spec.size, spec.size, 3), dtype=np.uint8)
    pixels[:] = np.round(255 * np.array(spec.mean).clip(0, 1))
    pixels[top : top + height, left : left + width] = resize(image, spec, (width, height), box)
    return _recompressed(pixels, spec)


def _recompressed(pixels: Pixels, spec: ImageInput) -> Pixels:
    """The pixels after the JPEG round trip that the card asks for, by Pillow with its default options."""
    if spec.recompress is None:
        return pixels
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=spec.recompress)
    return np.array(Image.open(stream))


def resize(image: Image.Image | Decoded, spec: ImageInput, size: tuple[int, int], box: Box) -> Pixels:
    """The part of an RGB image in `box`, as `[height, width, 3]` uint8 of this size, by the interpolation of `spec`.

    The box of a `Decoded` is in pixels of the whole picture, however much it is reduced.
    """
    picture, scale = (image.image, image.scale) if isinstance(image, Decoded) else (image, 1)
    left, top, right, bottom = box
    if spec.interpolation == "bilinear_align_corners":
        # Pixel centres of the corners map onto each other (TensorFlow's align_corners); no antialiasing.
        across, down = (right - left - 1) / max(size[0] - 1, 1), (bottom - top - 1) / max(size[1] - 1, 1)
        matrix = (across, 0.0, left + 0.5 - 0.5 * across, 0.0, down, top + 0.5 - 0.5 * down)
        scaled = tuple(number / scale for number in matrix)
        resized = picture.transform(size, Image.Transform.AFFINE, scaled, Image.Resampling.BILINEAR)
    else:
        method = Image.Resampling.BICUBIC if spec.interpolation == "bicubic" else Image.Resampling.BILINEAR
        part = (left / scale, top / scale, right / scale, bottom / scale)
        resized = _shrunk(picture, size, method, part)
    return np.array(resized)  # a copy: torch takes no read-only arrays


def resizer() -> str:
    """What shrinks pictures: "cykooz-resizer" where the extra "fast" is installed, else "pillow", with its version."""
    return f"cykooz-resizer {version('cykooz-resizer')}" if _one_pass() else f"pillow {PIL.__version__}"


def _shrunk(picture: Image.Image, size: tuple[int, int], method: Image.Resampling, box: Box) -> Image.Image:
    """As `picture.resize(size, method, box)`, by the extra "fast" where it is installed and no side grows."""
    (width, height), (left, top, right, bottom) = size, box
    one_pass = _one_pass() if right - left >= width and bottom - top >= height else None
    if one_pass is None:
        return picture.resize(size, method, box)
    # One axis after the other, in Pillow's order, as it rounds to 8 bits in between.
    if _DOWN_FIRST and picture.height - height > 2 * (picture.width - width):
        first, last = _reached(left, right, width, picture.width)
        low = one_pass(picture, (last - first, height), method, (first, top, last, bottom))
        return one_pass(low, size, method, (left - first, 0, right - first, height))
    first, last = _reached(top, bottom, height, picture.height)
    narrow = one_pass(picture, (width, last - first), method, (left, first, right, last))
    return one_pass(narrow, size, method, (0, top - first, width, bottom - first))


def _reached(start: float, end: float, size: int, length: int) -> tuple[int, int]:
    """The first pixel, and that after the last one, which count when those from `start` to `end` become `size`."""
    reach = math.ceil(2 * (end - start) / size) + 1  # two pixels of the smaller picture, as bicubic takes
    return max(0, math.floor(start) - reach), min(length, math.ceil(end) + reach)


@cache
def _one_pass() -> _Resize | None:
    """The resize of the extra "fast"; None where it is not installed, or does not do what Pillow does.

    It reads the memory of Pillow's images, so that a version of either might not fit one of the other.
    """
    try:
        from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
    except ImportError:
        return None
    filters = {Image.Resampling.BICUBIC: FilterType.catmull_rom, Image.Resampling.BILINEAR: FilterType.bilinear}

    def one_pass(picture: Image.Image, size: tuple[int, int], method: Image.Resampling, box: Box) -> Image.Image:
        result = Image.new("RGB", size, None)
        crop = CropBox(box[0], box[1], box[2] - box[0], box[3] - box[1])
        options = ResizeOptions(resize_alg=ResizeAlg.convolution(filters[method]), crop_box=crop)
        Resizer().resize_pil(picture, result, options)  # a new one each time: none serves two threads at once
        return result

    picture = Image.frombytes("RGB", (23, 17), random.Random(0).randbytes(23 * 17 * 3))
    try:
        found, wanted = (
            np.asarray(resized(picture, (7, 17), Image.Resampling.BICUBIC, (2.5, 0, 20, 17)), np.int16)
            for resized in (one_pass, Image.Image.resize)
        )
        if np.abs(found - wanted).max() <= 1:
            return one_pass
        problem = "its pixels differ"
    except Exception as error:
        problem = str(error)
    log.warning("pictures are resized by Pillow: cykooz-resizer does not fit Pillow %s: %s", PIL.__version__, problem)
    return None


def load(source: ImageSource, spec: ImageInput, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Decode and fit in one go: any image source to `[size, size, 3]` uint8. Raises what `decode` raises.

    Pixels of that shape are what the model reads: neither `margin` nor `recompress` changes them.
    """
    if is_pixels(source):
        pixels = pixels_of(source)
        if pixels.shape == (spec.size, spec.size, 3):
            return np.array(pixels)  # it fits; a copy, because the caller may write into its own array
        return fit(Image.fromarray(pixels), spec)
    return fit(_decoded(source, limits, needed(spec), watched=False), spec)


def decode_for(source: ImageSource, spec: ImageInput, limits: ImageLimits = DEFAULT_LIMITS) -> Decoded:
    """Decode for a model that reads `spec`, so that `fit` gives what `load` gives, with what is amiss with the file.

    Raises what `decode` raises.
    """
    return _decoded(source, limits, needed(spec), watched=True)


class Stills:
    """A picture, or the frames of an animation, or pages; afterwards `unseen` says what no model looked at."""

    def __init__(self, first: Decoded, later: Iterable[Frame] = ()) -> None:
        """The frames after the first are decoded when they are asked for."""
        self.frames, self._first, self._later = first.frames, first, later

    def __iter__(self) -> Iterator[Frame]:
        """Each frame, once."""
        yield Frame(0 if self.frames > 1 else None, None, self._first)
        yield from self._later

    def unseen(self, judged: int) -> dict[Cause, Unseen]:
        """What is unseen after so many frames were judged."""
        return {"frames": Unseen(self.frames - judged, self.frames)} if judged < self.frames else {}


def frames_for(source: ImageSource, spec: ImageInput, limits: ImageLimits, policy: PolicyFile) -> Stills | Film:
    """The frames that a policy asks for: as `decode_for` gives the first, and more of an animation, pages, or a video.

    Pixels, and pictures that were decoded already, have one. Raises what `decode` raises, for a video when it is
    iterated.
    """
    check_source(source)
    need = needed(spec) if policy.scale == "short" else None
    if isinstance(source, (Decoded, Image.Image)) or is_pixels(source):
        return Stills(_decoded(source, limits, need, watched=True))
    file = _file(source, limits)
    if isinstance(file, Video):
        return file.film(limits, need, policy)
    first = from_bytes(*file, limits, need, watched=True)
    more = policy.frames > 1 and first.frames > 1
    return Stills(first, later_frames(file[0], limits, need, policy.frames) if more else ())


def needed(spec: ImageInput) -> int | None:
    """The `need` of a model: its size; None where it takes single pixels, which a reduced picture has others of."""
    return None if spec.interpolation == "bilinear_align_corners" else spec.size


def owned(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> ImageSource:
    """A source that stays what it is when the caller writes into its array, or closes its file, afterwards.

    Raises BadTypeError for a source of a type that is not taken, BadDataError for a stream that cannot be read.
    """
    check_source(source)
    if isinstance(source, Image.Image):
        try:
            return decode_with_notes(source, limits)
        except BadInputError:
            return source  # whoever decodes it says why not
    return copied(source, limits)


def _decoded(source: ImageSource, limits: ImageLimits, need: int | None, *, watched: bool) -> Decoded:
    check_source(source)
    if isinstance(source, Decoded):
        return source
    if is_pixels(source):
        image = Image.fromarray(pixels_of(source))
        return Decoded(image, image.size)
    if isinstance(source, Image.Image):
        return from_pillow(source, limits, watched=watched)
    file = _file(source, limits)
    if isinstance(file, Video):
        return file.first(limits, need)
    return from_bytes(*file, limits, need, watched=watched)


def _file(source: ImageSource, limits: ImageLimits) -> tuple[bytes, str] | Video:
    """The bytes of a picture's file, and its name; or a video, of which a path is not read whole."""
    data, name = read(source, limits, demuxer)
    return video_of(source, data, name) or (data, name)


def own_box(width: int, height: int, spec: ImageInput) -> Box:
    """The part of the source that the card's own view keeps, so that only that part is resized."""
    if spec.resize == "squash":
        left, top = width * spec.margin, height * spec.margin
        return left, top, width - left, height - top
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
