"""Directories that are written whole or not at all, and hashes that are checked on every load. No torch."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from zoo.errors import BadArgumentError, TamperedFileError

#: What a bundle has and a release does not.
MANIFEST = "manifest.json"


def is_bundle(source: str | Path) -> bool:
    """Whether this is the folder of an exported bundle, rather than a release or a name: it has a manifest."""
    return (Path(source) / MANIFEST).is_file()


def sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file in a folder, by name."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}


def check_hashes(folder: Path, files: Mapping[str, str]) -> None:
    """Compare files with their sha256. Raises TamperedFileError for a missing or changed one."""
    for name, wanted in files.items():
        path = folder / name
        if Path(name).name != name:
            raise TamperedFileError(f"{name}: a hash may only name a file of {folder} itself")
        if not path.is_file():
            raise TamperedFileError(f"{path}: missing, although it is listed with its hash")
        found = sha256(path)
        if found != wanted:
            raise TamperedFileError(f"{path}: sha256 is {found[:16]}..., expected {wanted[:16]}...; it was changed")


@contextmanager
def new_directory(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` on success and vanishes on failure.

    Raises BadInputError when `out` is a file, or is not empty and `overwrite` is false.
    """
    if out.exists() and not out.is_dir():
        raise BadArgumentError(f"{out}: is a file, expected a directory to write")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise BadArgumentError(f"{out}: exists and is not empty; give another --out, or --overwrite")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    folder.chmod(0o755)  # mkdtemp keeps others out, a release is for them too
    try:
        yield folder
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def hub_file(repository: str, name: str) -> Path:
    """One file of a Hub repository, or of a local directory of the same layout. Raises OSError when absent."""
    from huggingface_hub import hf_hub_download

    local = Path(repository) / name
    return local if local.is_file() else Path(hf_hub_download(repository, name))
