"""The items that are attacked: manifest rows as the model reads them, with labels; what cannot be read, counted."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from zoo.contract.card import ModelCard
from zoo.data.manifest import Row
from zoo.errors import BadArgumentError, BadDataError, BadInputError, close_match
from zoo.evaluation.labelling import Labelling, items_of, limited
from zoo.inputs.image import load
from zoo.inputs.text import clean


@dataclass(frozen=True)
class Item:
    """One image, text or both with its class; `row` is the manifest's first row of it.

    `label` is 1 unsafe or 0 safe, or the place among the card's labels where those are attacked.
    """

    row: Row
    label: int
    labels: tuple[str, ...]
    text: str | None

    @property
    def group(self) -> Hashable:
        """Items of one group depend on each other: they show the same image."""
        return str(self.row.image) if self.row.image else self.row.line


@dataclass(frozen=True)
class Items:
    """N readable, labelled items, their `pixels` uint8 `[N, 3, S, S]` (zero without an image), and the rest.

    `with_image` `[N]` tells which have one; `lost` counts the items that are not among them, by reason, and `details`
    names the first of each; `columns` hold a value of each item by column, to tell kinds of items apart.
    """

    items: list[Item]
    pixels: Tensor | None
    with_image: Tensor
    lost: dict[str, int] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labels(self) -> Tensor:
        """The class of each item `[N]` int64."""
        return torch.tensor([item.label for item in self.items], dtype=torch.int64)

    def take(self, rows: Tensor) -> Items:
        """Some of the items, by their places; `lost` stays with the whole."""
        places = rows.tolist()
        return Items(
            [self.items[place] for place in places],
            None if self.pixels is None else self.pixels[rows],
            self.with_image[rows],
            columns={name: [values[place] for place in places] for name, values in self.columns.items()},
        )

    @property
    def with_text(self) -> Tensor:
        """Which items `[N]` have a text that the model reads."""
        return torch.tensor([item.text is not None for item in self.items])

    @property
    def texts(self) -> list[str | None]:
        """The text of each item, None if the model reads none or the row has none."""
        return [item.text for item in self.items]


@dataclass(frozen=True)
class Selection:
    """Which rows of a manifest are meant; see `read_items`."""

    data: Path
    image_root: Path | None = None
    columns: dict[str, str] = field(default_factory=dict)
    by: tuple[str, ...] = ()


def read_items(
    rows: Sequence[Row],
    card: ModelCard,
    selection: Selection,
    labelling: Labelling | None,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Items:
    """The items of these rows as the model of `card` reads them; `limit` draws that many by `seed`.

    An image with several captions is one item for a model that reads images alone. Without a `labelling` the class is
    the row's label among the card's labels. Raises BadInputError for an unknown column, a label that the
    card lacks, or when no item can be judged.
    """
    groups = limited(items_of(list(rows), by_image=not card.reads_text), limit, seed)
    reader = _Reader(card, labelling)
    for group in track(groups, "Reading items", transient=True):
        reader.add(group)
    if not reader.items:
        raise BadDataError(f"{selection.data}: none of {len(groups)} items can be judged: {reader.details}")
    pixels = torch.from_numpy(np.stack(reader.pixels)).permute(0, 3, 1, 2) if reader.pixels else None
    present = torch.tensor([row is not None for row in reader.images])
    columns = _columns(selection, reader.items)
    return Items(reader.items, pixels, present, reader.lost, reader.details, columns)


class _Reader:
    """Reads items one by one and counts what it has to leave out."""

    def __init__(self, card: ModelCard, labelling: Labelling | None) -> None:
        self.card, self.labelling = card, labelling
        self.items: list[Item] = []
        self.pixels: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
        self.images: list[Path | None] = []
        self.lost = {"unlabelled": 0, "unreadable": 0, "missing_input": 0}
        self.details: dict[str, str] = {}

    def add(self, group: list[Row]) -> None:
        row = group[0]
        label = self._label(group)
        image = row.image if self.card.image is not None else None
        text = row.text if self.card.reads_text else None
        given = {"image": image is not None, "text": text is not None}
        missing = [kind for kind in self.card.requires if not given[kind]]
        if label is None:
            return self._lose("unlabelled", f"line {row.line}: no label")
        if missing or not any(given.values()):
            return self._lose("missing_input", f"line {row.line}: no {' and no '.join(missing) or 'input'}")
        try:
            if text is not None:
                clean(text)
            if self.card.image is not None:
                size = self.card.image.size
                blank = np.zeros((size, size, 3), dtype=np.uint8)
                self.pixels.append(blank if image is None else load(image, self.card.image))
        except BadInputError as problem:
            return self._lose("unreadable", f"line {row.line}: {problem}")
        names = tuple(dict.fromkeys(name for one in group for name in one.labels))
        self.items.append(Item(row, label, names, text))
        self.images.append(image)
        return None

    def _lose(self, reason: str, detail: str) -> None:
        self.lost[reason] += 1
        self.details.setdefault(reason, detail)

    def _label(self, group: list[Row]) -> int | None:
        if self.labelling is not None:
            return self.labelling.label(group)
        names = {name for row in group for name in row.labels}
        if not names:
            return None
        name, more = sorted(names)[0], sorted(names)[1:]
        if more:
            raise BadDataError(f"line {group[0].line}: has the labels {sorted(names)}, and one class is attacked")
        if name not in self.card.labels:
            known = close_match(name, self.card.labels)
            raise BadDataError(f'line {group[0].line}: {self.card.name} has no label "{name}"{known}')
        return self.card.labels.index(name)


def _columns(selection: Selection, items: Sequence[Item]) -> dict[str, list[str]]:
    """The values of each item in the column `kind`, if the manifest has one, and in the columns that were asked for."""
    known = items[0].row.record
    for name in selection.by:
        if name not in known:
            raise BadArgumentError(f'`by`: {selection.data} has no column "{name}"' + close_match(name, known))
    names = [name for name in dict.fromkeys(("kind", *selection.by)) if name in known]
    return {name: [item.row.record.get(name) or "" for item in items] for name in names}
