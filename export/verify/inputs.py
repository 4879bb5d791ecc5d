"""The inputs that an engine is verified on, with a name for each: photos, drawn, golden, adversarial, labelled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.verify.check import Check
from export.verify.golden import golden_images
from export.verify.probes import Images, named_probes, text_probes
from zoo.contract.card import ModelCard
from zoo.data.manifest import read_manifest
from zoo.errors import BadDataError
from zoo.inputs.image import ImageSource, load
from zoo.inputs.text import TextCodec
from zoo.judging.scorer import Feeds

BATCH = 32


@dataclass(frozen=True)
class Batch:
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
        self.base = Batch(self.feeds(pixels, gaps=True), names, np.full(len(names), -1))
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

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.base.names), BATCH):
            rows = slice(start, start + BATCH)
            feeds = {name: value[rows] for name, value in self.base.feeds.items()}
            yield Batch(feeds, self.base.names[rows], self.base.labels[rows])
        for start in range(0, len(self.others), BATCH):
            yield self._load(self.others[start : start + BATCH], start)

    def _load(self, items: list[_Item], offset: int) -> Batch:
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
        return Batch(feeds, [item.name for item in items], np.array([item.label for item in items], dtype=np.int64))


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
    items = []
    for row in rows:
        label = -1 if positive is None or not row.labels else int(positive in row.labels)
        items.append(_Item(str(row.image or row.text), row.image, row.text, label))
    return items


def read_lines(path: Path) -> list[str]:
    """The lines of a file that hold something. Raises BadInputError where there is none, or it is not UTF-8."""
    try:
        found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise BadDataError(f"{path}: not readable as UTF-8 text: {problem}") from None
    if not found:
        raise BadDataError(f"{path}: holds no text")
    return found
