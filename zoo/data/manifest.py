"""A manifest of examples: CSV or Parquet with the columns image, text, label or labels, judged, split. No torch."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.errors import BadArgumentError, BadDataError, MissingDependencyError, close_match
from zoo.inputs.text import clean

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
#: Other people's names for the validation split.
SAME_SPLIT = {"dev": "val", "valid": "val", "validation": "val", "training": "train"}


@dataclass(frozen=True)
class Row:
    """One example. `line` is its line in the manifest; `labels` are label names, several divided by `|`.

    `judged` are the labels that somebody looked for in this row, those that it has not among them: what is not named
    there is unknown, neither there nor absent. None where the manifest does not say, and all were looked for.
    `listed`: the manifest has a column of label lists, so that no labels means that none applies. `record` holds every
    column of the file under its own name.
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
    """Read a manifest; image paths are relative to `image_root`, by default the manifest's own folder.

    `columns` renames: {"text": "caption"} reads `text` from the column `caption`. `image` or `text` must be
    there; `label`/`labels`, `judged` and `split` (train, val or dev, test) may be. Raises BadInputError naming the
    file, the column or the line, and MissingDependencyError for Parquet without pyarrow.
    """
    records = read_records(path)
    names = {role: (columns or {}).get(role, role) for role in ("image", "text", "label", "labels", "judged", "split")}
    unknown = set(columns or {}) - set(names)
    if unknown:
        word = sorted(unknown)[0]
        raise BadArgumentError(f'columns: no role "{word}"' + close_match(word, names))
    for role, name in names.items():
        if role in (columns or {}) and name not in records[0]:
            raise BadArgumentError(f'{path}: no column "{name}"' + close_match(name, records[0]))
    if names["image"] not in records[0] and names["text"] not in records[0]:
        raise BadDataError(f'{path}: has neither a column "image" nor "text"' + close_match("image", records[0]))
    root = image_root or path.parent
    return [_row(path, number, record, names, root) for number, record in enumerate(records, start=2)]


def read_records(path: Path) -> list[dict[str, str]]:
    """All columns of a manifest as they stand in the file; the first record is that of line 2. Raises as above."""
    if not path.is_file():
        raise BadArgumentError(f"{path}: no such manifest file")
    records = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    if not records:
        raise BadDataError(f"{path}: has no rows")
    return records


def assign_splits(
    rows: list[Row], prints: NDArray[np.uint64] | None, fractions: tuple[float, float, float], seed: int
) -> list[Split]:
    """The split of each row: its own where the manifest names one, else by a seeded hash of the content.

    Rows whose images look alike (`prints`, see `fingerprint`, within 4 bits), or which have no image and the
    same cleaned text, form a group that is never divided; where a member names its split, all take it. A row's
    split depends on its group alone, so it does not move when other rows are added, removed or reordered.
    """
    group = _groups(rows, prints)
    named: dict[int, Split] = {}
    keys: dict[int, str] = {}
    for index, row in enumerate(rows):
        leader = int(group[index])
        if row.split is not None:
            # The strictest use wins: what anyone tests on must not be trained on.
            named[leader] = max(named.get(leader, row.split), row.split, key=SPLITS.index)
        key = _content_key(row, None if prints is None else int(prints[index]), seed)
        keys[leader] = min(keys.get(leader, key), key)
    cuts = np.cumsum(fractions) / sum(fractions)
    result: list[Split] = []
    for index, row in enumerate(rows):
        leader = int(group[index])
        drawn = int(keys[leader][:15], 16) / 16**15
        result.append(row.split or named.get(leader) or SPLITS[min(int(np.searchsorted(cuts, drawn, "right")), 2)])
    return result


def fingerprint(image: Image.Image) -> int:
    """A 64-bit difference hash: which of two neighbours is brighter on a 9 x 8 grey thumbnail.

    It survives resizing and recompression, so copies of one photo differ in few bits.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).flatten()
    return int(np.packbits(bits).view(">u8")[0])


def _groups(rows: list[Row], prints: NDArray[np.uint64] | None) -> NDArray[np.int64]:
    """Leader index of each row's group, by union-find."""
    parent = np.arange(len(rows))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    def join(first: int, second: int) -> None:
        a, b = find(first), find(second)
        parent[max(a, b)] = min(a, b)

    seen: dict[str, int] = {}
    for index, row in enumerate(rows):
        key = str(row.image) if row.image is not None else "text:" + clean(row.text or "").casefold()
        join(index, seen.setdefault(key, index))
    if prints is not None:
        pictured = [index for index in seen.values() if rows[index].image is not None and prints[index]]
        for first, second in _near_pairs(prints, pictured):
            join(first, second)
    return np.array([find(index) for index in range(len(rows))])


def _near_pairs(prints: NDArray[np.uint64], candidates: list[int], distance: int = 4) -> Iterable[tuple[int, int]]:
    """Pairs within `distance` bits: of distance + 1 bands of a hash, at least one must then be equal."""
    bands = np.array_split(np.arange(64), distance + 1)
    for band in bands:
        mask = sum(1 << int(bit) for bit in band)
        buckets: dict[int, list[int]] = {}
        for index in candidates:
            buckets.setdefault(int(prints[index]) & mask, []).append(index)
        for bucket in buckets.values():
            values = prints[bucket]
            for position in range(len(bucket) - 1):
                differing = np.bitwise_count(values[position + 1 :] ^ values[position])
                for offset in np.flatnonzero(differing <= distance):
                    yield bucket[position], bucket[position + 1 + int(offset)]


def _content_key(row: Row, print_: int | None, seed: int) -> str:
    content = f"image:{print_}" if row.image is not None and print_ else clean(row.text or str(row.image)).casefold()
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()


def _row(path: Path, line: int, record: Mapping[str, str], names: Mapping[str, str], root: Path) -> Row:
    image, text = record.get(names["image"]) or None, record.get(names["text"]) or None
    raw = record.get(names["labels"]) or record.get(names["label"]) or ""
    split = (record.get(names["split"]) or "").strip().lower()
    split = SAME_SPLIT.get(split, split)
    if split and split not in SPLITS:
        raise BadDataError(f'{path}, line {line}: split "{split}"' + close_match(split, SPLITS))
    labels, judged = _names(raw), None
    if record.get(names["judged"]) is not None:
        judged = _names(record[names["judged"]])
        odd = next((label for label in labels if label not in judged), None)
        if odd is not None:
            raise BadDataError(f'{path}, line {line}: has the label "{odd}", which is not among those judged: {judged}')
    place = root / image if image else None
    return Row(line, place, text, labels, split if split else None, judged, names["labels"] in record, record)


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
