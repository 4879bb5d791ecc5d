"""The public key that a user configures: with one, nothing unsigned is judged. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from zoo.errors import BadArgumentError, TamperedFileError

#: Names the PEM file of the public key that everything which is judged must be signed with.
PUBLIC_KEY = "SAFETY_ZOO_PUBLIC_KEY"


def configured_key(given: str | Path | None = None) -> Path | None:
    """The public key that is given, else the one that `SAFETY_ZOO_PUBLIC_KEY` names; None if neither is.

    Raises BadArgumentError when one of them is empty: whoever set it wants signatures checked.
    """
    named = os.environ.get(PUBLIC_KEY)
    for name, value in ((PUBLIC_KEY, named), ("`public_key`", given)):
        if value is not None and not str(value).strip().strip("."):  # an empty path reads "."
            raise BadArgumentError(f"{name} is set, but empty: name the PEM file of the key, or leave it out")
    chosen = named if given is None else given
    return None if chosen is None else Path(chosen)


def refuse_unsigned(what: object) -> None:
    """Raise TamperedFileError with a key configured: only a bundle is signed, and this is about to be judged by.

    Everything calls it that gives verdicts or figures by a release, a checkpoint or a model in memory.
    """
    if (key := configured_key()) is not None:
        raise TamperedFileError(
            f"{what}: not signed, and the key {key} is required to judge; only bundles are signed: `zoo export` and "
            "`zoo bundle sign`, or use a signed bundle"
        )
