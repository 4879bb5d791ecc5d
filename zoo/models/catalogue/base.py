"""How the models of the zoo are registered, and what most of their cards say alike. No torch here."""

from __future__ import annotations

from typing import Any

from zoo.contract.card import ModelCard
from zoo.registry import register_model

#: A classifier of images, made here.
_USUAL: dict[str, Any] = {
    "task": "classification",
    "image": None,
    "text": None,
    "labels": (),
    "requires": ("image",),
    "licence": "Apache-2.0",
    "source": "safety-zoo",
}


def register(name: str, *, builder: str, policy: str, pretrained: str | None = None, **card: Any) -> None:
    """Register a model by its builder and the fields of its card, as far as they are not the usual ones."""
    register_model(ModelCard(name=name, **_USUAL | card), builder=builder, policy=policy, pretrained=pretrained)
