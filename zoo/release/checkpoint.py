"""From a Lightning checkpoint to a release. Only tensors and plain data are read: a pickle is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from zoo.contract.card import ModelCard
from zoo.contract.policy import Policy
from zoo.errors import BadArgumentError, BadDataError
from zoo.files.held import is_bundle
from zoo.files.writing import CARD
from zoo.models.lora import merge_adapters
from zoo.registry import build
from zoo.release.store import write_release

#: The key of what the zoo adds to Lightning's checkpoints, all plain data: card, policy, tokenizer, and the options of
#: low-rank adapters if it has any.
CHECKPOINT_KEY = "safety_zoo"


def release_checkpoint(
    checkpoint: Path, out: Path, *, policy: Policy | None = None, overwrite: bool = False
) -> ModelCard:
    """Write the release of a checkpoint with its own policy, or another; returns the card.

    Low-rank adapters are merged: a release is plain weights. Raises BadInputError for a missing file, a pickle, or a
    checkpoint that the zoo did not write, MissingDependencyError for adapters without peft.
    """
    loaded = _read(checkpoint)
    stored = loaded.get(CHECKPOINT_KEY)
    if stored is None:
        raise BadDataError(f"{checkpoint}: carries no card, so safety-zoo did not write it")
    model = build(ModelCard.from_dict(stored["card"], f"{checkpoint}, card"))
    weights = {key.removeprefix("model."): v for key, v in loaded["state_dict"].items() if key.startswith("model.")}
    try:
        if stored.get("lora") is None:
            model.load_state_dict(weights)
        else:
            merge_adapters(model, stored["lora"], weights)
    except RuntimeError as problem:
        raise BadDataError(f"{checkpoint}: its weights do not fit {model.card.name}: {problem}") from None
    model.tokenizer_json = stored["tokenizer"]
    return write_release(
        model.eval(), policy or Policy.from_dict(stored["policy"], f"{checkpoint}, policy"), out, overwrite=overwrite
    )


def check_checkpoint(path: Path) -> None:
    """Raise BadDataError for a file that begins neither as a checkpoint (a ZIP) nor as a pickle, which it once was."""
    with path.open("rb") as stream:
        if not stream.read(4).startswith((b"PK\x03\x04", b"\x80")):
            raise BadDataError(f"{path}: is not a checkpoint, which `lightning fit` writes as .ckpt")


def _read(checkpoint: Path) -> dict[str, Any]:
    if checkpoint.is_dir():
        kind = "a bundle" if is_bundle(checkpoint) else "a release" if (checkpoint / CARD).is_file() else "a folder"
        raise BadArgumentError(f"{checkpoint}: is {kind}; give the checkpoint of a training, a file that ends in .ckpt")
    if not checkpoint.is_file():
        raise BadArgumentError(f"{checkpoint}: no such checkpoint file")
    check_checkpoint(checkpoint)
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BadDataError(
            f"{checkpoint}: is a pickle with more than tensors and plain data in it, which could run code; refused"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as problem:
        raise BadDataError(f"{checkpoint}: not readable as a checkpoint: {problem}") from None
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        raise BadDataError(f"{checkpoint}: is not a Lightning checkpoint (no state_dict)")
    return loaded
