"""Rows of a manifest as items with labels: what makes an item unsafe, and which rows are one item."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from zoo.contract.card import ModelCard
from zoo.data.manifest import SPLITS, Row, need_label, read_manifest
from zoo.data.splits import apply_rule
from zoo.errors import BadArgumentError, BadDataError
from zoo.files.hub import HUB
from zoo.files.writing import CARD
from zoo.keys import refuse_unsigned
from zoo.release.store import load_release

T = TypeVar("T")


@dataclass(frozen=True)
class Labelling:
    """The rule for unsafe items: one of the labels is `positive_label`, or a text has one of `words`.

    The label of an item without labels is unknown, unless the manifest says that this label was looked for (`judged`)
    or lists labels: an empty list names none.
    """

    positive_label: str = "1"
    words: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The rule in words."""
        return f"the words {list(self.words)}" if self.words else f'the label "{self.positive_label}"'

    def check(self, rows: Sequence[Row], data: Path | str) -> None:
        """Raise BadDataError if nothing can be unsafe: no row has the label, or no text one of the words."""
        if not self.words:
            need_label(rows, self.positive_label, data)
        elif all(self.label([row]) == 0 for row in rows):
            raise BadDataError(f"{data}: no item is unsafe by {self.text}")

    def label(self, rows: Sequence[Row]) -> int | None:
        """1 unsafe, 0 safe, None unknown, for the rows of one item."""
        if self.words:
            pattern = re.compile(rf"\b({'|'.join(map(re.escape, self.words))})\b", re.IGNORECASE)
            return int(any(pattern.search(row.text or "") for row in rows))
        labels = [label for row in rows for label in row.labels]
        judged = [row.judged for row in rows if row.judged is not None]
        listed = any(row.listed for row in rows)
        known = any(self.positive_label in names for names in judged) if judged else labels or listed
        return 1 if self.positive_label in labels else 0 if known else None


def read_rows(
    data: Path,
    image_root: Path | None,
    columns: dict[str, str],
    split: str | None,
    *,
    labelling: Labelling | None = None,
    model: str = "",
    say: Callable[[str], None] = print,
) -> list[Row]:
    """The rows of a manifest that belong to a split, `all` of them, or for None all that training did not see.

    Rows without a split have the one that the training of `model` gave them, where its card says by which rule (see
    `with_splits`). For None these are the test rows; a manifest that names splits, or a model without a rule, has all
    rows judged. Raises as `read_manifest`, and as `Labelling.check` for all rows, and for those of a split.
    """
    rows = read_manifest(data, image_root, columns)
    if labelling is not None:
        labelling.check(rows, data)
    if split == "all":
        return rows
    if any(row.split is None for row in rows):
        card = Path(model) / CARD  # names of the registry have no rule; those of the Hub are loaded for theirs
        cards = [ModelCard.read(card)] if card.is_file() else []
        if model.startswith(HUB):
            refuse_unsigned(model)
            cards = [load_release(model).model.card]
        placed = with_splits(rows, cards, data, say)
        if split is None and placed is rows:
            if any(card.training.data for card in cards):
                say(f"{data}: rows name no split, and the card of {model} no rule: those trained on may be among them")
        elif split is None:
            say("the rows of the split test are judged; ask for the split all to judge every row")
            split = "test"
        rows = placed
    elif split is None and (seen := sum(row.split == "train" for row in rows)):
        say(f"{data}: {seen} of {len(rows)} rows are of the split train, and all are judged; ask for one split")
    return rows if split is None else rows_of_split(rows, split, data, labelling)


def with_splits(rows: list[Row], cards: Sequence[ModelCard], data: Path, say: Callable[[str], None]) -> list[Row]:
    """The rows, those without a split with the one that training gave them, by the rules in the cards.

    Of several rules (a panel's heads) the first of train, val, test counts: what one head trained on tests no other.
    Returns `rows` themselves if all name a split or no card has a rule.
    """
    every = [head for card in cards for head in (card, *card.heads.values())]
    ruled = {card.training.split: card for card in every if card.training.split is not None}
    if not ruled or all(row.split is not None for row in rows):
        return rows
    by_rule = [apply_rule(rows, rule, card.image) for rule, card in ruled.items()]
    placed = [
        dataclasses.replace(row, split=row.split or min(splits, key=SPLITS.index))
        for row, *splits in zip(rows, *by_rule, strict=True)
    ]
    counts = Counter(row.split for row, old in zip(placed, rows, strict=True) if old.split is None)
    told = " and ".join(f"{rule.rule}, seed {rule.seed}, shares {rule.shares}" for rule in ruled)
    sizes = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    say(f"{data}: {counts.total()} rows name no split and get the one of training ({told}): {sizes}")
    return placed


def rows_of_split(rows: Sequence[Row], split: str, data: Path, labelling: Labelling | None = None) -> list[Row]:
    """The rows of a split. Raises BadDataError for a row that names no split, and for a split without rows.

    With a `labelling` also if none of its rows can be unsafe: an error rate of one kind would look like a result.
    """
    unnamed = next((row.line for row in rows if row.split is None), None)
    if unnamed is not None:
        raise BadDataError(f"{data}: some rows name no split, such as line {unnamed}: fill the column split")
    chosen = [row for row in rows if row.split == split]
    if not chosen:
        names = sorted({str(row.split) for row in rows})
        raise BadDataError(f'{data}: no rows of the split "{split}"; it has {", ".join(names)}')
    if labelling is not None:
        labelling.check(chosen, f"{data}, split {split}")
    return chosen


def limited(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """`limit` of the items, drawn by `seed`, in their order; all of them for None. Raises BadArgumentError below 1."""
    if limit is None:
        return list(items)
    if limit < 1:
        raise BadArgumentError(f"`limit` must be at least 1, got {limit}")
    places = sorted(random.Random(seed).sample(range(len(items)), min(limit, len(items))))
    return [items[place] for place in places]


def items_of(rows: list[Row], *, by_image: bool) -> list[list[Row]]:
    """Rows that show the same image are one item for a model that reads images alone."""
    if not by_image:
        return [[row] for row in rows]
    groups: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.image or row.line].append(row)
    return list(groups.values())
