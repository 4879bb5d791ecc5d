"""Drawn inputs that fixed 8-bit scales are found on where nobody gave others."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from export.verify.inputs import image_probes, text_probes
from export.verify.report import MINIMUM
from zoo.contract.card import ModelCard


def draw_inputs(card: ModelCard, folder: Path, count: int, *, unseen: bool) -> Path:
    """Make a folder with `count` inputs of what a model reads, images of its own size and texts: a manifest.csv.

    With `unseen` they are others than the drawn ones that engines are verified on. Returns the folder.
    """
    folder.mkdir()
    rows: list[dict[str, str]] = [{} for _ in range(count)]
    if card.image is not None:
        skip = MINIMUM if unseen else 0
        for number, pixels in enumerate(image_probes(skip + count, card.image)[0][skip:]):
            Image.fromarray(pixels).save(folder / f"{number}.png")
            rows[number]["image"] = f"{number}.png"
    if card.reads_text:
        for row, text in zip(rows, text_probes(count, MINIMUM), strict=True):
            row["text"] = text
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder
