"""The inputs that fixed 8-bit scales are measured on: a few of the images and texts that a model will judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.verify.inputs import read_lines
from zoo.contract.card import ImageInput, ModelCard
from zoo.data.manifest import read_manifest
from zoo.errors import BadArgumentError, BadDataError, BadInputError
from zoo.inputs.image import load
from zoo.inputs.text import TextCodec
from zoo.judging.scorer import Feeds

#: The number of inputs that are taken, and the size of their batches.
INPUTS, BATCH = 128, 16


@dataclass(frozen=True)
class _Example:
    pixels: NDArray[np.uint8] | None
    text: str | None


def calibration(path: Path, card: ModelCard, codec: TextCodec | None) -> list[Feeds]:
    """Feeds of up to 128 inputs, of a folder of images, a file of texts (one a line), or a manifest of either or both.

    A manifest is a CSV or Parquet file with the columns `image` and `text`, or a folder that holds a manifest.csv; of a
    long one, rows are taken evenly. `codec` makes tokens for a model that reads texts. Raises BadInputError if nothing
    there is what the model reads, or an image of a manifest cannot be read.
    """
    if not path.exists():
        raise BadArgumentError(f"{path}: no such file or folder; give {what_to_give(card)}")
    examples = [one for one in islice(_examples(path, card.image), INPUTS) if _complete(one, card)]
    for kind, reads, given in (
        ("images", card.image is not None, any(one.pixels is not None for one in examples)),
        ("texts", card.reads_text, any(one.text is not None for one in examples)),
    ):
        if reads and not given:
            raise BadDataError(f"{path}: holds no {kind}, which {card.name} reads; give {what_to_give(card)}")
    return [_feeds(examples[start : start + BATCH], card, codec) for start in range(0, len(examples), BATCH)]


def what_to_give(card: ModelCard) -> str:
    """The inputs that a model must be calibrated on, in words."""
    if not card.reads_text:
        return "`calibrate`, a folder of images like those that it will judge"
    if card.image is None:
        return "`calibrate`, a file with texts like those that it will judge, one a line"
    return "`calibrate`, a manifest (CSV) with the columns image and text"


def _examples(path: Path, spec: ImageInput | None) -> Iterator[_Example]:
    listed = path / "manifest.csv" if path.is_dir() else path
    if listed.suffix in (".csv", ".parquet") and listed.is_file():
        rows = read_manifest(listed)
        for number in np.unique(np.linspace(0, len(rows) - 1, INPUTS).astype(int)):
            row = rows[number]
            yield _Example(load(row.image, spec) if row.image and spec else None, row.text)
    elif path.is_dir():
        for file in sorted(path.rglob("*")):
            try:
                yield _Example(load(file, spec) if spec else None, None)
            except BadInputError:  # not every file of a folder is an image
                continue
    else:
        for line in read_lines(path):
            yield _Example(None, line)


def _complete(example: _Example, card: ModelCard) -> bool:
    """Whether an example has something that the model reads, and all that it requires."""
    there = {"image": example.pixels is not None, "text": example.text is not None and card.reads_text}
    return any(there.values()) and all(there[kind] for kind in card.requires)


def _feeds(examples: list[_Example], card: ModelCard, codec: TextCodec | None) -> Feeds:
    feeds: Feeds = {}
    if card.image is not None:
        blank = np.zeros((card.image.size, card.image.size, 3), dtype=np.uint8)
        feeds["image"] = np.stack([blank if one.pixels is None else one.pixels for one in examples])
    if codec is not None:
        tokens = codec.encode([one.text or "" for one in examples])
        there = np.array([[one.text is not None] for one in examples], dtype=np.int64)
        feeds |= {"input_ids": tokens.ids * there, "attention_mask": tokens.mask * there}
    if "image_present" in card.input_names:
        feeds["image_present"] = np.array([one.pixels is not None for one in examples])
    return feeds
