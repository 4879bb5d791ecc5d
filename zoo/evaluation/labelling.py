"""Rows of a manifest as items with labels: what makes an item unsafe, and which rows are one item."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.data.manifest import Row, read_manifest
from zoo.errors import BadDataError


@dataclass(frozen=True)
class Labelling:
    """What makes an item unsafe: one of its labels is `positive_label`, or a text of it has one of `words`.

    The label of an item without labels is unknown, unless the manifest says that this label was looked for (`judged`)
    or lists labels: an empty list names none.
    """

    positive_label: str = "1"
    words: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What makes an item unsafe, in words."""
        return f"the words {list(self.words)}" if self.words else f'the label "{self.positive_label}"'

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


def read_rows(data: Path, image_root: Path | None, columns: dict[str, str], split: str | None) -> list[Row]:
    """The rows of a manifest that belong to a split; all of them for None. Raises as `read_manifest`."""
    rows = read_manifest(data, image_root, columns)
    return rows if split is None else rows_of_split(rows, split, data)


def rows_of_split(rows: Sequence[Row], split: str, data: Path) -> list[Row]:
    """The rows of a split. Raises BadDataError for a row that names no split, and for a split without rows."""
    unnamed = next((row.line for row in rows if row.split is None), None)
    if unnamed is not None:
        raise BadDataError(f"{data}: some rows name no split, such as line {unnamed}: fill the column split")
    chosen = [row for row in rows if row.split == split]
    if not chosen:
        names = sorted({str(row.split) for row in rows})
        raise BadDataError(f'{data}: no rows of the split "{split}"; it has {", ".join(names)}')
    return chosen


def items_of(rows: list[Row], *, by_image: bool) -> list[list[Row]]:
    """Rows that show the same image are one item for a model that reads images alone."""
    if not by_image:
        return [[row] for row in rows]
    groups: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.image or row.line].append(row)
    return list(groups.values())
