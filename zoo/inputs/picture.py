"""One picture, from a file or from Pillow, as people see it: upright RGB in sRGB, on white; with what was amiss."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from zoo.errors import BadDataError, BadInputError
from zoo.inputs.animation import apng_animation, composed, gif_animation
from zoo.inputs.avif import AvifRows, avif_rows
from zoo.inputs.colour import Colours
from zoo.inputs.containers import gif_blocks, index_of_pictures, is_gain_map, jpeg_head
from zoo.inputs.damage import Watch, damage_of
from zoo.inputs.formats import is_jpeg, open_image, open_without_metadata, why_not
from zoo.inputs.pixels import (
    QUARTER_TURNS,
    TURNS,
    Grounds,
    Lent,
    SampleFormat,
    decode_into,
    decode_to_mapped,
    has_16_bit_key,
    in_colours_of_file,
    keep_as_stored,
    read_low_bytes,
    rendered,
    take_key,
)
from zoo.inputs.sources import Decoded, ImageLimits
from zoo.inputs.webp import RowsError, WebpRows, webp_rows

#: EXIF's number of the orientation.
ORIENTATION = 0x0112
#: What decoding takes, where it is more than 4 bytes a pixel: Pillow's decoder of WebP holds two canvases and two
#: copies of the picture, that of AVIF its planes and two copies.
BYTES_A_PIXEL = {"WEBP": 16, "AVIF": 10, "HEIF": 12, "JXL": 16}
#: Up to so many pixels it does not pay to care for memory.
_SMALL = 2_000_000
#: An AVIF or WebP that takes more bytes is decoded in another way, where there is one.
_MUCH = 300_000_000
log = logging.getLogger("zoo.inputs.picture")


class Frame(NamedTuple):
    """A frame or page: its number from 0, and when it is first shown, in seconds, where the file says that.

    `number` is None for a picture that is the only one.
    """

    number: int | None
    seconds: float | None
    picture: Decoded


def from_bytes(data: bytes, name: str, limits: ImageLimits, need: int | None, *, watched: bool) -> Decoded:
    """The still picture of a file; `watched` looks for damage. Raises BadDataError with the name and the reason."""
    with reasons(name, data):
        stream = Watch(data) if watched and is_jpeg(data) else io.BytesIO(data)
        try:
            with open_image(stream, data) as image:
                watch = stream if isinstance(stream, Watch) else None
                decoded = _still(image, data, limits, need, watch, watched=watched)
        except BadInputError:
            raise
        except Exception:
            opened = open_without_metadata(data)
            if opened is None:
                raise
            decoded = _still(*opened, limits, need, watched=watched)
        return decoded if not watched else replace(decoded, notes=(*damage_of(data), *decoded.notes))


def later_frames(data: bytes, limits: ImageLimits, need: int | None, count: int) -> Iterator[Frame]:
    """The frames after the first of `count` that are evenly spaced, with the last one; each is decoded when asked for.

    They end before the first that is broken, or for which more pixels than the limit would be decoded on the way.
    """
    try:
        with open_image(io.BytesIO(data), data) as image:
            yield from _later_frames(image, data, limits, need, count)
    except Exception as problem:  # whoever asks counts what did not come
        log.info("a later frame cannot be read: %s", problem)


def _later_frames(
    image: Image.Image, data: bytes, limits: ImageLimits, need: int | None, count: int
) -> Iterator[Frame]:
    animation = {"GIF": gif_animation, "PNG": apng_animation}.get(image.format or "", lambda _: None)(data)
    if animation is not None:
        reached = sum(work <= limits.max_pixels for work in accumulate(part.area for part in animation.parts))
        chosen = spread(reached, count)[1:]
        for number, canvas in composed(animation, chosen, rgba) if chosen else ():
            picture = current(canvas, limits, need, data=data, about=image)
            yield Frame(number, animation.parts[number].start, picture)
        return
    shown = _shown(image, data)
    for number in spread(min(len(shown), limits.max_pixels // (image.width * image.height)), count)[1:]:
        image.seek(shown[number])
        picture = current(image, limits, need, data=data, ours=False)
        stamp = image.info.get("timestamp")  # in milliseconds, of WebP and AVIF
        yield Frame(number, None if stamp is None else stamp / 1000, picture)


def spread(total: int, count: int) -> list[int]:
    """At most `count` numbers from 0 to `total` - 1, evenly spaced, with the first and the last."""
    return [round(place) for place in np.linspace(0, total - 1, min(count, total))]


def from_pillow(image: Image.Image, limits: ImageLimits, *, watched: bool) -> Decoded:
    """An image of Pillow's as it is now, with its profile and orientation; it is not changed."""
    with reasons("a Pillow image", b""):
        return current(image, limits, None, ours=False, watched=watched)


