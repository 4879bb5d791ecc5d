"""The text banks that an engine answers by until others are fed: a file beside it. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Banks = Mapping[str, NDArray[np.float32]]
SUFFIX = ".npz"


def write_banks(engine: Path, banks: Banks) -> str:
    """Write the banks `[P, D]` of an engine by input name, beside its file; returns the name of theirs."""
    path = engine.with_suffix(SUFFIX)
    np.savez(path, allow_pickle=False, **banks)
    return path.name


def read_banks(engine: Path) -> dict[str, NDArray[np.float32]]:
    """The banks beside an engine's file; none where it has none."""
    path = engine.with_suffix(SUFFIX)
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
