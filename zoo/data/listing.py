"""What is to be judged: files, folders, patterns, lists of paths and manifests, as items in one order. No torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from zoo.data.manifest import read_manifest
from zoo.errors import BadArgumentError, BadDataError, quoted
from zoo.inputs.formats import PICTURE_ENDINGS, VIDEO_ENDINGS, is_media

_MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_LISTS = (".txt", ".lst")
_ENDINGS = PICTURE_ENDINGS | VIDEO_ENDINGS


@dataclass(frozen=True)
class Input:
    """An image or video, a text, or both together; `source` names its verdict, `row` says that a manifest has it."""

    image: str | None
    text: str | None
    source: str
    row: bool = False


@dataclass(frozen=True)
class Listing:
    """Items in order, and the files of folders that are not pictures or videos by their first bytes and their name."""

    items: tuple[Input, ...]
    passed_over: tuple[str, ...] = ()


def list_items(
    inputs: Sequence[str],
    lines: Iterable[str] = (),
    *,
    columns: Mapping[str, str] | None = None,
    image_root: Path | None = None,
) -> Listing:
    """The items that some words name, in the order of the words.

    A word is a picture or video; a folder, of which all in it is taken, in the order of the names; a pattern such as
    `photos/**/*.jpg` where no file is called so; a list of paths (.txt, .lst), one a line, relative to the current
    directory; a manifest (CSV, TSV, JSON lines, Parquet), read as `read_manifest` reads it with `columns` and
    `image_root`; or `-`, which stands for `lines` of paths. A file that does not exist is an item: its verdict says so.

    >>> list_items(["a.jpg", "-"], ["b.jpg"]).items[1]
    Input(image='b.jpg', text=None, source='b.jpg', row=False)

    Raises BadDataError for a folder without pictures, a pattern that nothing matches and an empty list, and what
    `read_manifest` raises.
    """
    items: list[Input] = []
    passed_over: list[str] = []
    for word in inputs:
        suffix = Path(word).suffix.lower()
        if word == "-":
            items += _listed(lines, "standard input")
        elif os.path.isdir(word):
            found, others = _walk(word)
            items += map(_file, found)
            passed_over += others
        elif suffix in _MANIFESTS:
            items += _rows(word, columns, image_root)
        elif suffix in _LISTS:
            items += _read_list(word)
        elif not os.path.lexists(word) and glob.has_magic(word):
            matches = sorted(path for path in glob.glob(word, recursive=True) if not os.path.isdir(path))
            if not matches:
                raise BadDataError(f"{word}: no file matches this pattern")
            items += map(_file, matches)
        else:
            items.append(_file(word))
    return Listing(tuple(items), tuple(passed_over))


def _file(path: str) -> Input:
    return Input(path, None, path)


def _rows(word: str, columns: Mapping[str, str] | None, image_root: Path | None) -> Iterator[Input]:
    for row in read_manifest(Path(word), image_root, columns):
        yield Input(None if row.image is None else str(row.image), row.text, f"{word} line {row.line}", row=True)


def _read_list(word: str) -> list[Input]:
    try:
        with open(word, encoding="utf-8-sig") as stream:
            return _listed(stream, word)
    except FileNotFoundError:
        raise BadArgumentError(f"{word}: no such list of paths") from None
    except UnicodeDecodeError as problem:
        raise BadDataError(f"{word}: a list of paths is UTF-8 text: {problem}") from None


def _listed(lines: Iterable[str], where: str) -> list[Input]:
    items: list[Input] = []
    for number, line in enumerate(lines, start=1):
        path = line.rstrip("\r\n")
        if "\0" in path:
            raise BadDataError(f"{where}, line {number}: holds a NUL; write one path a line")
        if os.path.isdir(path):
            raise BadDataError(f"{where}, line {number}: {quoted(path)} is a folder; name it as an input of its own")
        if path:
            items.append(_file(path))
    if not items:
        raise BadDataError(f"{where}: names no files")
    return items


def _walk(folder: str) -> tuple[list[str], list[str]]:
    """The pictures and videos of a folder and of those in it, and its other files. Linked folders are taken once."""

    def refuse(problem: OSError) -> NoReturn:
        raise BadDataError(f"{problem.filename}: cannot be listed: {problem.strerror}") from None

    found: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(files):
            path = os.path.join(place, name)
            (found if Path(name).suffix.lower() in _ENDINGS or is_media(path) else others).append(path)
    if not found:
        raise BadDataError(f"{folder}: holds no pictures or videos" + (f", but {len(others)} files" if others else ""))
    return found, others
