"""A manifest of examples: CSV or Parquet with the columns image, text, label or labels, judged, split. No torch."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from zoo.errors import BadArgumentError, BadDataError, MissingDependencyError, close_match
from zoo.files import new_file

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
#: Other names of the splits that manifests use.
SAME_SPLIT = {"dev": "val", "valid": "val", "validation": "val", "training": "train"}
_ROLES = ("image", "text", "label", "labels", "judged", "split")


@dataclass(frozen=True)
class Row:
    """One example.

    Args:
        line: its line in the manifest.
        image: path of the image, or None.
        text: the text, or None.
        labels: label names; a manifest separates several by `|`.
        split: the split that the manifest names, or None.
        judged: the labels that somebody looked for in this row. A label that is not among them is unknown. None: the
            manifest does not say, and all labels were looked for.
        listed: the manifest has a column of label lists, so an empty list means that no label applies.
        record: every column of the file under its own name.
    """

    line: int
    image: Path | None
    text: str | None
    labels: tuple[str, ...]
    split: Split | None
    judged: tuple[str, ...] | None = None
    listed: bool = field(default=False, compare=False)
    record: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


def read_manifest(path: Path, image_root: Path | None = None, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Read a manifest. Image paths are relative to `image_root`, by default the manifest's own folder.

    `columns` renames: {"text": "caption"} reads `text` from the column `caption`. The file needs `image` or `text`;
    `label` or `labels`, `judged` and `split` (train, val or dev, test) are optional. Raises BadInputError naming the
    file, the column or the line, and MissingDependencyError for Parquet without pyarrow.
    """
    records, columns = read_records(path), columns or {}
    names = {role: columns.get(role, role) for role in _ROLES}
    for word in sorted(set(columns) - set(names)):
        raise BadArgumentError(f'columns: no role "{word}"' + close_match(word, names))
    need_columns(path, records, columns.values())
    if names["image"] not in records[0] and names["text"] not in records[0]:
        raise BadDataError(f'{path}: has neither a column "image" nor "text"' + close_match("image", records[0]))
    root = image_root or path.parent
    return [_row(path, number, record, names, root) for number, record in enumerate(records, start=2)]


def read_records(path: Path) -> list[dict[str, str]]:
    """All columns of a manifest as the file has them; the first record is that of line 2. Raises as above."""
    if not path.is_file():
        raise BadArgumentError(f"{path}: no such manifest file")
    records = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    if not records:
        raise BadDataError(f"{path}: has no rows")
    return records


def need_columns(path: Path, records: Sequence[Mapping[str, str]], names: Iterable[str]) -> None:
    """Raise BadArgumentError for the first column that the records of a file do not have."""
    for name in names:
        if name not in records[0]:
            raise BadArgumentError(f'{path}: no column "{name}"' + close_match(name, records[0]))


def write_records(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, and the folder that it lies in if there is none."""
    with new_file(path, newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])


def _row(path: Path, line: int, record: Mapping[str, str], names: Mapping[str, str], root: Path) -> Row:
    image, text = record.get(names["image"]) or None, record.get(names["text"]) or None
    split = (record.get(names["split"]) or "").strip().lower()
    split = SAME_SPLIT.get(split, split)
    if split and split not in SPLITS:
        raise BadDataError(f'{path}, line {line}: split "{split}"' + close_match(split, SPLITS))
    labels, judged = _names(record.get(names["labels"]) or record.get(names["label"]) or ""), None
    if record.get(names["judged"]) is not None:
        judged = _names(record[names["judged"]])
        odd = next((label for label in labels if label not in judged), None)
        if odd is not None:
            raise BadDataError(f'{path}, line {line}: has the label "{odd}", which is not among those judged: {judged}')
    place = root / image if image else None
    return Row(line, place, text, labels, split or None, judged, names["labels"] in record, record)


def _names(field: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in field.split("|") if name.strip())


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise BadDataError(f"{path}: not readable as CSV: {problem}") from None


def _read_parquet(path: Path) -> list[dict[str, str]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError(f"{path}: reading Parquet takes pip install 'safety-zoo[parquet]'") from None
    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.lib.ArrowException) as problem:
        raise BadDataError(f"{path}: not readable as Parquet: {problem}") from None
    return [{key: _flat(value) for key, value in record.items()} for record in records]


def _flat(value: object) -> str:
    if isinstance(value, list):
        return "|".join(str(part) for part in value)
    return "" if value is None else str(value)
