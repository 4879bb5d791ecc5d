"""The inputs that engines are verified and calibrated on.

To verify: photos, drawn, golden, adversarial and labelled ones, with a name for each. To find fixed 8-bit scales: a few
of the images and texts that a model will judge.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from export.verify.report import Check
from zoo.contract.card import ImageInput, ModelCard
from zoo.contract.policy import PolicyFile
from zoo.data.manifest import need_label, read_manifest
from zoo.errors import BadArgumentError, BadDataError, BadInputError
from zoo.inputs.image import ImageSource, Pixels, load, source_name
from zoo.inputs.text import TextCodec
from zoo.inputs.views import shown
from zoo.judging.scorer import Feeds, Ready, feeds


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
    lime, red = (Image.new("RGB", (12, 12), colour) for colour in ("lime", "red"))
    down, across = np.mgrid[0:1500, 0:2000]
    large = np.stack([across * 255 // 1999, down * 255 // 1499, np.full_like(down, 128)], axis=2).astype(np.uint8)
    return {
        "exif_rotated.jpg": encoded(halves, "JPEG", quality=95, exif=orientation),
        "cmyk.jpg": encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95),
        "transparent.png": encoded(clear, "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=1),
        "grey16.png": encoded(Image.fromarray(steps), "PNG"),
        "grey.jpg": encoded(Image.new("L", (16, 8), 77), "JPEG"),
        "animated.gif": encoded(lime, "GIF", save_all=True, append_images=[red]),
        "pixel.png": encoded(Image.new("RGB", (1, 1), (10, 20, 30)), "PNG"),
        "thin.png": encoded(Image.new("RGB", (3000, 1), (200, 100, 50)), "PNG"),
        "large.jpg": encoded(Image.fromarray(large), "JPEG", quality=90),
        "webp.webp": encoded(halves, "WEBP", lossless=True),
        "progressive.jpg": encoded(halves, "JPEG", quality=95, progressive=True),
    }


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file of that kind (as Pillow names it), saved with these options."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


_WORDS = ["a", "the", "red", "small", "large", "dog", "cat", "car", "house", "person", "holding", "near", "two"]


def image_probes(count: int, spec: ImageInput | None, folder: Path | None = None) -> tuple[Pixels, list[str]]:
    """`[count, size, size, 3]` uint8: photos of a folder first, the rest drawn (gradients, shapes, noise), seeded.

    With a name for each: the path of a photo, the number of a drawn image. Raises BadInputError for a folder without a
    readable image.
    """
    return _named_pixels(_photos_first(count, spec, folder))


def _photos_first(count: int, spec: ImageInput | None, folder: Path | None) -> list[tuple[Path | str, Pixels]]:
    """The path of each photo, or the name of a drawn image, and its pixels; see `image_probes`."""
    probes: list[tuple[Path | str, Pixels]] = []
    if folder is not None and spec is not None:
        probes += islice(photos(folder, spec), count)
        if not probes:
            raise BadDataError(f"{folder}: holds no readable image")
    drawn = drawn_images(count - len(probes), spec.size if spec else 1)
    return probes + [(f"drawn {number}", pixels) for number, pixels in enumerate(drawn)]


def _named_pixels(probes: list[tuple[Path | str, Pixels]]) -> tuple[Pixels, list[str]]:
    return np.stack([pixels for _, pixels in probes]), [source_name(path) for path, _ in probes]


def drawn_images(count: int, size: int) -> list[Pixels]:
    """`count` pictures `[size, size, 3]` uint8, seeded: gradients, shapes and noise in turn."""
    rng = np.random.default_rng(0)
    return [_draw(rng, size, number) for number in range(count)]


def photos(folder: Path, spec: ImageInput) -> Iterator[tuple[Path, Pixels]]:
    """Path and pixels `[size, size, 3]` uint8 of each image of a folder. Raises BadInputError if there is none."""
    if not folder.is_dir():
        raise BadArgumentError(f"{folder}: no such folder of images")
    for path in sorted(folder.rglob("*")):
        with suppress(BadInputError):  # not every file of a folder is an image
            yield path, load(path, spec)


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
    """Feeds of some inputs, their names, and their labels: 1 unsafe, 0 safe, -1 not known."""

    feeds: Feeds
    names: list[str]
    labels: NDArray[np.int64]


class Inputs:
    """All inputs of a check for one model, as batches of feeds of 32 and more.

    An image is compared as the card says and, if the policy shows more of it (tiles, frames, other grounds), in each of
    these views too. Its label belongs to the first.
    """

    def __init__(
        self, card: ModelCard, codec: TextCodec | None, check: Check, policy: PolicyFile | None = None
    ) -> None:
        self.card, self.codec, self.policy = card, codec, policy
        self.texts = read_lines(check.texts) if check.texts else []
        probes = _photos_first(check.count, card.image, check.images)
        pixels, names = _named_pixels(probes)
        self.base = NamedFeeds(self.feeds(pixels, gaps=True), names, np.full(len(names), -1))
        golden = golden_images().items() if card.image else ()
        self.others = [_Item(f"golden {name}", data, None, views="own") for name, data in golden]
        self.others += _listed(check.adversarial, None) + _listed(check.data, check.positive_label)
        if policy is not None:
            paths = [path for path, _ in probes if isinstance(path, Path)]
            self.others += [_Item(source_name(path), path, None, views="further") for path in paths]

    def feeds(self, pixels: Pixels, *, gaps: bool = False, texts: list[str] | None = None) -> Feeds:
        """The feeds of images `[B, H, W, 3]`: texts are given, or those of the file, or drawn.

        With `gaps` some inputs are left out where the model allows it.
        """
        rows = len(pixels)
        feeds: Feeds = {"image": pixels} if self.card.image else {}
        if self.codec is not None and self.card.text is not None:
            given = self.texts[:rows]
            tokens = self.codec.encode(texts or given + text_probes(rows - len(given)))
            there = np.ones((rows, 1), dtype=np.int64)
            if gaps and "text" not in self.card.requires:
                there[3::8] = 0
            mask = tokens.mask * there.astype(tokens.mask.dtype)
            feeds |= {"input_ids": tokens.ids * there, self.card.text.mask_name: mask}
        if "image_present" in self.card.input_names:
            feeds["image_present"] = (np.arange(rows) % 8 != 5) | (not gaps)
        return feeds

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self.base.names) // BATCH) - (-len(self.others) // BATCH)

    def __iter__(self) -> Iterator[NamedFeeds]:
        for start in range(0, len(self.base.names), BATCH):
            rows = slice(start, start + BATCH)
            feeds = {name: value[rows] for name, value in self.base.feeds.items()}
            yield NamedFeeds(feeds, self.base.names[rows], self.base.labels[rows])
        for start in range(0, len(self.others), BATCH):
            # A file that cannot be read stops the check: what was not compared is not verified.
            items = [row for item in self.others[start : start + BATCH] for row in self._rows(item)]
            if items:  # further views of pictures may be none
                yield self._named(items, start)

    def _named(self, rows: list[tuple[_Item, Pixels]], offset: int) -> NamedFeeds:
        drawn = text_probes(len(rows), offset + 7)
        texts = [item.text if item.text is not None else words for (item, _), words in zip(rows, drawn, strict=True)]
        feeds = self.feeds(np.stack([pixels for _, pixels in rows]), texts=texts)
        if "image_present" in feeds:
            feeds["image_present"] = np.array([item.image is not None for item, _ in rows])
        return NamedFeeds(feeds, [item.name for item, _ in rows], np.array([item.label for item, _ in rows]))

    def _rows(self, item: _Item) -> Iterator[tuple[_Item, Pixels]]:
        """An item as the card says, then each other view that the policy shows of it, as an item of its own."""
        spec = self.card.image
        if item.image is None or spec is None:
            side = spec.size if spec else 1
            yield item, np.zeros((side, side, 3), dtype=np.uint8)
            return
        own = load(item.image, spec)
        if item.views != "further":
            yield item, own
        policy = self.policy
        if item.views == "own" or policy is None:
            return
        rows = shown(item.image, spec, policy)
        for place, pixels in zip(rows.places, rows.pixels, strict=True):
            if not np.array_equal(pixels, own):
                frame = "" if place.frame is None else f", frame {place.frame}"
                yield replace(item, name=f"{item.name}{frame}, {place.view or policy.views}", label=-1), pixels


@dataclass(frozen=True)
class _Item:
    """`views`: as the card says, those that the policy shows beside that, or all of them."""

    name: str
    image: ImageSource | None
    text: str | None
    label: int = -1
    views: Literal["own", "further", "all"] = "all"


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
        # Names stand in reports and in the manifest of a bundle: a text is called by its line.
        name = source_name(row.image) if row.image else f"{path.name}, line {row.line}"
        items.append(_Item(name, row.image, row.text, label))
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


#: The number of inputs that fixed 8-bit scales are measured on, and the size of their batches.
CALIBRATED, CALIBRATION_BATCH = 128, 16


def calibration(path: Path, card: ModelCard, codec: TextCodec | None) -> list[Feeds]:
    """Feeds of up to 128 inputs, of a folder of images, a file of texts (one a line), or a manifest of either or both.

    A manifest is a CSV or Parquet file with the columns `image` and `text`, or a folder that holds a manifest.csv; of a
    long one, rows are taken evenly. `codec` makes tokens for a model that reads texts. Raises BadInputError if nothing
    there is what the model reads, or an image of a manifest cannot be read.
    """
    if not path.exists():
        raise BadArgumentError(f"{path}: no such file or folder; give {what_to_give(card)}")
    examples = [one for one in islice(_examples(path, card, codec), CALIBRATED) if _complete(one, card)]
    for kind, reads, given in (
        ("images", card.image is not None, any(one.pixels is not None for one in examples)),
        ("texts", card.reads_text, any(one.ids is not None for one in examples)),
    ):
        if reads and not given:
            raise BadDataError(f"{path}: holds no {kind}, which {card.name} reads; give {what_to_give(card)}")
    return [
        feeds(card, examples[start : start + CALIBRATION_BATCH]) for start in range(0, len(examples), CALIBRATION_BATCH)
    ]


def what_to_give(card: ModelCard) -> str:
    """The inputs that a model must be calibrated on, in words."""
    if not card.reads_text:
        return "`calibrate`, a folder of images like those that it will judge"
    if card.image is None:
        return "`calibrate`, a file with texts like those that it will judge, one a line"
    return "`calibrate`, a manifest (CSV) with the columns image and text"


def _examples(path: Path, card: ModelCard, codec: TextCodec | None) -> Iterator[Ready]:
    spec = card.image
    listed = path / "manifest.csv" if path.is_dir() else path
    if listed.suffix in (".csv", ".parquet") and listed.is_file():
        rows = read_manifest(listed)
        for number in np.unique(np.linspace(0, len(rows) - 1, CALIBRATED).astype(int)):
            row = rows[number]
            yield _example(load(row.image, spec) if row.image and spec else None, row.text, codec)
    elif path.is_dir():
        for _, pixels in photos(path, spec) if spec else ():
            yield _example(pixels, None, codec)
    else:
        for line in read_lines(path):
            yield _example(None, line, codec)


def _example(pixels: Pixels | None, text: str | None, codec: TextCodec | None) -> Ready:
    image = None if pixels is None else pixels[None]
    if text is None or codec is None:
        return Ready("", pixels=image)
    tokens = codec.encode([text])
    return Ready("", pixels=image, ids=tokens.ids, mask=tokens.mask)


def _complete(example: Ready, card: ModelCard) -> bool:
    """Whether an example has something that the model reads, and all that it requires."""
    there = {"image": example.pixels is not None, "text": example.ids is not None}
    return any(there.values()) and all(there[kind] for kind in card.requires)
