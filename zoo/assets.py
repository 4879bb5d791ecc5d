"""Recipes and configuration fragments that come with the package, in a source tree and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import BadArgumentError, close_match

_PACKAGE = Path(__file__).resolve().parent


def assets_root() -> Path:
    """The folder that holds `recipes/` and `configs/`: inside the installed package, or the source tree."""
    shipped = _PACKAGE / "_assets"
    return shipped if shipped.is_dir() else _PACKAGE.parent


def find_asset(name: str | Path) -> Path:
    """A file by its path as given, else as shipped (`configs/policy/dogs.yaml`).

    Raises BadInputError with the close match among the shipped files of that folder.
    """
    given = Path(name)
    if given.is_file():
        return given
    shipped = assets_root() / given
    if not given.is_absolute() and shipped.is_file():
        return shipped
    siblings = [str(given.parent / path.name) for path in shipped.parent.glob("*.yaml")]
    raise BadArgumentError(f"{name}: no such file, here or among the shipped ones" + close_match(str(given), siblings))


def recipes() -> dict[str, Path]:
    """Every shipped recipe by its name, sorted."""
    return {path.stem: path for path in sorted((assets_root() / "recipes").glob("*.yaml"))}
