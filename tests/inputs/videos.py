"""Videos made on the spot: tiny, coded by what PyAV's wheels bring."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

av: Any = pytest.importorskip("av")

SIZE = (64, 48)
GREY, RED = (128, 128, 128), (220, 20, 20)


def plain(colour: Sequence[int] = GREY, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A frame `[height, width, 3]` of one colour."""
    return np.full((size[1], size[0], 3), colour, np.uint8)


def signed(number: int, flagged: int | None) -> NDArray[np.uint8]:
    """A grey frame with a blue mark that moves, and a red square where it is the flagged one."""
    frame = plain()
    frame[-8:, 2 * number % 48 : 2 * number % 48 + 12] = (30, 30, 200)
    if number == flagged:
        frame[12:32, 24:44] = RED
    return frame


def video(
    frames: Sequence[NDArray[np.uint8]],
    form: str = "mp4",
    codec: str = "libx264",
    *,
    times: Sequence[float] | None = None,
    rate: int = 10,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    matrix: int = 5,
    full: bool = False,
    tags: dict[str, int] | None = None,
    index_first: bool = False,
) -> bytes:
    """The bytes of a video of RGB frames, which are shown at these times in seconds, or at an even rate.

    `matrix` (1: BT.709, 5: BT.601) and `full` are how RGB is coded, `tags` what the file says of it (`colorspace`,
    `color_range`, `color_primaries`, `color_trc`).
    """
    with tempfile.TemporaryDirectory() as folder:  # of a stream, the index cannot be put first
        path = Path(folder) / "video"
        with av.open(str(path), "w", form, options={"movflags": "faststart"} if index_first else {}) as container:
            stream = container.add_stream(codec, rate=rate, options=options or {})
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = pix_fmt
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
            for name, value in (tags or {}).items():
                setattr(stream.codec_context, name, value)
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, "rgba" if pixels.shape[2] == 4 else "rgb24").reformat(
                    format=pix_fmt, dst_colorspace=matrix, src_color_range=2, dst_color_range=2 if full else 1
                )
                for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
                    setattr(frame, name, (tags or {}).get(name, 0 if name == "color_range" else 2))
                frame.pts, frame.time_base = (
                    round(1000 * (times[number] if times else number / rate)),
                    Fraction(1, 1000),
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path.read_bytes()
