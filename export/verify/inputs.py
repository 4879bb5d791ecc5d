"""The inputs that an engine is verified on, with a name for each: photos, drawn, golden, adversarial, labelled."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from export.verify.report import Check
from zoo.contract.card import ImageInput, ModelCard
from zoo.data.manifest import need_label, read_manifest
from zoo.errors import BadArgumentError, BadDataError, BadInputError
from zoo.inputs.image import ImageSource, load, source_name
from zoo.inputs.text import TextCodec
from zoo.judging.scorer import Feeds


def golden_images() -> dict[str, bytes]:
    """Image files by name: rotated by EXIF, CMYK, alpha, palette, 16 bits, grey, animated, 1 pixel, thin, large."""
    halves = Image.new("RGB", (60, 40), "red")
    halves.paste((0, 0, 255), (30, 0, 60, 40))  # left red, right blue
    orientation = Image.Exif()
    orientation[0x0112] = 6  # turn clockwise to see it upright: red on top
    clear = Image.new("RGBA", (20, 10), (255, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (10, 0, 20, 10))  # right half: transparent black
    palette = Image.new("P", (20, 10), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(1, (10, 0, 20, 10))
    steps = np.repeat(np.array([0, 256 * 100, 65535], dtype=np.uint16), 4)[None].repeat(6, axis=0)
    down, across = np.mgrid[0:1500, 0:2000]
    large = np.stack([across * 255 // 1999, down * 255 // 1499, np.full_like(down, 128)], axis=2).astype(np.uint8)
    return {
        "exif_rotated.jpg": _encode(halves, "JPEG", quality=95, exif=orientation),
        "cmyk.jpg": _encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95),
        "transparent.png": _encode(clear, "PNG"),
        "palette.png": _encode(palette, "PNG", transparency=1),
        "grey16.png": _encode(Image.fromarray(steps), "PNG"),
        "grey.jpg": _encode(Image.new("L", (16, 8), 77), "JPEG"),
        "animated.gif": _encode(
            Image.new("RGB", (12, 12), "lime"), "GIF", save_all=True, append_images=[Image.new("RGB", (12, 12), "red")]
        ),
        "pixel.png": _encode(Image.new("RGB", (1, 1), (10, 20, 30)), "PNG"),
        "thin.png": _encode(Image.new("RGB", (3000, 1), (200, 100, 50)), "PNG"),
        "large.jpg": _encode(Image.fromarray(large), "JPEG", quality=90),
        "webp.webp": _encode(halves, "WEBP", lossless=True),
        "progressive.jpg": _encode(halves, "JPEG", quality=95, progressive=True),
    }


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


_WORDS = ["a", "the", "red", "small", "large", "dog", "cat", "car", "house", "person", "holding", "near", "two"]

Images: TypeAlias = NDArray[np.uint8]


def image_probes(count: int, spec: ImageInput | None, folder: Path | None = None) -> Images:
    """`[count, size, size, 3]` uint8: photos of a folder first, the rest drawn (gradients, shapes, noise), seeded.

    Raises BadInputError for a folder without a readable image.
    """
    return named_probes(count, spec, folder)[0]


def named_probes(count: int, spec: ImageInput | None, folder: Path | None = None) -> tuple[Images, list[str]]:
    """As `image_probes`, with the path of each photo and a name for each drawn image."""
    size = spec.size if spec else 1
    images: list[Images] = []
    names: list[str] = []
    if folder is not None and spec is not None:
        pixels, names = photos(folder, spec, count)
        images = list(pixels)
    drawn = drawn_images(count - len(names), size)
    return np.stack([*images, *drawn]), names + [f"drawn {number}" for number in range(len(drawn))]


def drawn_images(count: int, size: int) -> list[Images]:
    """`count` pictures `[size, size, 3]` uint8, seeded: gradients, shapes and noise in turn."""
    rng = np.random.default_rng(0)
    return [_draw(rng, size, number) for number in range(count)]


def photos(folder: Path, spec: ImageInput, most: int) -> tuple[Images, list[str]]:
    """The first images of a folder, `[N, size, size, 3]` uint8, and their paths. Raises BadInputError without one."""
    if not folder.is_dir():
        raise BadArgumentError(f"{folder}: no such folder of images")
    images: list[Images] = []
    names: list[str] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if len(images) == most:
            break
        try:
            images.append(load(path, spec))
        except BadInputError:
            continue
        names.append(source_name(path))
    if not images:
        raise BadDataError(f"{folder}: holds no readable image")
    return np.stack(images), names


def text_probes(count: int, offset: int = 0) -> list[str]:
    """Seeded texts of 1 to 40 words."""
    rng = np.random.default_rng(offset + 1)
    return [" ".join(rng.choice(_WORDS, rng.integers(1, 41))) for _ in range(count)]


def _draw(rng: np.random.Generator, size: int, number: int) -> NDArray[np.uint8]:
    """One picture: smooth gradients, shapes on them, or noise, in turn."""
    corners = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    image = Image.fromarray(corners).resize((size, size), Image.Resampling.BILINEAR)
    if number % 3 > 0:
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(1, 6))):
            box = np.sort(rng.integers(0, size + 1, (2, 2)), axis=0).flatten().tolist()
            colour = tuple(rng.integers(0, 256, 3).tolist())
            (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour)
    pixels = np.asarray(image, dtype=np.int16)
    if number % 3 == 2:
        pixels = pixels + rng.normal(0, 40, pixels.shape).astype(np.int16)
    return pixels.clip(0, 255).astype(np.uint8)


BATCH = 32


@dataclass(frozen=True)
class NamedFeeds:
    """Feeds of up to 32 inputs, their names, and their labels: 1 unsafe, 0 safe, -1 not known."""

    feeds: Feeds
    names: list[str]
    labels: NDArray[np.int64]


class Inputs:
    """All inputs of a check for one model, as batches of feeds."""

    def __init__(self, card: ModelCard, codec: TextCodec | None, check: Check) -> None:
        self.card, self.codec = card, codec
        self.texts = read_lines(check.texts) if check.texts else []
        pixels, names = named_probes(check.count, card.image, check.images)
        self.base = NamedFeeds(self.feeds(pixels, gaps=True), names, np.full(len(names), -1))
        self.others = _golden(card) + _listed(check.adversarial, None) + _listed(check.data, check.positive_label)

    def feeds(self, pixels: Images, offset: int = 0, *, gaps: bool = False, texts: list[str] | None = None) -> Feeds:
        """The feeds of images `[B, H, W, 3]`: texts are given, or those of the file, or drawn.

        With `gaps` some inputs are left out where the model allows it.
        """
        rows = len(pixels)
        feeds: Feeds = {"image": pixels} if self.card.image else {}
        if self.codec is not None:
            given = self.texts[offset : offset + rows]
            drawn = text_probes(rows - len(given), offset)
            tokens = self.codec.encode(texts if texts is not None else given + drawn)
            there = np.ones((rows, 1), dtype=np.int64)
            if gaps and "text" not in self.card.requires:
                there[3::8] = 0
            feeds |= {"input_ids": tokens.ids * there, "attention_mask": tokens.mask * there}
        if "image_present" in self.card.input_names:
            feeds["image_present"] = (np.arange(rows) % 8 != 5) | (not gaps)
        return feeds

    def __len__(self) -> int:
        return len(self.base.names) + len(self.others)

    def __iter__(self) -> Iterator[NamedFeeds]:
        for start in range(0, len(self.base.names), BATCH):
            rows = slice(start, start + BATCH)
            feeds = {name: value[rows] for name, value in self.base.feeds.items()}
            yield NamedFeeds(feeds, self.base.names[rows], self.base.labels[rows])
        for start in range(0, len(self.others), BATCH):
            yield self._load(self.others[start : start + BATCH], start)

    def _load(self, items: list[_Item], offset: int) -> NamedFeeds:
        spec = self.card.image
        side = spec.size if spec else 1
        blank = np.zeros((side, side, 3), dtype=np.uint8)
        # A file that cannot be read stops the check: what was not compared is not verified.
        pixels = [blank if item.image is None or spec is None else load(item.image, spec) for item in items]
        drawn = text_probes(len(items), offset + 7)
        texts = [item.text if item.text is not None else words for item, words in zip(items, drawn, strict=True)]
        feeds = self.feeds(np.stack(pixels), texts=texts)
        if "image_present" in feeds:
            feeds["image_present"] = np.array([item.image is not None for item in items])
        return NamedFeeds(
            feeds, [item.name for item in items], np.array([item.label for item in items], dtype=np.int64)
        )


@dataclass(frozen=True)
class _Item:
    name: str
    image: ImageSource | None
    text: str | None
    label: int = -1


def _golden(card: ModelCard) -> list[_Item]:
    return [_Item(f"golden {name}", data, None) for name, data in golden_images().items()] if card.image else []


def _listed(path: Path | None, positive: str | None) -> list[_Item]:
    """The rows of a manifest (or of the one in a folder); labels are read where one of them means unsafe."""
    if path is None:
        return []
    rows = read_manifest(path / "manifest.csv" if path.is_dir() else path)
    if positive is not None:
        need_label(rows, positive, path)
    items = []
    for row in rows:
        label = -1 if positive is None or not row.labels else int(positive in row.labels)
        items.append(_Item(str(row.image or row.text), row.image, row.text, label))
    return items


def read_lines(path: Path) -> list[str]:
    """The lines of a file that are not blank. Raises BadDataError if none is left, or the file is not UTF-8."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise BadDataError(f"{path}: not readable as UTF-8 text: {problem}") from None
    if not lines:
        raise BadDataError(f"{path}: holds no text")
    return lines
