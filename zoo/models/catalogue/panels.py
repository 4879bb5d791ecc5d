"""The panels that the zoo ships, as data: SafeCLIP and every published head on one tower, by size. No torch here."""

from __future__ import annotations

import zoo.models.catalogue.heads
import zoo.models.catalogue.safeclip  # noqa: F401  panels are made of the models that these two register
from zoo.contract.panel import panel_card
from zoo.models.catalogue.clip_sizes import CLIP_SIZES
from zoo.registry import RANDOM, list_models, model_card, register_model

#: The size of each tower, by the tower's name.
TOWERS = {"test_clip" if size == "test" else f"clip_{size}": size for size in CLIP_SIZES}
KINDS = ("safeclip", "laion_nsfw", "safety_checker", "multihead", "q16")


def _panel(tower: str, size: str) -> None:
    names = [f"test_{kind}.*" if size == "test" else f"{kind}_{size}.*" for kind in KINDS]
    heads = {name: model_card(name) for pattern in names for name in list_models(pattern)}
    register_model(
        panel_card(f"{tower}.panel", heads),
        builder="zoo.models.heads:Panel",
        pretrained=RANDOM if size == "test" else None,
        policy="",
    )


for _tower, _size in TOWERS.items():
    _panel(_tower, _size)
