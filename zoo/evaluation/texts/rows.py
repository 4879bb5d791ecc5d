"""Texts with what is known of each for each category, and which categories test nothing but style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.data.manifest import Row, read_manifest
from zoo.errors import BadInputError, close_match

#: What `TextRows.labels` says of a text for a category.
YES, NO, UNKNOWN = 1, 0, -1


@dataclass(frozen=True)
class TextRows:
    """`labels` int `[N, L]`: 1 of the category, 0 not, -1 not judged for it; `sources` name corpora, where known."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    sources: tuple[frozenset[str], ...]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: NDArray[np.int64]) -> TextRows:
        """These rows alone."""
        chosen = [int(row) for row in rows]
        return TextRows(
            tuple(self.texts[row] for row in chosen), self.labels[chosen], tuple(self.sources[row] for row in chosen)
        )

    def of(self, columns: list[int]) -> TextRows:
        """The same texts with these categories alone."""
        return TextRows(self.texts, self.labels[:, columns], self.sources)


def read_text_rows(data: Path, categories: Sequence[str]) -> dict[str, TextRows]:
    """The texts of a manifest by split, as `zoo data corpora` writes one; rows without text are skipped.

    Raises BadInputError as `read_manifest`, for labels that are not among the categories, and for rows without a split.
    """
    kept: dict[str, list[Row]] = {}
    for row in read_manifest(data):
        if row.text is None:
            continue
        for name in (*row.labels, *(row.judged or ())):
            if name not in categories:
                raise BadInputError(
                    f'{data}, line {row.line}: the model has no output "{name}"' + close_match(name, categories)
                )
        if row.split is None:
            raise BadInputError(f"{data}, line {row.line}: names no split, and test rows must not be trained on")
        kept.setdefault(row.split, []).append(row)
    return {
        split: TextRows(
            tuple(row.text or "" for row in rows),
            np.array([[_known(row, name) for name in categories] for row in rows], dtype=np.int64),
            tuple(frozenset(filter(None, (row.record.get("source") or "").split("|"))) for row in rows),
        )
        for split, rows in kept.items()
    }


def style_tests(rows: TextRows, categories: Sequence[str]) -> frozenset[str]:
    """The categories whose texts and counter-examples share no source: what tells the sources apart suffices there.

    A bag of words tells the prompts of one site from captions almost perfectly. Without sources nothing is known, and
    no category is one.
    """
    found = set()
    for column, name in enumerate(categories):
        of, against = (_sources(rows, rows.labels[:, column] == answer) for answer in (YES, NO))
        if of and against and not of & against:
            found.add(name)
    return frozenset(found)


def _sources(rows: TextRows, chosen: NDArray[np.bool_]) -> frozenset[str]:
    return frozenset().union(*(rows.sources[row] for row in np.flatnonzero(chosen)))


def _known(row: Row, name: str) -> int:
    if name in row.labels:
        return YES
    return NO if row.judged is None or name in row.judged else UNKNOWN
