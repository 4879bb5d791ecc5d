"""Embedded phrases on disk, by the hash of the encoder and of the phrases: a policy is embedded once per tower."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from zoo.contract.policy import Policy
from zoo.files.writing import write_file
from zoo.keys import PUBLIC_KEY, configured_key

log = logging.getLogger("zoo.judging.banks")

Bank = NDArray[np.float32]
#: An array or a tensor of phrase embeddings.
Embedded = TypeVar("Embedded", bound=Any)


def policy_bank(policy: Policy, embed: Callable[[tuple[str, ...]], Embedded], encoder: str | None = None) -> Embedded:
    """The text bank `[P, D]` of a policy: its phrases embedded by `embed` to unit norm, over the policy's temperature.

    The one place where a policy becomes a text bank: for training, the guard, panels and the runtime. With `encoder`,
    which identifies text tower and tokenizer by their content, `embed` gives arrays, and they are kept on disk by
    encoder and phrases: a change of thresholds and actions embeds nothing. A cache that cannot be read or written
    costs time, never the answer. Raises BadPolicyError for a category without phrases.
    """
    bank: Any = embed(policy.phrases) if encoder is None else _cached(encoder, policy.phrases, embed)
    scaled: Embedded = bank / policy.temperature
    return scaled


def _cached(encoder: str, phrases: tuple[str, ...], embed: Callable[[tuple[str, ...]], Bank]) -> Bank:
    key = hashlib.sha256(json.dumps([encoder, phrases]).encode()).hexdigest()
    try:
        path = cache_folder() / "text_banks" / f"{key}.npy"
    except RuntimeError as problem:
        log.warning("the text bank cannot be kept (%s)", problem)
        return embed(phrases)
    bank = _read(path, key, len(phrases))
    if bank is None:
        bank = np.ascontiguousarray(embed(phrases), dtype=np.float32)
        _write(path, key, bank)
    return bank


def cache_folder() -> Path:
    """`SAFETY_ZOO_CACHE`, else `safety-zoo` in the user's cache folder (`XDG_CACHE_HOME`, `~/.cache`).

    Raises RuntimeError for a user without a home folder, and with a key configured: nothing that lies there is signed.
    """
    if configured_key() is not None:
        raise RuntimeError(f"{PUBLIC_KEY} is set, and nothing in a cache is signed")
    named = os.environ.get("SAFETY_ZOO_CACHE")
    folder = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "safety-zoo"
    return folder.expanduser()


def _read(path: Path, key: str, rows: int) -> Bank | None:
    """The bank in a file; None if it does not exist, or differs by a byte from what was written under this key."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as problem:
        log.warning("a kept text bank is not readable (%s); embedding its phrases again", problem.strerror)
        return None
    size = len(content) - hashlib.sha256().digest_size
    if size < 0 or content[size:] != _digest(key, content[:size]):
        log.warning("%s: damaged, or not a text bank of %d phrases; embedding them again", path.name, rows)
        return None
    bank: Bank = np.load(io.BytesIO(content[:size]), allow_pickle=False)
    return bank


def _write(path: Path, key: str, bank: Bank) -> None:
    np.save(stream := io.BytesIO(), bank)
    content = stream.getvalue()
    try:
        write_file(path, content + _digest(key, content))  # whole or not at all, also when two processes write it
    except OSError as problem:
        log.warning("the text bank cannot be kept (%s)", problem.strerror)


def _digest(key: str, content: bytes) -> bytes:
    """What ends the file of a bank. numpy reads no further than the numbers."""
    return hashlib.sha256(key.encode() + content).digest()
