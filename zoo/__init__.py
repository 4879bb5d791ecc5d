"""Safety Zoo: image and prompt safety models whose checkpoints deploy. Everything is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.contract.card import ModelCard as ModelCard
    from zoo.contract.policy import Policy as Policy
    from zoo.contract.verdict import Verdict as Verdict
    from zoo.guard.guard import Guard as Guard
    from zoo.registry import create_model as create_model
    from zoo.registry import list_models as list_models
    from zoo.registry import model_card as model_card
    from zoo.registry import register_model as register_model
    from zoo.release.panel import create_panel as create_panel
    from zoo.release.store import load_model as load_model
    from zoo.release.store import load_release as load_release
    from zoo.release.store import load_scorer as load_scorer

_PUBLIC = {
    "Guard": "zoo.guard.guard",
    "ModelCard": "zoo.contract.card",
    "Policy": "zoo.contract.policy",
    "Verdict": "zoo.contract.verdict",
    "create_model": "zoo.registry",
    "create_panel": "zoo.release.panel",
    "list_models": "zoo.registry",
    "load_model": "zoo.release.store",
    "load_release": "zoo.release.store",
    "load_scorer": "zoo.release.store",
    "model_card": "zoo.registry",
    "register_model": "zoo.registry",
}

__version__ = "0.1.0"
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module zoo has no attribute {name!r}; public are {', '.join(sorted(_PUBLIC))}")
    from zoo.errors import training_needed

    with training_needed():
        return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
