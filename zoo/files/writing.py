"""Files and directories that are written whole or not at all. No torch."""

from __future__ import annotations

import ctypes
import errno
import fnmatch
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

from zoo.errors import BadArgumentError, named_as

try:
    import fcntl
except ImportError:  # Windows: what a killed run left is not cleaned there
    fcntl = None  # type: ignore[assignment]

#: What a bundle has and a release does not: the file by which all others are judged.
MANIFEST = "manifest.json"
#: The other files of a release and of a bundle; a bundle has no weights, and engines.
WEIGHTS, CARD, POLICY, TOKENIZER = "model.safetensors", "card.json", "policy.yaml", "tokenizer.json"

_PARTIAL, _OLD = ".zoo-partial", ".zoo-old"


@contextmanager
def new_file(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` on success and vanishes on failure; `options` are those of `open`.

    Text is UTF-8. The folder is made if it does not exist. A link keeps pointing to the file that is replaced. A
    device, a pipe and an open descriptor (`/dev/stdout`) are written directly.
    """
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    if (number := _descriptor(path)) is not None:
        sys.stdout.flush()  # what was printed before comes first
        with os.fdopen(os.dup(number), mode, **options) as stream:  # its position is kept
            yield stream
        return
    if path.exists() and not path.is_file():
        with path.open(mode, **options) as stream:  # /dev/null, or a folder, whose error says so
            yield stream
        return
    target = _resolved(path)
    if target.exists() and not os.access(target, os.W_OK):  # a rename would replace it all the same
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    _clean(target)
    partial = _beside(target, _PARTIAL)
    try:
        with _named(path, partial), partial.open(mode.replace("w", "x"), **options) as stream:
            lock(stream.fileno())
            if target.exists():
                shutil.copymode(target, partial)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            partial.replace(target)
        _sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def refuse_input(out: Path, *read: str | Path) -> None:
    """Raise BadArgumentError if what is to be written is one of those that are read, which would be lost."""
    for path in map(Path, read):
        if path.exists() and out.exists() and path.samefile(out):
            raise BadArgumentError(f"{out}: is what this reads, and the result would replace it; name another `out`")


def write_file(path: Path, content: str | bytes | memoryview) -> None:
    """Replace a file by one of this content (text as UTF-8), whole or not at all."""
    with new_file(path, "w" if isinstance(content, str) else "wb") as stream:
        stream.write(content)


@contextmanager
def new_directory(out: Path, *, overwrite: bool = False, ours: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` on success and vanishes on failure.

    With `overwrite` it replaces a folder of which every file matches one of the patterns `ours`, the first of which
    must be there: it is the mark of what this command writes. Raises BadArgumentError when `out` is a file, is the
    current folder or one around it, is not empty without `overwrite`, or holds anything else, before or at the end.
    """
    target = _resolved(out)
    if target.exists() and not target.is_dir():
        raise BadArgumentError(f"{out}: is a file, expected a directory to write")
    _refuse_occupied(out, target)
    _clean(target)

    def check() -> None:
        if target.is_dir() and any(target.iterdir()):
            if not overwrite:
                raise BadArgumentError(f"{out}: exists and is not empty; name another folder, or overwrite it")
            _refuse_foreign(out, ours)

    check()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(out, target, check) as folder:
        yield folder


@contextmanager
def edited_directory(folder: Path) -> Iterator[Path]:
    """Yield a copy of a directory that replaces it on success and vanishes on failure.

    Files are linked, not copied: replace a file that is to change (`write_file`), never write into it. The current
    folder, one around it and a mounted one stay where they are: their files are replaced one by one at the end, the
    manifest last. A kill in between then leaves a bundle that is refused. Raises BadArgumentError for the home folder,
    and when another process changed the folder meanwhile.
    """
    target = folder.resolve()
    _refuse_home(folder, target)
    in_place = _is_current(target) or os.path.ismount(target)
    before: dict[Path, tuple[int, int, int]] = {}

    def check() -> None:
        if _states(target) != before:
            raise BadArgumentError(f"{folder}: was changed by another process meanwhile; run this again")

    with _moving_into(folder, target, check) if in_place else _replacing(folder, target, check) as work:
        before = _states(target)
        _link_all(target, work)
        yield work


def _states(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """What tells that a file of a folder was replaced or written to; what is being written in it does not count."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    states = {path: path.stat() for path in files if not _is_partial(path.relative_to(folder).parts[0])}
    return {path: (state.st_ino, state.st_size, state.st_mtime_ns) for path, state in states.items()}


@contextmanager
def native_writer(path: Path) -> Iterator[None]:
    """Turn what a writer in C++ or Rust raises (on a full disk, say) into an OSError that names its file."""
    try:
        yield
    except OSError:
        raise
    except Exception as problem:
        raise OSError(errno.EIO, f"cannot be written ({problem})", str(path)) from problem


def set_aside(folder: Path, pattern: str) -> Path:
    """Move what matches a pattern into the first free folder of `FOLDER-1`, `FOLDER-2`, ..., which is returned.

    Everything else in the folder stays where it is: a recipe may stand beside its checkpoints.
    """
    for number in count(1):
        aside = folder.with_name(f"{folder.name}-{number}")
        with suppress(FileExistsError):
            aside.mkdir()
            break
    for path in sorted(folder.glob(pattern)):
        path.rename(aside / path.name)
    return aside


def told(path: Path) -> str:
    """A path for a log: as it is called from the current folder, if it lies there."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _link_all(folder: Path, work: Path) -> None:
    """Put everything of a folder into another one, which may lie in it."""
    unfinished = shutil.ignore_patterns(f".*{_PARTIAL}")
    shutil.copytree(folder, work, copy_function=_link, dirs_exist_ok=True, ignore=unfinished)


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(_PARTIAL)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # a file system without hard links, or a link to another one
        shutil.copy2(source, target)


def _resolved(path: Path) -> Path:
    if path.parts[:1] == ("~",):
        raise BadArgumentError(f"{path}: the shell left ~ as it is; write the home folder in full")
    return path.resolve()


def _descriptor(path: Path) -> int | None:
    """The number of an open file that `/dev/stdout`, `/dev/fd/1` and such stand for."""
    names = {"/dev/stdin": "0", "/dev/stdout": "1", "/dev/stderr": "2"}
    text = os.path.abspath(path)
    folder, _, number = text.rpartition("/")
    number = names.get(text, number if folder in ("/dev/fd", "/proc/self/fd") else "")
    return int(number) if number.isdecimal() and os.name == "posix" else None


def _is_current(target: Path) -> bool:
    return Path.cwd().is_relative_to(target)


def _refuse_occupied(out: Path, target: Path) -> None:
    if _is_current(target):
        raise BadArgumentError(
            f"{out}: the current folder cannot be replaced or moved; name one inside it, or leave it"
        )
    _refuse_home(out, target)
    if os.path.ismount(target):
        raise BadArgumentError(f"{out}: a mounted folder cannot be replaced or moved; name a new one inside it")


def _refuse_home(out: Path, target: Path) -> None:
    if Path(os.path.expanduser("~")).resolve().is_relative_to(target):
        raise BadArgumentError(f"{out}: the home folder cannot be replaced or moved; name a new one inside it")


def _refuse_foreign(out: Path, ours: tuple[str, ...]) -> None:
    files = sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir()
    )
    foreign = [name for name in files if not any(_matches(name, pattern) for pattern in ours)]
    if foreign:
        raise BadArgumentError(
            f"{out}: not overwritten, because this command did not write {foreign[0]}"
            f"{f' and {len(foreign) - 1} more files' if foreign[1:] else ''} in it; name another folder"
        )
    if not ours or not (out / ours[0]).is_file():
        mark = ours[0] if ours else "file of this command"
        raise BadArgumentError(f"{out}: not overwritten, because it holds no {mark}")


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Let an error name what was to be written, not the temporary file or folder that was to take its place."""
    try:
        with named_as(path, temporary):
            yield
    except OSError as problem:
        if problem.errno is not None and problem.filename is None:  # a full disk
            problem.filename = str(path)
        elif isinstance(problem.filename, str) and problem.filename.startswith(str(temporary)):
            problem.filename = f"{path}{problem.filename.removeprefix(str(temporary))}"
        raise


@contextmanager
def _replacing(out: Path, target: Path, check: Callable[[], None]) -> Iterator[Path]:
    """Yield a new folder beside `target` that takes its place in one step, after a last `check` of what is there.

    What was there is deleted last.
    """
    with _new_folder(out, target) as work:
        yield work
        _sync_all(work)
        check()
        if target.exists():
            _exchange(work, target)
        else:
            work.rename(target)
        _sync(target.parent)


@contextmanager
def _moving_into(out: Path, target: Path, check: Callable[[], None]) -> Iterator[Path]:
    """Yield a new folder in `target` whose files take the place of those there, one by one, after a last `check`.

    The manifest, by which all others are judged, comes last.
    """
    with _new_folder(out, target / target.name) as work:
        yield work
        _sync_all(work)
        check()
        new = sorted((path for path in work.rglob("*") if path.is_file()), key=lambda path: path.name == MANIFEST)
        kept = {target / path.relative_to(work) for path in new}
        for path in new:
            own = target / path.relative_to(work)
            own.parent.mkdir(parents=True, exist_ok=True)
            if not (own.is_file() and own.samefile(path)):
                path.replace(own)
        for own in _states(target).keys() - kept:
            own.unlink()
        _sync_all(target)


@contextmanager
def _new_folder(out: Path, target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, which vanishes at the end if it still lies there."""
    _clean(target)
    work = _beside(target, _PARTIAL)
    held = None
    try:
        with _named(out, work):
            work.mkdir()
            held = os.open(work, os.O_RDONLY) if fcntl else None
            if held is not None:
                lock(held)
            if target.exists():
                shutil.copymode(target, work)
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if held is not None:
            os.close(held)


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories: a kill at any moment leaves one of the two, whole, at the place of `old`."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform in ("linux", "darwin") else None
    source, target = os.fsencode(new), os.fsencode(old)
    with suppress(AttributeError):  # a C library without the call
        if sys.platform == "linux" and libc and libc.renameat2(-100, source, -100, target, 2) == 0:
            return
        if sys.platform == "darwin" and libc and libc.renamex_np(source, target, 2) == 0:
            return
        if libc and ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    aside = _beside(old, _OLD)  # `_clean` puts it back if the run is killed before the next line
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f".{target.name[:200]}-{secrets.token_hex(4)}{ending}")


def _clean(target: Path) -> None:
    """Remove what killed runs left of this file or folder. A running one holds a lock on its own."""
    if fcntl is None or not target.parent.is_dir():
        return
    for path in target.parent.glob(f".{glob.escape(target.name[:200])}-????????.*"):
        if path.suffix == _OLD and not target.exists():
            path.rename(target)
        elif path.suffix in (_PARTIAL, _OLD):
            with suppress(OSError):  # held by a running process, or removed by another one
                held = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                finally:
                    os.close(held)


def lock(descriptor: int) -> bool:
    """Lock an open file for this process; False where another one has it. A file system without locks has no others."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return True


def _sync_all(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    """Bring a file or the entries of a folder to the disk, as far as the system offers it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as problem:  # Windows opens no folder
        if problem.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
