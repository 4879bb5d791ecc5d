"""The README says what the registry and the recipes say."""

from __future__ import annotations

import re
from pathlib import Path

from zoo.assets import recipes
from zoo.registry import list_models, model_table

README = Path(__file__).parents[1] / "README.md"


def section(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"README has no section {name}"
    return found[1].strip()


def test_table_of_models_is_the_registrys() -> None:
    names = [name for name in list_models() if not name.startswith("test_")]
    assert section("models") == model_table(names), "replace it with: zoo list --table '[!t]*'"


def test_every_recipe_is_described() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in recipes() if f"| `{name}` |" not in text] == []


def test_measured_sections_are_filled() -> None:
    for name in ("quickstart-output", "photos", "speed", "heads", "readings", "guard"):
        assert any(character.isdigit() for character in section(name)), f"section {name} holds no figure"
