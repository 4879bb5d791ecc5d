"""The frames of GIF and APNG as browsers compose them. Pillow decodes what each draws; here it is put in its place.

Pillow's own frames differ: it shows the default image of an APNG, which browsers never show, and fills what a GIF
leaves clear with a colour of its palette.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from zoo.errors import BadDataError
from zoo.inputs.containers import PNG_START, Chunk, gif_blocks, png_chunk, png_chunks

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Part:
    """What one frame draws: a file of its own, where it goes, and what becomes of it when the next frame comes.

    `over` lays it on what is there, else it takes the place of it. `start` is when it is first shown, in seconds.
    """

    box: Box
    left: Literal["kept", "cleared", "restored"]
    over: bool
    start: float
    file: Callable[[], bytes]

    @property
    def area(self) -> int:
        """How many pixels are decoded for it."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


@dataclass(frozen=True)
class Animation:
    """The size of the canvas, and what each frame draws on it."""

    size: tuple[int, int]
    parts: tuple[Part, ...]


def composed(
    animation: Animation, wanted: Collection[int], pixels: Callable[[bytes], Image.Image]
) -> Iterator[tuple[int, Image.Image]]:
    """The wanted frames in order, each the whole canvas as RGBA. `pixels` decodes the file of a part to RGBA.

    The image of a frame is drawn on further when the next one is asked for.
    """
    canvas = Image.new("RGBA", animation.size, (0, 0, 0, 0))
    for number, part in enumerate(animation.parts[: max(wanted) + 1]):
        before = canvas.crop(part.box) if part.left == "restored" else None
        drawn = pixels(part.file())
        _draw(canvas, drawn, part)
        if number in wanted:
            yield number, canvas
        if part.left == "cleared":
            canvas.paste((0, 0, 0, 0), part.box)
        elif before is not None:
            canvas.paste(before, part.box[:2])


def _draw(canvas: Image.Image, drawn: Image.Image, part: Part) -> None:
    if not part.over:
        canvas.paste(drawn, part.box[:2])
        return
    rows = max(1, 500_000 // drawn.width)  # laying one on the other takes two copies
    for top in range(0, drawn.height, rows):
        strip = drawn.crop((0, top, drawn.width, min(top + rows, drawn.height)))
        canvas.alpha_composite(strip, (part.box[0], part.box[1] + top))


def gif_animation(data: bytes) -> Animation:
    """The frames of a GIF. Raises BadDataError where it holds none that is whole."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    palette = data[13 : 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)]
    parts: list[Part] = []
    control, start = bytes(4), 0.0
    for block in gif_blocks(data):
        if block.kind == b"!\xf9":
            control = data[block.inside + 1 : block.inside + 5].ljust(4, b"\0")
        if block.kind != b",":
            continue
        left, top, across, down = struct.unpack_from("<HHHH", data, block.start + 1)
        if not parts:  # a canvas that is too small for the first frame grows
            width, height = max(width, left + across), max(height, top + down)
        box = (left, top, left + across, top + down)
        how = {2: "cleared", 3: "restored"}.get(control[0] >> 2 & 7, "kept")
        parts.append(Part(box, how, True, start, _gif_file(data, block, control, palette)))  # type: ignore[arg-type]
        start += int.from_bytes(control[1:3], "little") / 100
        control = bytes(4)
    if not parts:
        raise BadDataError("a GIF without a whole picture")
    return Animation((width, height), tuple(parts))


def _gif_file(data: bytes, block: Chunk, control: bytes, palette: bytes) -> Callable[[], bytes]:
    def file() -> bytes:
        flags = data[block.start + 9]
        own = data[block.start + 10 : block.inside] or palette
        bits = len(own) // 3 >> 1
        across_down = data[block.start + 5 : block.start + 9]
        size = max(0, bits.bit_length() - 1)
        head = b"GIF89a" + across_down + bytes([128 | size, 0, 0]) + own if own else b"GIF89a" + across_down + bytes(3)
        clear = b"!\xf9\x04" + bytes([control[0] & 1, 0, 0, control[3], 0])
        descriptor = b",\0\0\0\0" + across_down + bytes([flags & 64])
        return head + clear + descriptor + data[block.inside : block.end] + b";"

    return file


def apng_animation(data: bytes) -> Animation | None:
    """The frames of an animated PNG; None for a still, and where the animation is broken: browsers show the still then.

    The default image is the first frame only where a control chunk comes before it.
    """
    chunks = list(png_chunks(data))
    if not any(chunk.kind == b"acTL" for chunk in chunks):
        return None
    head = next((data[chunk.inside : chunk.until] for chunk in chunks if chunk.kind == b"IHDR"), b"")
    shared = b"".join(data[chunk.start : chunk.end] for chunk in chunks if chunk.kind in (b"PLTE", b"tRNS"))
    if len(head) != 13:
        return None
    size = struct.unpack_from(">II", head)
    parts: list[Part] = []
    start = 0.0
    for control, content in _controls(chunks):
        if control.until - control.inside != 26 or not content:
            return None
        across, down, left, top = struct.unpack_from(">IIII", data, control.inside + 4)
        delay, unit, dispose, blend = struct.unpack_from(">HHBB", data, control.inside + 20)
        box = (left, top, left + across, top + down)
        if not (across > 0 and down > 0 and box[2] <= size[0] and box[3] <= size[1]):
            return None
        how = {1: "cleared", 2: "restored"}.get(dispose, "kept")
        file = _png_file(data, data[control.inside + 4 : control.inside + 12] + head[8:], shared, content)
        parts.append(Part(box, how, blend == 1, start, file))  # type: ignore[arg-type]
        start += delay / (unit or 100)
    return Animation(size, tuple(parts)) if parts else None


def _controls(chunks: list[Chunk]) -> Iterator[tuple[Chunk, list[Chunk]]]:
    """Each control chunk with the chunks of its pixels."""
    control, content = None, list[Chunk]()
    for chunk in [*chunks, None]:
        if control is not None and (chunk is None or chunk.kind == b"fcTL"):
            yield control, content
        if chunk is None:
            return
        if chunk.kind == b"fcTL":
            control, content = chunk, []
        elif chunk.kind in (b"IDAT", b"fdAT"):
            content.append(chunk)


def _png_file(data: bytes, head: bytes, shared: bytes, content: list[Chunk]) -> Callable[[], bytes]:
    def file() -> bytes:
        pixels = [data[c.inside + (4 if c.kind == b"fdAT" else 0) : c.until] for c in content]
        return (
            PNG_START
            + png_chunk(b"IHDR", head)
            + shared
            + png_chunk(b"IDAT", b"".join(pixels))
            + png_chunk(b"IEND", b"")
        )

    return file
