"""Several corpora of texts, each with its own notion of unsafe, as one manifest of many categories. No torch."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.data.manifest import Split, need_columns, read_records, write_records
from zoo.data.splits import hashed_splits, joined, near_texts
from zoo.errors import BadDataError, BadInputError, close_match
from zoo.files.writing import refuse_input
from zoo.inputs.text import clean

_LINK, _USER = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE), re.compile(r"@\w+")


@dataclass(frozen=True, config=schema.STRICT)
class Mark:
    """How a source says that a row is of a category: by the `values` of a `column` that mean yes, or for `every` row.

    A category that a source does not mark was not looked for in its rows.
    """

    name: str
    column: str = ""
    values: tuple[str, ...] = ()
    every: Literal["positive", "negative"] | None = None

    def __post_init__(self) -> None:
        if bool(self.column) == bool(self.every) or bool(self.column) != bool(self.values):
            raise ValueError(f'category "{self.name}" takes either `column` with `values`, or `every`')
        if "|" in self.name or not self.name.strip():
            raise ValueError(f'a category may not be empty or hold "|", got "{self.name}"')


@dataclass(frozen=True, config=schema.STRICT)
class Source:
    """One file of texts, CSV or Parquet; it is named after its file unless `name` says otherwise."""

    file: str
    categories: tuple[Mark, ...]
    text: str = "text"
    name: str = ""

    def __post_init__(self) -> None:
        names = [mark.name for mark in self.categories]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{self.file}: must mark at least one category, and none twice, got {names}")
        if "|" in self.title:
            raise ValueError(f'a source may not hold "|" in its name, got "{self.title}"')

    @property
    def title(self) -> str:
        """Its name in the manifest."""
        return self.name or Path(self.file).stem


@dataclass(frozen=True, config=schema.STRICT)
class Corpora(schema.YamlData):
    """The sources of one manifest."""

    _where = "corpora"

    sources: tuple[Source, ...]
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        titles = [source.title for source in self.sources]
        if not titles or len(set(titles)) < len(titles):
            raise ValueError(f"there must be a source, and no two of one name, got {titles}")


@dataclass
class SourceReport:
    """The use of the rows of a source: each is kept, merged with one of the same text, or left out as unusable."""

    rows: int = 0
    merged: int = 0
    unusable: int = 0


@dataclass
class CorporaReport:
    """The content of the manifest. `positives` and `judged` are counts by (category, split).

    `contradictions` counts, for each category, texts that sources or rows label both ways: there it is unknown.
    """

    manifest: Path
    sources: dict[str, SourceReport]
    positives: dict[tuple[str, Split], int]
    judged: dict[tuple[str, Split], int]
    contradictions: dict[str, int]
    unlabelled: int
    near_duplicates: int


@dataclass
class _Merged:
    """All rows of one text: what each category was answered, and by which sources."""

    text: str
    answers: dict[str, set[bool]] = field(default_factory=dict)
    sources: dict[str, None] = field(default_factory=dict)

    @property
    def agreed(self) -> dict[str, bool]:
        """The answers of the categories that all rows answer alike."""
        return {name: next(iter(said)) for name, said in self.answers.items() if len(said) == 1}


def write_corpora(corpora: Corpora, root: Path, out: Path, seed: int = 0) -> CorporaReport:
    """Write a manifest (text, labels, judged, source, split) of all sources, whose files lie in `root`.

    Rows of the same text (as `normalised`) become one, which was judged for what any of them was. A category that they
    answer both ways is unknown in it, and a text without a judged category is left out. Splits are 80 %
    train, 10 % val and 10 % test by a seeded hash; near-duplicates (see `near_texts`) share one. Raises BadInputError
    for files, columns and values that do not exist.
    """
    refuse_input(out, *(root / source.file for source in corpora.sources))
    counts = {source.title: SourceReport() for source in corpora.sources}
    merged: dict[str, _Merged] = {}
    for source in corpora.sources:
        _merge(source, read_records(root / source.file), root / source.file, merged, counts[source.title])
    contradictions = Counter(n for one in merged.values() for n, said in one.answers.items() if len(said) > 1)
    known = {key: one for key, one in merged.items() if one.agreed}
    if not known:
        raise BadDataError(f"none of {sum(count.rows for count in counts.values())} rows has a usable text and a label")
    pairs = list(near_texts(list(known)))
    groups = joined(len(known), pairs)
    splits = hashed_splits(list(known), groups, seed, founders={*range(len(known))} - {later for later, _ in pairs})
    positives: Counter[tuple[str, Split]] = Counter()
    judged: Counter[tuple[str, Split]] = Counter()
    table = []
    for row, split in zip(known.values(), splits, strict=True):
        labels = [name for name, answer in row.agreed.items() if answer]
        judged.update((name, split) for name in row.agreed)
        positives.update((name, split) for name in labels)
        table.append((row.text, "|".join(labels), "|".join(row.agreed), "|".join(row.sources), split))
    write_records(out, ("text", "labels", "judged", "source", "split"), table)
    near, unlabelled = len(groups) - len(set(groups)), len(merged) - len(known)
    return CorporaReport(out, counts, dict(positives), dict(judged), dict(contradictions), unlabelled, near)


def normalised(text: str) -> str:
    """The text by which duplicates are known: cleaned, in one case, with links and names of users made alike."""
    plain = _USER.sub("@user", _LINK.sub("http", clean(text))).casefold()
    return " ".join(plain.split())


def _merge(
    source: Source, records: list[dict[str, str]], path: Path, merged: dict[str, _Merged], count: SourceReport
) -> None:
    """Add the rows of a source to those of equal text, and count what becomes of them."""
    need_columns(path, records, [source.text, *(mark.column for mark in source.categories if mark.column)])
    for mark in source.categories:
        said = {record[mark.column] for record in records} if mark.column else set(mark.values)
        for value in mark.values:
            if value not in said:
                raise BadDataError(
                    f'{path}: the column "{mark.column}" never says "{value}"' + close_match(value, said)
                )
    for record in records:
        count.rows += 1
        text = record[source.text] or ""
        try:
            key = normalised(text)
        except BadInputError:
            key = ""
        if not key:
            count.unusable += 1
            continue
        count.merged += key in merged
        one = merged.setdefault(key, _Merged(text))
        one.sources[source.title] = None
        for mark in source.categories:
            answer = record[mark.column] in mark.values if mark.column else mark.every == "positive"
            one.answers.setdefault(mark.name, set()).add(answer)
