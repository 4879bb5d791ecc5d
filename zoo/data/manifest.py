"""A manifest of examples: CSV, TSV, JSON lines or Parquet with the columns that `Row` names. No torch."""

from __future__ import annotations

import csv
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zoo.contract import schema
from zoo.errors import BadArgumentError, BadDataError, MissingDependencyError, close_match, near_match, quoted
from zoo.files.writing import new_file

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
#: Other names of the splits that manifests use.
SAME_SPLIT = {"dev": "val", "valid": "val", "validation": "val", "training": "train"}
_ROLES = ("image", "text", "label", "labels", "judged", "split")


@dataclass(frozen=True)
class Row:
    """One example.

    Args:
        line: the physical line in the file that it begins at; in Parquet 2 for the first row.
        image: path of the image, or None.
        text: the text, or None.
        labels: label names; a manifest separates several by `|`.
        split: the split that the manifest names, or None.
        judged: the labels that somebody looked for in this row. A label that is not among them is unknown. None: the
            manifest has no such column, and all labels were looked for.
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
    lines, columns = _read(path), columns or {}
    records = list(lines.values())
    names = {role: columns.get(role, role) for role in _ROLES}
    for word in sorted(set(columns) - set(names)):
        raise BadArgumentError(f'columns: no role "{word}"' + close_match(word, names))
    need_columns(path, records, columns.values())
    for column in records[0]:
        if column not in names.values() and column.casefold() in set(names) - set(columns):
            raise BadDataError(f'{path}: the column "{column}" is not read: call it "{column.casefold()}"')
    if names["image"] not in records[0] and names["text"] not in records[0]:
        parts = {part.strip() for part in re.split(r"[;|\t,]", next(iter(records[0])))} & set(names.values())
        hint = "; fields are separated by commas, in .tsv by tabs" if parts else near_match("image", records[0])
        raise BadDataError(f'{path}: has neither a column "image" nor "text"{hint}')
    root = image_root or path.parent
    return [_row(path, line, record, names, root) for line, record in lines.items()]


def read_records(path: Path) -> list[dict[str, str]]:
    """All columns of a manifest as the file has them. Raises as above."""
    return list(_read(path).values())


def need_columns(path: Path, records: Sequence[Mapping[str, str]], names: Iterable[str]) -> None:
    """Raise BadArgumentError for the first column that the records of a file do not have."""
    for name in names:
        if name not in records[0]:
            raise BadArgumentError(f'{path}: no column "{name}"' + near_match(name, records[0]))


def need_label(rows: Sequence[Row], label: str, data: Path | str) -> None:
    """Raise BadDataError, with the labels that there are, if rows have labels and none has this one.

    A label that somebody looked for (`judged`) and did not find is no mistake.
    """
    counts = Counter(name for row in rows for name in row.labels)
    other = next((name for name in counts if name != label and _alike(name) == _alike(label)), None)
    if label in counts and other is not None:
        raise BadDataError(
            f"{data}: the label {quoted(label)} ({counts[label]} rows) also stands as {quoted(other)} "
            f"({counts[other]} rows), which would count as another one: write it in one way"
        )
    if not counts or label in counts or any(label in (row.judged or ()) for row in rows):
        return
    names = ", ".join(f"{quoted(name)} ({count} rows)" for name, count in counts.most_common(8))
    more = ", ..." if len(counts) > 8 else ""
    raise BadDataError(f"{data}: no item is unsafe by the label {quoted(label)}; the labels are {names}{more}")


def _alike(label: str) -> str:
    """The same for spellings of one label: `Dogs` and `dogs`; `1`, `1.0` and `True`; with or without what is unseen."""
    shown = "".join(c for c in unicodedata.normalize("NFKC", label) if unicodedata.category(c) not in ("Cc", "Cf"))
    plain = {"true": "1", "false": "0"}.get(shown.casefold(), shown.casefold())
    try:
        return f"{float(plain):g}"
    except ValueError:
        return plain


def write_records(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a manifest of CSV, and create its folder if it does not exist.

    Raises BadArgumentError if another file lies there, which does not begin with these columns.
    """
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as stream:
            if stream.readline().strip() != ",".join(columns).encode():
                raise BadArgumentError(
                    f"{path}: exists, and is not what this writes ({','.join(columns)}); name another, or remove it"
                )
    write_rows(path, columns, rows)


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a file of CSV or, by its ending, of Parquet, in which columns that begin with "score" hold numbers."""
    if path.suffix.lower() != ".parquet":
        with new_file(path, newline="") as table:
            csv.writer(table).writerows(itertools.chain([columns], rows))
        return
    pyarrow, left = pyarrow_for(path), iter(rows)
    kinds = [(name, pyarrow.float64() if name.startswith("score") else pyarrow.string()) for name in columns]
    with new_file(path, "wb") as stream, pyarrow.parquet.ParquetWriter(stream, pyarrow.schema(kinds)) as writer:
        while part := list(itertools.islice(left, 10_000)):
            fields = zip(kinds, zip(*part, strict=True), strict=True)
            arrays = [pyarrow.array(values, kind) for (_, kind), values in fields]
            writer.write_batch(pyarrow.record_batch(arrays, schema=writer.schema))


def _row(path: Path, line: int, record: Mapping[str, str], names: Mapping[str, str], root: Path) -> Row:
    for role, name in names.items():
        if isinstance(record.get(name), _Nested):
            raise BadDataError(f"{path}, line {line}: the {role} is {record[name]}, neither text nor a number")
    image, text = record.get(names["image"]) or None, record.get(names["text"]) or None
    split = (record.get(names["split"]) or "").strip().lower()
    split = SAME_SPLIT.get(split, split)
    if split and split not in SPLITS:
        raise BadDataError(f"{path}, line {line}: split {quoted(split)}" + close_match(split, SPLITS))
    labels, judged = _names(record.get(names["labels"]) or record.get(names["label"]) or ""), None
    if record.get(names["judged"]) is not None:
        judged = _names(record[names["judged"]])
        odd = next((label for label in labels if label not in judged), None)
        if odd is not None:
            others = ", ".join(map(quoted, judged))
            raise BadDataError(
                f"{path}, line {line}: has the label {quoted(odd)}, which is not among those judged: {others or 'none'}"
            )
    place = root / image if image else None
    return Row(line, place, text, labels, split or None, judged, names["labels"] in record, record)


def _names(field: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in field.split("|") if name.strip())


def _read(path: Path) -> dict[int, dict[str, str]]:
    """The records of a file by the physical lines that they begin at."""
    if not path.is_file():
        raise BadArgumentError(f"{path}: no such manifest file")
    kind = path.suffix.lower()
    if kind == ".parquet":
        records = dict(enumerate(_read_parquet(path), start=2))
    else:
        try:
            with path.open(newline="", encoding="utf-8-sig") as stream:
                lines = stream.readlines()
        except UnicodeDecodeError as problem:
            raise BadDataError(f"{path}: not readable as UTF-8 text: {problem}") from None
        records = dict(_json_lines(path, lines) if kind in (".jsonl", ".ndjson") else _table(path, lines))
    if not records:
        raise BadDataError(f"{path}: has no rows")
    return records


def _table(path: Path, lines: Sequence[str]) -> dict[int, dict[str, str]]:
    """The rows of CSV or TSV. Raises BadDataError with the physical line for a row that could be read in two ways."""
    mark = "\t" if path.suffix.lower() == ".tsv" else ","
    advice = "write a field with a comma, a quote or a line break in double quotes, and a quote in it twice"
    reader = csv.reader(lines, delimiter=mark, strict=True)
    nul = next((number for number, line in enumerate(lines, start=1) if "\0" in line), None)
    if nul is not None:
        raise BadDataError(f"{path}, line {nul}: holds a NUL; a manifest is UTF-8 text")
    header: list[str] = []
    rows: dict[int, dict[str, str]] = {}
    spans: dict[int, int] = {}
    start = 1
    try:
        for fields in reader:
            first, start = start, reader.line_num + 1
            if not header:
                header = fields
                _check_header(path, header)
            elif fields:
                if fields == header:
                    raise BadDataError(
                        f"{path}, line {first}: the header once more, as of files that were put together"
                    )
                if len(fields) != len(header):
                    raise BadDataError(
                        f"{path}, line {first}: {len(fields)} fields, but the header has {len(header)}; {advice}"
                    )
                rows[first] = dict(zip(header, fields, strict=True))
                if reader.line_num > first:
                    spans[first] = reader.line_num
    except csv.Error as problem:
        raise BadDataError(f"{path}, line {start}: not readable as CSV: {problem}; {advice}") from None
    inside = [
        (first, last, name, value)
        for first, last in spans.items()
        for name, value in _within(lines[first - 1].split(mark), lines[last - 1].split(mark), header)
    ]
    known = {name: {row[name] for line, row in rows.items() if line not in spans} for _, _, name, _ in inside}
    for first, last, name, value in inside:
        if value and (value in known[name] or _same_kind(value, rows[first][name])):
            raise BadDataError(
                f"{path}, line {first}: a quote that opens here is closed in line {last}, and what it encloses looks "
                f"like rows; {advice}"
            )
    return rows


def _within(head: list[str], tail: list[str], header: list[str]) -> Iterator[tuple[str, str]]:
    """By column, what a text of several lines encloses that would be values if its quotes were none.

    `head` and `tail` are its first and last line, cut at each comma; after that of a row nobody writes a blank.
    """
    for fields, step in ((head, -1), (tail, 1)):
        if len(fields) == len(header) and not any(field.startswith(" ") for field in fields):
            pairs = list(zip(header, (field.rstrip("\r\n") for field in fields), strict=True))[::step]
            yield from itertools.takewhile(lambda pair: '"' not in pair[1], pairs)


def _same_kind(value: str, other: str) -> bool:
    """Whether both are whole numbers, or names of files of one kind."""
    numbers, suffix = value.isdecimal() and other.isdecimal(), Path(value).suffix
    return numbers or (suffix != "" and suffix == Path(other).suffix)


def _check_header(path: Path, names: Sequence[str]) -> None:
    for place, name in enumerate(names, start=1):
        if name != name.strip() or not name.isprintable() or not name:
            raise BadDataError(
                f'{path}, line 1: column {place} is called "{ascii(name)[1:-1][:40]}"; a name has no blank at its '
                "ends, and no invisible characters"
            )
        if name in names[: place - 1]:
            raise BadDataError(f"{path}, line 1: two columns are called {quoted(name)}")


def _json_lines(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The objects of JSON lines; a column that a line does not have is empty there."""
    objects = {}
    for number, line in enumerate(lines, start=1):
        try:
            value = schema.load_json(line) if line.strip() else {}
        except ValueError as problem:
            raise BadDataError(f"{path}, line {number}: not readable as JSON: {problem}") from None
        if not isinstance(value, dict):
            raise BadDataError(f"{path}, line {number}: must be an object of columns, got {type(value).__name__}")
        if value:
            objects[number] = value
    columns = list(dict.fromkeys(name for value in objects.values() for name in value))
    _check_header(path, columns)
    for number, value in objects.items():
        yield number, {name: _flat(value.get(name)) for name in columns}


def pyarrow_for(path: Path) -> Any:
    """The module that reads and writes Parquet. Raises MissingDependencyError, naming the file, without it."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError(f"{path}: Parquet takes pip install 'safety-zoo[parquet]'") from None
    return pyarrow


def _read_parquet(path: Path) -> list[dict[str, str]]:
    pyarrow = pyarrow_for(path)
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.lib.ArrowException) as problem:
        raise BadDataError(f"{path}: not readable as Parquet: {problem}") from None
    _check_header(path, table.column_names)
    return [{key: _flat(value) for key, value in record.items()} for record in table.to_pylist()]


class _Nested(str):
    """What a field holds that is neither text, a number nor a list of these: no role can use it."""


def _flat(value: object) -> str:
    if isinstance(value, list):
        parts = [_flat(part) for part in value]
        return next((part for part in parts if isinstance(part, _Nested)), "|".join(filter(None, parts)))
    if value is None or value != value:  # NaN, which pandas keeps for what is missing
        return ""
    return _Nested(type(value).__name__) if isinstance(value, (dict, bytes)) else str(value)
