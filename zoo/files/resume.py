"""Lines that are kept as they come, so that a run that was cut goes on where it ended. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from zoo.errors import BadArgumentError, quoted
from zoo.files.writing import lock

#: What says of which run the parts in a folder are.
RUN = "run.json"


class KeptLines:
    """Lines beside a file that is not yet whole. `done` is how many there are."""

    def __init__(self, path: Path, stream: IO[bytes], start: int, done: int) -> None:
        self.path, self._stream, self._start, self.done = path, stream, start, done

    def add(self, lines: Sequence[str]) -> None:
        """Keep further lines, which have no line breaks in them; a kill from now on leaves them."""
        self._stream.write("".join(f"{line}\n" for line in lines).encode())
        self._stream.flush()
        self.done += len(lines)

    def __iter__(self) -> Iterator[str]:
        """All lines, those of earlier runs first, one at a time."""
        with self.path.open("rb") as stream:
            stream.seek(self._start)
            for line in stream:
                yield line.decode().rstrip("\n")


@contextmanager
def kept_lines(out: Path, setting: Mapping[str, object]) -> Iterator[KeptLines]:
    """The lines of `OUT.part` that a run with the same setting left, to add to; removed on success, else kept.

    Raises BadArgumentError where the file is of a run with another setting, or one that is going on.
    """
    path = out.with_name(out.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        if not lock(stream.fileno()):
            raise BadArgumentError(f"{path}: another run is writing this file")
        stream.seek(0)
        first = stream.readline()
        if first.endswith(b"\n"):
            _refuse_other(path, first, setting)
        else:  # nothing, or the beginning of a line that a kill cut
            stream.truncate(0)
            first = json.dumps(setting).encode() + b"\n"
            stream.write(first)
        done, end = 0, len(first)
        for line in stream:
            if line.endswith(b"\n"):
                done, end = done + 1, end + len(line)
        stream.truncate(end)
        yield KeptLines(path, stream, len(first), done)
    os.unlink(path)


@contextmanager
def kept_parts(folder: Path, setting: Mapping[str, object], pattern: str, *, overwrite: bool) -> Iterator[None]:
    """Hold a folder whose files of a pattern are the parts of one run; `run.json` in it says of which, and stays.

    `overwrite` removes those of a run before.

    Raises BadArgumentError where they are of a run with another setting, or one that is going on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN
    with path.open("ab+") as stream:
        if not lock(stream.fileno()):
            raise BadArgumentError(f"{path}: another run is writing into this folder")
        if overwrite:
            stream.truncate(0)
            for old in folder.glob(pattern):
                old.unlink()
        stream.seek(0)
        if (first := stream.readline()).endswith(b"\n"):
            _refuse_other(path, first, setting)
        elif others := sorted(one.name for one in folder.iterdir() if one != path):
            raise BadArgumentError(f"{folder}: holds {others[0]}, and no {RUN} says what it is; name another folder")
        else:
            stream.truncate(0)
            stream.write(json.dumps(setting).encode() + b"\n")
            stream.flush()
        yield


def _refuse_other(path: Path, first: bytes, setting: Mapping[str, object]) -> None:
    try:
        found = json.loads(first)
        other = [key for key in setting if found[key] != setting[key]]
    except (ValueError, KeyError, TypeError):
        raise BadArgumentError(f"{path}: is not what a run leaves; move it away") from None
    if other:
        key = other[0]
        was, now = (quoted(str(values[key])) for values in (found, setting))
        raise BadArgumentError(
            f"{path}: was left by a run with another {key} ({was}, now {now}); "
            "name another one, or remove it to judge all again"
        )
