"""What every side of a benchmark is given, and what one is: a name and a run that can be timed."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from export.bench.report import About
from export.bundle import Device
from export.verify.probes import image_probes
from zoo.contract.card import ImageInput

#: `jpeg` is the whole road from the bytes of a file to a verdict, `pixels` the network alone.
Input = Literal["jpeg", "pixels"]
Run = Callable[[], object]


@dataclass(frozen=True)
class Task:
    """The same for all sides: JPEG files (as many as the largest batch), where they enter, device and threads."""

    jpegs: list[bytes]
    input: Input
    device: Device
    threads: int


@dataclass(frozen=True)
class Side:
    """One that is timed; `at(batch)` prepares the first so many inputs and gives the run on them."""

    about: About
    at: Callable[[int], Run]


def drawn_jpegs(count: int, size: tuple[int, int]) -> list[bytes]:
    """Drawn pictures of `size` (width, height), a third with photo-like noise, whose JPEGs are as large as photos'."""
    side = ImageInput(max(size), "squash", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    found = []
    for pixels in image_probes(count, side, None):
        stream = io.BytesIO()
        Image.fromarray(pixels[: size[1], : size[0]]).save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found
