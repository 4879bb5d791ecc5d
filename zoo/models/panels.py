"""The panels that the zoo ships, as data: SafeCLIP and every published head on one tower, by size. No torch here."""

from __future__ import annotations

from zoo.panel_card import panel_card
from zoo.registry import RANDOM, list_models, model_card, register_model

#: Tower, and a pattern of the heads on it.
TOWERS = {"clip_vit_b16": "vit_b16", "clip_vit_b32": "vit_b32", "clip_vit_l14": "vit_l14", "test_clip": "test"}
KINDS = ("safeclip", "laion_nsfw", "safety_checker", "multihead", "q16")


def _panel(tower: str, size: str) -> None:
    names = [f"test_{kind}.*" if size == "test" else f"{kind}_{size}.*" for kind in KINDS]
    heads = {name: model_card(name) for pattern in names for name in list_models(pattern)}
    register_model(
        panel_card(f"{tower}.panel", heads),
        builder="zoo.models.panel:Panel",
        pretrained=RANDOM if size == "test" else None,
        policy="",
    )


for _tower, _size in TOWERS.items():
    _panel(_tower, _size)
