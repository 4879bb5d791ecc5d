"""A large AVIF, decoded by FFmpeg and converted strip by strip: Pillow's decoder holds two copies of it in RGB."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.inputs.formats import module_of_extra

log = logging.getLogger("zoo.inputs.avif")

#: How often the planes of a layout are halved downwards, by FFmpeg's name of it.
_HALVES = {"gray": (0,), "yuv444p": (0, 0, 0), "yuv422p": (0, 0, 0), "yuv420p": (0, 1, 1)}
_FULL = 2  # of ranges: white is 255


class AvifRows:
    """A decoded AVIF of 8 bits, read like a Pillow image: `crop` gives RGB, or RGBA, in the colours of its file.

    Colours of 4:2:0 are not smoothed: it is for pictures that are reduced, and the top of a box is even.
    """

    def __init__(self, av: Any, frame: Any, alpha: Any, matrix: int, levels: int) -> None:
        """`alpha` is a grey frame or None; `matrix` and `levels` are swscale's, of the colours."""
        self.width, self.height = frame.width, frame.height
        self._planes = [_rows_of(plane) for plane in frame.planes]
        self._alpha = None if alpha is None else _rows_of(alpha.planes[0])
        self._layout, self._av = frame.format.name, av
        self._halves = _HALVES[frame.format.name]
        self._reformat: Any = av.video.reformatter.VideoReformatter().reformat
        self._colours = {"src_colorspace": matrix, "src_color_range": levels, "dst_color_range": _FULL}

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """A part of the picture, as of a Pillow image."""
        left, top, right, bottom = box
        # swscale takes another way for an odd width, whose colours lie elsewhere: up to 26 levels off.
        strip = self._av.VideoFrame(self.width + self.width % 2, bottom - top, self._layout)
        for rows, plane, halves in zip(self._planes, strip.planes, self._halves, strict=True):
            target = _rows_of(plane)
            target[:, : rows.shape[1]] = rows[top >> halves :][: len(target)]
        pixels = self._reformat(strip, format="rgb24", **self._colours).to_ndarray()[:, left:right]
        if self._alpha is not None:
            pixels = np.dstack([pixels, self._alpha[top:bottom, left:right]])
        return Image.fromarray(pixels)


def _rows_of(plane: Any) -> NDArray[np.uint8]:
    """The rows of a plane of 8 bits, `[height, width]`, in its own memory."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def avif_rows(data: bytes, size: tuple[int, int], mode: str) -> AvifRows | None:
    """The rows of a still AVIF of 8 bits, of this size and Pillow's mode RGB, L or RGBA.

    They take 2 to 4 bytes a pixel, of which Pillow takes 10 to 12. None without the extra "video", and for what FFmpeg
    does not decode as Pillow does: grids, rare layouts and matrices of colours, premultiplied colours, damage.
    """
    try:
        av = module_of_extra("video", "av")
        # The smaller one first: the decoder of the other takes more beside it.
        alpha = _frame(av, data, size, of_colours=False) if mode == "RGBA" else None
        if alpha is not None and (alpha.format.name, alpha.color_range, b"prem" in data[:65536]) != ("gray", 2, False):
            return None
        frame = _frame(av, data, size, of_colours=True)
        return AvifRows(av, frame, alpha, *_yuv(frame, data))
    except Exception as problem:  # of many classes; Pillow says what is wrong with a file
        log.debug("Pillow decodes what FFmpeg does not: %s", problem)
        return None


def _frame(av: Any, data: bytes, size: tuple[int, int], *, of_colours: bool) -> Any:
    """The picture that a file is of, or the other one. Raises ValueError for one of another size, or for several."""
    with av.open(io.BytesIO(data), format="mov") as container:
        primary = av.stream.Disposition.default
        (stream,) = [one for one in container.streams.video if bool(one.disposition & primary) == of_colours]
        stream.thread_count = 1  # each takes a picture of its own
        stream.codec_context.options = {"err_detect": "explode"}
        frame = next(container.decode(stream))
    if (frame.width, frame.height) != size:
        raise ValueError(f"a picture of {frame.width} x {frame.height}")
    return frame


def _yuv(frame: Any, data: bytes) -> tuple[int, int]:
    """The matrix of a frame of an AVIF, as swscale takes it, and 1 where white is 235, 2 where it is 255.

    The file's `nclx` box counts before the coded data, and BT.601 where neither says one, as in libavif.
    """
    matrix, levels = frame.colorspace, frame.color_range
    place = data.find(b"colrnclx", 0, 65536)
    if 0 < place <= len(data) - 15:
        matrix, levels = int.from_bytes(data[place + 12 : place + 14]), 1 + (data[place + 14] >> 7)
    return {1: 1, 2: 5, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}[matrix], levels
