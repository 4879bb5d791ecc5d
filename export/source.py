"""The source of an export: a release by any of its names, and the hash of its weights that all its engines share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zoo.models.base import ZooModel, weights_sha256
from zoo.registry import create_model, default_policy, model_entry
from zoo.release.store import Release, load_model, load_release


def load(source: str | Path, untrained: dict[str, Any] | None = None) -> Release:
    """The release of a source; with `untrained`, a registered architecture with seeded random weights."""
    if untrained is None:
        return load_release(source)
    model = load_alone(source, untrained)
    return Release(model, model.card, default_policy(model_entry(str(source))))


def load_alone(source: str | Path, untrained: dict[str, Any] | None = None) -> ZooModel:
    """The model of `load` without its policy."""
    if untrained is None:
        return load_model(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model(str(source), **untrained)


def weights_hash(model: ZooModel) -> str:
    """The sha256 of a model's weights, by name, and of its tokenizer: what all engines of a bundle have in common."""
    return weights_sha256(model, sorted(model.state_dict().items()))
