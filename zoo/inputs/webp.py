"""A large WebP, decoded row by row by the libwebp that Pillow brings: to the same pixels, in a fraction of the memory.

Pillow reads every WebP as an animation, for which libwebp holds two canvases. libwebp's incremental decoder writes into
memory that is lent to it, and does not look at a row again once it is whole.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import weakref
from ctypes.util import find_library
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

log = logging.getLogger("zoo.inputs.webp")

#: libwebp's numbers: a layout of pixels, and what its decoder says.
_RGBA, _DONE, _WANTS_MORE = 1, 0, 5
#: Into so many parts a file is cut, of at least so many bytes: after each, the rows that are whole can be taken.
_PARTS, _LEAST = 256, 2048


class RowsError(Exception):
    """The decoder has no further rows; Pillow says what is wrong with the file."""


class WebpRows:
    """A still WebP that is read like a Pillow image, from top to bottom: `crop` decodes as far as it needs.

    The rows above those of the last `crop` are gone. Raises RowsError for a file that is damaged, or an animation.
    """

    def __init__(self, library: Any, data: bytes, size: tuple[int, int], mode: str) -> None:
        """`mode` is RGBA or RGBX, of four bytes."""
        self.width, self.height = size
        self._library, self._data = library, data
        self._memory = mmap.mmap(-1, 4 * self.width * self.height, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory = np.frombuffer(self._memory, np.uint8)
        self._canvas = Image.frombuffer(mode, size, memory, "raw", mode, 0, 1)
        self._decoder = library.WebPINewRGB(_RGBA, memory.ctypes.data, memory.nbytes, 4 * self.width)
        weakref.finalize(self, library.WebPIDelete, self._decoder)
        self._fed = self._rows = self._given_back = 0
        self._status = _WANTS_MORE

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """A part of the picture, as of a Pillow image."""
        self._give_back(box[1])
        while self._rows < box[3] or (box[3] == self.height and self._status != _DONE):
            self._decode_more()
        return self._canvas.crop(box)

    def _decode_more(self) -> None:
        if self._fed == len(self._data):
            raise RowsError("the data end before the picture")
        self._fed = min(self._fed + max(_LEAST, len(self._data) // _PARTS), len(self._data))
        self._status = self._library.WebPIUpdate(self._decoder, self._data, self._fed)
        if self._status not in (_DONE, _WANTS_MORE):
            raise RowsError(f"libwebp's status {self._status}")
        rows, *shape = numbers = [ctypes.c_int() for _ in range(4)]
        if self._library.WebPIDecGetRGB(self._decoder, *map(ctypes.byref, numbers)) and rows.value:
            if [number.value for number in shape] != [self.width, self.height, 4 * self.width]:
                raise RowsError("a picture of another size than the file says")
            self._rows = rows.value

    def _give_back(self, rows: int) -> None:
        until = rows * 4 * self.width // mmap.PAGESIZE * mmap.PAGESIZE
        if until > self._given_back:
            self._memory.madvise(mmap.MADV_DONTNEED, self._given_back, until - self._given_back)
            self._given_back = until


def webp_rows(data: bytes, size: tuple[int, int], mode: str) -> WebpRows | None:
    """The rows of a still WebP of this size; None where the libwebp that Pillow uses cannot be called, as on Windows.

    `mode` is Pillow's, RGB or RGBA.
    """
    library = _libwebp()
    return None if library is None else WebpRows(library, data, size, "RGBX" if mode == "RGB" else mode)


@cache
def _libwebp() -> Any:
    """The library that Pillow's own decoder is linked to; None where it is part of Pillow, or another one is found."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    package = Path(PIL.__file__).parent
    own = [*package.parent.glob("pillow.libs/libwebp-*"), *package.glob(".dylibs/libwebp.*")]
    path = str(own[0]) if own else find_library("webp")
    try:
        library = ctypes.CDLL(path) if path else None
        version = library.WebPGetDecoderVersion() if library else 0
        if library and f"{version >> 16}.{version >> 8 & 255}.{version & 255}" == features.version("webp"):
            return _declared(library)
        problem = "there is none of the same version"
    except (OSError, AttributeError) as error:
        problem = str(error)
    log.info("Pillow decodes large WebP files, in 16 bytes a pixel, as its libwebp is not found: %s", problem)
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of what is called, as in libwebp's `decode.h`."""
    number = ctypes.POINTER(ctypes.c_int)
    library.WebPINewRGB.restype = ctypes.c_void_p
    library.WebPINewRGB.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.WebPIUpdate.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    library.WebPIDecGetRGB.restype = ctypes.c_void_p
    library.WebPIDecGetRGB.argtypes = [ctypes.c_void_p, *[number] * 4]
    library.WebPIDelete.argtypes = [ctypes.c_void_p]
    return library
