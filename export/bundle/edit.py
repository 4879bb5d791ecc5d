"""Change a bundle as a whole or not at all: work goes on in a copy beside it, which takes its place at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def edited(folder: Path) -> Iterator[Path]:
    """Yield a copy of a directory that replaces it on success and vanishes on failure.

    Files are linked, not copied, so a file that is to change must be removed or replaced, never written in place.
    """
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = work.with_name(work.name + "-old")
    try:
        work.chmod(folder.stat().st_mode & 0o777)
        for path in folder.iterdir():
            try:
                os.link(path, work / path.name)
            except OSError:  # a file system without hard links
                shutil.copy2(path, work / path.name)
        yield work
        folder.rename(old)
        try:
            work.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