@contextmanager
def reasons(name: str, data: bytes) -> Iterator[None]:
    """Whatever goes wrong with a picture ends as a BadDataError that begins with its name."""
    try:
        yield
    except BadInputError as problem:
        raise BadDataError(f"{name}: {problem}") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BadDataError(f"{name}: more than {most:,} pixels, Pillow's own limit (a decompression bomb?)") from None
    except UnidentifiedImageError:
        raise BadDataError(f"{name}: {why_not(data)}") from None
    except Exception as problem:  # Pillow's decoders raise anything from OSError to struct.error on broken files
        raise BadDataError(f"{name}: broken or truncated image: {problem}") from None


def current(
    image: Image.Image,
    limits: ImageLimits,
    need: int | None,
    *,
    data: bytes = b"",
    about: Image.Image | None = None,
    watch: Watch | None = None,
    ours: bool = True,
    watched: bool = True,
) -> Decoded:
    """The frame at which an opened image stands. Raises BadDataError, and what Pillow raises.

    `data` is the file. `about` has the colours and the orientation where another image has the pixels. Only what is
    `ours` is changed. `watched` keeps what else a transparent picture shows.
    """
    about = about or image
    frames = len(_shown(about, data))
    turned_by_pillow = image.format == "TIFF" and image.width * image.height >= _SMALL
    stored = keep_as_stored(image, orientation(image)) if ours and turned_by_pillow else None
    size, scale = image.size, scale_for(image.size, need)
    jpeg = image if ours and isinstance(image, JpegImagePlugin.JpegImageFile) else None
    check_pixels(size, limits, image.format, _scale_in_decoder(image, data, scale, limits) if jpeg else 1)
    if jpeg and need:
        jpeg.draft(None, (4 * need, 4 * need))
    if image.format == "JXL":
        image.load()  # its profile is known then, and it is upright whatever its EXIF says
        image.info.pop("exif", None)
    reduction = 1 if jpeg else scale
    take_key(image)
    colours, samples = Colours(about, data), SampleFormat.of(image, _low_bytes(image, data))
    rows = _rows(image, data, scale) if ours and image is about else None
    lent = _lent(image, reduction, stored) if ours and rows is None else None
    if watch and jpeg:
        watch.begin(jpeg, (lent and lent.canvas) or _canvas(jpeg))

    def upright(source: Image.Image | AvifRows | WebpRows) -> Decoded:
        turn = TURNS.get(stored or orientation(about))
        shown = size[::-1] if turn in QUARTER_TURNS else size
        grounds = Grounds((-(-shown[0] // scale), -(-shown[1] // scale))) if watched else None
        if isinstance(source, Image.Image) and _is_plain(source) and reduction == 1:
            picture = source if ours and not source.readonly else source.copy()
            picture = picture if colours.same else colours.srgb(picture)
            picture = picture if turn is None else picture.transpose(turn)
        else:
            picture = rendered(source, colours, samples, scale=reduction, turn=turn, lent=lent, grounds=grounds)
        picture.info = {"frames": frames}  # the rest speaks of other colours, and of another orientation
        notes = (*(watch.causes() if watch else ()), *((colours.note,) if colours.note else ()))
        more = (grounds.transparent, grounds.pictures()) if grounds else ()
        return Decoded(picture, shown, scale, notes, frames, *more)

    if rows is not None:
        try:
            return upright(rows)
        except RowsError as problem:
            log.debug("Pillow decodes a WebP: %s", problem)
    image.load()
    return upright(image)


def scale_for(size: tuple[int, int], need: int | None) -> int:
    """By how much to reduce a picture of which `need` pixels of the short side are needed: 4 times that are left."""
    most = min(size) // (4 * need) if need else 1
    return next((scale for scale in (8, 4, 2) if most >= scale), 1)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where there is none, and where EXIF is broken: a viewer turns nothing then."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def check_pixels(size: tuple[int, int], limits: ImageLimits, kind: str | None = None, scale: int = 1) -> None:
    """Raise BadDataError for a picture of more pixels than the limits, after it is reduced by `scale`."""
    width, height = size
    most = limits.max_pixels
    if (-(-width // scale)) * (-(-height // scale)) > most:
        memory = f"which take {most * BYTES_A_PIXEL.get(kind or '', 4) / 1e6:,.0f} MB"
        raise BadDataError(
            f"{width} x {height} pixels, the limit is {most:,}, {memory} (`max_pixels`; a decompression bomb?)"
        )
    if scale > 1 and width * height > limits.max_header_pixels:
        raise BadDataError(
            f"{width} x {height} pixels, the limit is {limits.max_header_pixels:,} for a picture that is decoded at a "
            "smaller scale (`max_header_pixels`; a decompression bomb?)"
        )


def rgba(data: bytes) -> Image.Image:
    """A part of an animation, as a file of its own, in the colours of its file."""
    with open_image(io.BytesIO(data), data) as image:
        take_key(image)
        samples = SampleFormat.of(image, _low_bytes(image, data))
        image.load()
        return in_colours_of_file(image, samples)


def _still(
    image: Image.Image,
    data: bytes,
    limits: ImageLimits,
    need: int | None,
    watch: Watch | None = None,
    *,
    watched: bool,
) -> Decoded:
    """What a viewer shows of an opened file: its first frame, but for what a browser would not show."""
    hidden = getattr(image, "default_image", False)  # of an APNG
    animation = apng_animation(data) if hidden else None
    if image.format == "GIF" and image.tile[0].extents != (0, 0, *image.size):  # type: ignore[attr-defined]
        animation = gif_animation(data)  # Pillow fills what the frame leaves free with a colour of the palette
    if animation is None:
        return current(image, limits, need, data=data, watch=watch, watched=watched)
    check_pixels(animation.size, limits)
    _, canvas = next(composed(animation, (0,), rgba))
    return current(canvas, limits, need, data=data, about=image, watched=watched)


def _scale_in_decoder(image: Image.Image, data: bytes, scale: int, limits: ImageLimits) -> int:
    """By how much the decoder itself reduces: of a JPEG in several scans it holds the whole picture all the same.

    That is allowed where its coefficients, of two bytes, take no more than a whole picture of the limits.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1
    if scale > 1 and image.width * image.height > limits.max_pixels:
        head = jpeg_head(data)
        areas = [layer[1] * layer[2] for layer in image.layer]
        held = 2 * image.width * image.height * sum(areas) / max(areas)
        return 1 if head is None or (head.in_several_scans and held > 4 * limits.max_pixels) else scale
    return scale


def _lent(image: Image.Image, reduction: int, stored: int | None) -> Lent | None:
    """Memory for an opened image that is large and will be converted; `stored` is the orientation of a TIFF."""
    if image._im is not None:  # it is loaded: a JPEG XL
        return None
    if image.width * image.height < _SMALL:
        return None
    turned = stored in TURNS or ("exif" in image.info and orientation(image) in TURNS)
    if _is_plain(image) and reduction == 1 and not turned:
        return None
    decode_to_mapped(image)
    return Lent(image)


def _shown(image: Image.Image, data: bytes) -> Sequence[int]:
    """Pillow's numbers of the frames or pages of an opened file; an animation of unknown length has two.

    The primary picture of a HEIC is the first. A default image that browsers never show is none, and neither is the
    gain map of a photo with high dynamic range.
    """
    if image.format == "GIF" and data:  # Pillow would read the first one again
        return range(sum(block.kind == b"," for block in gif_blocks(data)))
    frames: int = getattr(image, "n_frames", 1 + bool(getattr(image, "is_animated", False)))
    if image.format == "MPO" and (index := index_of_pictures(data)):
        starts = [index + entry["DataOffset"] for entry in image.mpinfo[0xB002]]  # type: ignore[attr-defined]
        return [0, *(n for n, start in enumerate(starts[:frames]) if n and not is_gain_map(data, start))]
    if image.format == "HEIF" and frames > 1:
        primary: int = image._heif_file.primary_index  # type: ignore[attr-defined]
        return [primary, *(number for number in range(frames) if number != primary)]
    return range(int(getattr(image, "default_image", False) and frames > 1), frames)


def _rows(image: Image.Image, data: bytes, scale: int) -> AvifRows | WebpRows | None:
    """The rows of an opened AVIF or WebP for which Pillow's decoder would take too much memory, if it is one picture.

    Those of an AVIF are for a picture that is reduced.
    """
    kind = image.format or ""
    too_much = image.width * image.height * BYTES_A_PIXEL.get(kind, 4) > _MUCH
    if kind not in ("WEBP", "AVIF") or not too_much or len(_shown(image, data)) > 1:
        return None
    if kind == "WEBP":
        return webp_rows(data, image.size, image.mode)
    return avif_rows(data, image.size, image.mode) if scale > 1 else None


def _is_plain(image: Image.Image) -> bool:
    return image.mode == "RGB" and "transparency" not in image.info


def _low_bytes(image: Image.Image, data: bytes) -> Image.Image | None:
    """The lower bytes of the colours of a PNG, where the transparent colour has 16 bits."""
    if not data or not has_16_bit_key(image):
        return None
    low = open_image(io.BytesIO(data), data)
    read_low_bytes(low)
    low.load()
    return low


def _canvas(image: Image.Image) -> Image.Image:
    """An image of Pillow's own memory that the opened image decodes into."""
    canvas = Image.new(image.mode, image.size, None)
    decode_into(image, canvas)
    return canvas
