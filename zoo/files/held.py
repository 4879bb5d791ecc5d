"""What a release or bundle is made of: its files, opened once and compared with their hashes. No torch."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

from zoo.errors import TamperedFileError
from zoo.files.writing import MANIFEST, write_file


def is_bundle(source: str | Path) -> bool:
    """Whether this is the folder of an exported bundle, rather than a release or a name: it has a manifest."""
    return source != "" and (Path(source) / MANIFEST).is_file()  # an empty path is the current folder


def sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file in a folder, by name."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}


class HeldFiles:
    """Files of one folder, each opened once: the bytes that were hashed are used, even if the file is replaced since.

    If some files were given with their sha256, no other file is read. `signed` says that a key vouches for the hashes:
    then nothing that was kept in a cache is used with these files.
    Raises TamperedFileError for a missing file, and for one that does not match its sha256 or changes afterwards.
    """

    def __init__(self, folder: Path, wanted: Mapping[str, str] | None = None) -> None:
        self.folder, self.signed = folder, False
        self._turn = threading.Lock()  # a stream has one position
        self._checked: dict[str, str] = {}
        self._streams: dict[str, FileIO] = {}
        self._states: dict[str, tuple[int, int, int]] = {}
        self._open_files = ExitStack()
        weakref.finalize(self, self._open_files.close)
        for name, digest in (wanted or {}).items():
            self.check(name, digest)

    def check(self, name: str, wanted: str) -> None:
        """Compare a file with its sha256."""
        self._checked[name] = wanted
        if Path(name).name != name:
            raise TamperedFileError(f"{name}: a hash may only name a file of {self.folder} itself")
        actual = self.sha256(name)
        if actual != wanted:
            raise TamperedFileError(
                f"{self.folder / name}: sha256 is {actual[:16]}..., expected {wanted[:16]}...; it was changed"
            )

    def sha256(self, name: str) -> str:
        """The sha256 of a file, in hex."""
        stream = self._open(name)
        with self._turn:
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @contextmanager
    def content(self, name: str) -> Iterator[mmap.mmap | bytearray]:
        """The content of a file, mapped rather than read. Writing into it changes this copy, never the file."""
        stream = self._open(name)
        size = os.fstat(stream.fileno()).st_size
        yield mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) if size else bytearray()
        self._refuse_change(name)

    @contextmanager
    def place(self, name: str) -> Iterator[str | bytes]:
        """A path that leads to the open file, not to its name; the bytes of the file where the system has no such path.

        For libraries that read a file by themselves. What they make of it is used after the block.
        """
        path = f"/proc/self/fd/{self._open(name).fileno()}"
        yield path if os.path.exists(path) else self.read(name)
        self._refuse_change(name)

    def loaded(self, name: str) -> bytearray:
        """The content of a file in memory of its own: what happens to the file while it is used changes nothing."""
        stream = self._open(name)
        content = bytearray(os.fstat(stream.fileno()).st_size)
        left = memoryview(content)
        with self._turn:
            stream.seek(0)
            while count := stream.readinto(left):
                left = left[count:]
        self._refuse_change(name)
        return content

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        with self.content(name) as content:
            return bytes(content)

    def copy(self, name: str, target: Path) -> None:
        """Write the content of a file into another one."""
        with self.content(name) as content:
            write_file(target, memoryview(content))

    def has(self, name: str) -> bool:
        """Whether the folder has this file, and it may be read."""
        return name in self._checked or (not self._checked and (self.folder / name).is_file())

    def _open(self, name: str) -> FileIO:
        if name not in self._streams:
            path = self.folder / name
            if self._checked and name not in self._checked:
                raise TamperedFileError(f"{path}: not used, for it is not listed with its hash")
            if not path.is_file():
                raise TamperedFileError(f"{path}: missing, although it is listed with its hash")
            self._streams[name] = self._open_files.enter_context(FileIO(path))
            self._states[name] = self._state(name)
        return self._streams[name]

    def _state(self, name: str) -> tuple[int, int, int]:
        state = os.fstat(self._streams[name].fileno())
        return state.st_size, state.st_mtime_ns, state.st_ctime_ns

    def _refuse_change(self, name: str) -> None:
        state, before = self._state(name), self._states[name]
        # A new link or name changes the third time; so does who sets the second one back after writing.
        written = state[:2] != before[:2] or (
            state != before and name in self._checked and self.sha256(name) != self._checked[name]
        )
        if written:
            raise TamperedFileError(f"{self.folder / name}: was written to after it was checked; load it again")
        self._states[name] = state
