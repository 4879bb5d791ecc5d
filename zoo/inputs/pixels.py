"""From the pixels that a decoder gives, of any mode, to upright RGB in sRGB on white: in strips, in little memory.

Beside that, what else people may see of a transparent picture: on black, and without its transparency.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin

from zoo.errors import BadDataError
from zoo.inputs.avif import AvifRows
from zoo.inputs.colour import Colours
from zoo.inputs.webp import WebpRows

Box = tuple[int, int, int, int]

_Turn = Image.Transpose
#: What makes a picture upright, by its EXIF orientation.
TURNS = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}
#: EXIF's orientations, by what a display matrix makes of the axes: to the right, and downwards.
ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
QUARTER_TURNS = (_Turn.TRANSPOSE, _Turn.ROTATE_270, _Turn.TRANSVERSE, _Turn.ROTATE_90)

#: Pixels of a strip. Its copies in other modes take some 20 bytes a pixel in all.
_STRIP = 500_000
#: Formats whose plugins know where the data are only when they load them.
_TILES_AT_LOAD = ("WEBP", "AVIF", "HEIF")
#: Rows and columns of a block that is turned by 90 degrees: its rows become columns, and fill whole pages of memory.
_TALL, _WIDE = 1024, 256

#: How a picture is shown beside on white, as verdicts name it.
ON_BLACK, BARE = "on black", "without transparency"

#: White and black differ visibly in pixels that let through more of the ground, in levels of 255; and in a picture
#: where so large a share of them does.
_VISIBLE = 16
_SHARE = 0.001
#: Colours of pixels that are no more opaque are hardly seen, in levels of 255.
_CLEAR = 64
#: They may be a picture where they differ by more levels, on a hundredth of the area or more.
_STRUCTURE = 6
_AREA = 0.01
#: Larger pictures are shown on white alone: three of them would take 200 MB more.
_MOST_PIXELS = 16_000_000


@dataclass(frozen=True)
class SampleFormat:
    """How the numbers of a picture are read: which bits of 16 are its levels, whether 0 is white, which is clear.

    `low` holds the lower bytes of 16-bit colours, where the clear colour has 16 bits.
    """

    shift: int = 8
    inverted: bool = False
    clear: Any = None
    low: Image.Image | None = None

    @classmethod
    def of(cls, image: Image.Image, low: Image.Image | None = None) -> SampleFormat:
        """How an image is read. Raises BadDataError for numbers without a black and a white."""
        tags = getattr(image, "tag_v2", {})
        form = tags.get(339, (1,))  # SampleFormat
        if image.mode == "F" or 3 in form:
            raise BadDataError("floating-point pixels have no defined range; convert to 8 or 16 bits")
        if 2 in form:
            raise BadDataError("signed pixels have no defined black; convert to 8 or 16 bits without a sign")
        if image.mode == "I" and not tags:
            raise BadDataError("32-bit pixels have no defined range; convert to 8 or 16 bits")
        clear = image.info.get("transparency")
        if image.mode == "RGB" and low is None and isinstance(clear, tuple) and max(clear) > 255:
            raise BadDataError("the transparent colour has 16 bits, the pixels 8; convert to RGBA")
        bits = tags.get(258, (32 if image.mode == "I" else 16,))[0]
        wide = image.mode.startswith("I")
        return cls(bits - 8, wide and tags.get(262) == 0, clear, low)


class Lent:
    """Memory that a picture is decoded into, and that goes back to the system as soon as its rows are converted.

    `canvas` is an image on that memory; None for modes that cannot be mapped, and on Windows.
    """

    _BYTES: ClassVar = {"L": 1, "P": 1, "I;16": 2, "I;16B": 2, "RGBA": 4, "CMYK": 4, "RGBX": 4}

    def __init__(self, image: Image.Image) -> None:
        """Set it up for an image that was opened and not yet loaded."""
        self._row = image.width * self._BYTES.get(image.mode, 0)
        self._done = 0
        self.canvas: Image.Image | None = None
        if self._row and hasattr(mmap, "MADV_DONTNEED"):
            self._memory = mmap.mmap(-1, self._row * image.height, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory = np.frombuffer(self._memory, np.uint8)
            self.canvas = Image.frombuffer(image.mode, image.size, memory, "raw", image.mode, 0, 1)
            self.canvas.readonly = 0
            decode_into(image, self.canvas)

    def give_back(self, image: Image.Image, rows: int) -> None:
        """The first `rows` rows of the loaded image are not read again."""
        if self.canvas is not None and image.im is self.canvas.im:  # some decoders take memory of their own
            until = rows * self._row // mmap.PAGESIZE * mmap.PAGESIZE
            if until > self._done:
                self._memory.madvise(mmap.MADV_DONTNEED, self._done, until - self._done)
                self._done = until


class Grounds:
    """Collects the layers of one transparent picture, strip by strip; it costs nothing for a picture without alpha."""

    def __init__(self, size: tuple[int, int]) -> None:
        """`size` of the picture that is made."""
        self._size = size
        self._counts = np.zeros(256, dtype=np.int64)
        self._layers: dict[str, Image.Image] = {}

    def layers(self, strip: Image.Image, alpha: Image.Image) -> dict[str, Image.Image]:
        """The layers of a strip of RGB beside that on white, for `paste`."""
        self._counts += alpha.histogram()
        if self._size[0] * self._size[1] > _MOST_PIXELS:
            return {}
        return {ON_BLACK: laid_on("black", strip, alpha), BARE: strip, "alpha": alpha}

    def paste(self, name: str, block: Image.Image, place: tuple[int, int]) -> None:
        """Put a block of a layer where it belongs in the picture."""
        if name not in self._layers:
            self._layers[name] = Image.new(block.mode, self._size)
        self._layers[name].paste(block, place)

    @property
    def transparent(self) -> float:
        """The share of the picture through which the ground is seen; 0 where that is too little to matter."""
        clear = int(self._counts[: 256 - _VISIBLE].sum()) / max(int(self._counts.sum()), 1)
        return clear if clear >= _SHARE else 0.0

    def pictures(self) -> dict[str, Image.Image]:
        """The picture on black where that differs visibly, and without transparency where that may show another one."""
        if not self.transparent or not self._layers:
            return {}
        pictures = {ON_BLACK: self._layers[ON_BLACK]}
        return pictures | ({BARE: self._layers[BARE]} if self._hides_a_picture() else {})

    def _hides_a_picture(self) -> bool:
        alpha, colours = (self._layers[name].resize((64, 64), Image.Resampling.BOX) for name in ("alpha", BARE))
        hidden = np.asarray(alpha) <= _CLEAR
        return bool(hidden.mean() >= _AREA and np.asarray(colours)[hidden].std(axis=0).max() > _STRUCTURE)


def laid_on(ground: str, strip: Image.Image, alpha: Image.Image) -> Image.Image:
    """RGB pixels on a ground of one colour."""
    result = Image.new("RGB", strip.size, ground)
    result.paste(strip, mask=alpha)
    return result


def rendered(
    image: Image.Image | AvifRows | WebpRows,
    colours: Colours,
    samples: SampleFormat,
    *,
    scale: int = 1,
    turn: _Turn | None = None,
    lent: Lent | None = None,
    grounds: Grounds | None = None,
) -> Image.Image:
    """A loaded image, or the rows of one, as a new RGB image: in sRGB, on white, reduced by a whole number, turned.

    `grounds` take what else a transparent picture shows.
    """
    in_blocks = turn in QUARTER_TURNS and scale == 1
    across = _WIDE if in_blocks else image.width
    down = _TALL if in_blocks else max(1, _STRIP // image.width // scale) * scale
    size = (-(-image.width // scale), -(-image.height // scale))
    result = Image.new("RGB", size[::-1] if turn in QUARTER_TURNS else size, None)
    for top in range(0, image.height, down):
        bottom = min(top + down, image.height)
        for left in range(0, image.width, across):
            box = (left, top, min(left + across, image.width), bottom)
            for name, block in _layers(image.crop(box), box, colours, samples, grounds).items():
                block = block if scale == 1 else block.reduce(scale)
                place = (left // scale, top // scale)
                if turn is not None:
                    place, block = _turned(place, block.size, size, turn), block.transpose(turn)
                if name and grounds is not None:
                    grounds.paste(name, block, place)
                else:
                    result.paste(block, place)
        if lent is not None and isinstance(image, Image.Image):
            lent.give_back(image, bottom)
    return result


def _turned(place: tuple[int, int], block: tuple[int, int], size: tuple[int, int], turn: _Turn) -> tuple[int, int]:
    """Where a block at `place` comes to lie when the picture of `size` is turned."""
    (left, top), (width, height) = place, size
    from_right, from_bottom = width - left - block[0], height - top - block[1]
    return {
        _Turn.FLIP_LEFT_RIGHT: (from_right, top),
        _Turn.ROTATE_180: (from_right, from_bottom),
        _Turn.FLIP_TOP_BOTTOM: (left, from_bottom),
        _Turn.TRANSPOSE: (top, left),
        _Turn.ROTATE_270: (from_bottom, left),
        _Turn.TRANSVERSE: (from_bottom, from_right),
        _Turn.ROTATE_90: (top, from_right),
    }[turn]


def _layers(
    strip: Image.Image, box: Box, colours: Colours, samples: SampleFormat, grounds: Grounds | None
) -> dict[str, Image.Image]:
    """A strip in sRGB, on white under the name "", and the layers of `grounds`."""
    strip, alpha = _eight_bits(strip, box, samples)
    strip = colours.srgb(strip)
    if alpha is None:
        return {"": strip}
    return {"": laid_on("white", strip, alpha)} | (grounds.layers(strip, alpha) if grounds else {})


def _eight_bits(strip: Image.Image, box: Box, samples: SampleFormat) -> tuple[Image.Image, Image.Image | None]:
    """A strip as 8-bit grey, RGB, CMYK or LAB in the colours of its file, and how opaque it is."""
    if strip.mode.startswith("I"):
        return _levels(strip, samples)
    if samples.low is not None:
        return strip, _opaque_but(samples.clear, strip, samples.low.crop(box))
    if strip.mode in ("La", "RGBa"):
        strip = strip.convert(strip.mode.upper())
    if strip.mode == "LA":
        return strip.getchannel("L"), strip.getchannel("A")
    if strip.has_transparency_data:
        clear = strip.convert("RGBA")
        return clear.convert("RGB"), clear.getchannel("A")
    if strip.mode == "1":
        return strip.convert("L"), None
    return (strip if strip.mode in ("L", "RGB", "CMYK", "LAB") else strip.convert("RGB")), None


def _levels(strip: Image.Image, samples: SampleFormat) -> tuple[Image.Image, Image.Image | None]:
    values = np.asarray(strip)
    values = values.view(np.uint32) if strip.mode == "I" else values
    levels = (values >> samples.shift).astype(np.uint8)
    alpha = None if samples.clear is None else _mask(values == samples.clear)
    return Image.fromarray(255 - levels if samples.inverted else levels), alpha


def _opaque_but(clear: tuple[int, int, int], strip: Image.Image, low: Image.Image) -> Image.Image:
    """Opaque but for one colour of 16 bits, whose upper and lower bytes are in two images."""
    wanted = np.array(clear)
    return _mask(((np.asarray(strip) == wanted >> 8) & (np.asarray(low) == (wanted & 255))).all(axis=-1))


def in_colours_of_file(image: Image.Image, samples: SampleFormat) -> Image.Image:
    """A loaded image as RGBA, in the colours of its file."""
    pixels, alpha = _eight_bits(image, (0, 0, *image.size), samples)
    pixels = pixels.convert("RGB")
    pixels.putalpha(255 if alpha is None else alpha)
    return pixels


def _mask(clear: Any) -> Image.Image:
    return Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))


def take_key(image: Image.Image) -> None:
    """Take the transparent grey of an opened PNG of 2 or 4 bits to the levels that Pillow decodes to."""
    step = {"L;2": 85, "L;4": 17}.get(_raw_mode(image))
    if step and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= step


def has_16_bit_key(image: Image.Image) -> bool:
    """Whether an opened PNG makes a colour of 16 bits transparent: Pillow decodes the upper bytes alone."""
    return _raw_mode(image) == "RGB;16B" and "transparency" in image.info


def read_low_bytes(image: Image.Image) -> None:
    """Make an opened PNG with colours of 16 bits decode to their lower bytes."""
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]  # type: ignore[attr-defined]


def keep_as_stored(image: Image.Image, orientation: int) -> int:
    """Make an opened TIFF of this orientation decode as it is stored: Pillow would hold it twice to turn it."""
    if orientation in TURNS and isinstance(image, TiffImagePlugin.TiffImageFile):
        image._size = image._tile_size
        del image.getexif()[ExifTags.Base.Orientation]
    return orientation


def decode_into(image: Image.Image, canvas: Image.Image) -> None:
    """Make an opened image decode into the memory of a canvas. Raises BadDataError for a file without picture data.

    Pillow says so itself only of an image without memory; of one that has some it leaves what is there.
    """
    if not image.tile and image.format not in _TILES_AT_LOAD:  # type: ignore[attr-defined]
        raise BadDataError("the file ends before the data of its picture")
    image.im = canvas.im


def decode_to_mapped(image: Image.Image) -> None:
    """Make an opened JPEG or TIFF of RGB, or a PNG of RGB or LA, decode to a mode of four bytes that can be mapped."""
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode == "RGB":
        image._mode = "RGBX"
        image.tile = [tile._replace(args=("RGBX", "")) for tile in image.tile]
    elif image.format == "PNG" and _raw_mode(image) in ("RGB", "LA"):
        image._mode = "RGBX" if image.mode == "RGB" else "RGBA"
    elif image.format == "TIFF" and {tile[3][0] for tile in image.tile} == {"RGB"}:  # type: ignore[attr-defined]
        image._mode = "RGBX" if image.mode == "RGB" else image.mode


def _raw_mode(image: Image.Image) -> str:
    """How the pixels of an opened file are stored, in Pillow's words; empty where it is not one word."""
    tiles = getattr(image, "tile", [])
    return tiles[0][3] if tiles and isinstance(tiles[0][3], str) else ""  # a plain tuple in some plugins
