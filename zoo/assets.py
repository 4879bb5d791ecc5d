"""Recipes, policies, threats and budgets that come with the package, in a source tree and in an installed wheel."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from zoo.errors import BadArgumentError, close_match

_PACKAGE = Path(__file__).resolve().parent
#: Each kind of shipped file: its folder, and the command that lists the names.
KINDS = {
    "recipe": ("recipes", "zoo recipes list"),
    "trainer": ("configs/trainer", "zoo recipes list --fragments"),
    "policy": ("configs/policy", "zoo policy list"),
    "threat": ("configs/threat", "zoo threats list"),
    "budget": ("configs/export", "zoo budgets list"),
    "data": ("configs/data", "zoo data list"),
}


def assets_root() -> Path:
    """The folder that holds `recipes/` and `configs/`: inside the installed package, or the source tree."""
    shipped = _PACKAGE / "_assets"
    return shipped if shipped.is_dir() else _PACKAGE.parent


def shipped(kind: str) -> dict[str, Path]:
    """Every shipped file of a kind (a key of `KINDS`) by its name, sorted."""
    return {path.stem: path for path in sorted((assets_root() / KINDS[kind][0]).glob("*.yaml"))}


def summary(path: Path) -> str:
    """The first sentence of the comment at the head of a YAML file; of a file without one, its field `summary`."""
    text = path.read_text(encoding="utf-8")
    head = re.match(r"(?:# .*\n)+", text)
    field = re.search(r"^summary: (.*)$", text, re.MULTILINE)
    words = head[0].replace("\n# ", " ")[2:] if head else field[1] if field else ""
    return words.partition(". ")[0].strip().removesuffix(".")


def find_asset(name: str | Path, kind: str = "policy") -> Path:
    """A file by its path as given, by the path of a shipped file (`configs/policy/dogs.yaml`), or by a shipped name.

    A file that exists wins over a shipped one of the same name, and a line on the log says so. Raises BadArgumentError
    with the close match and the command that lists the names.
    """
    given, text, known = Path(name), str(name), shipped(kind)
    folder, listing = KINDS[kind]
    if given.is_file():
        if text in known:
            logging.getLogger("zoo").warning(
                'the file "%s" is used; the shipped %s of that name is %s/%s.yaml', text, kind, folder, text
            )
        return given
    if text in known:
        return known[text]
    if len(given.parts) == 1:
        near = close_match(given.stem, known)
        raise BadArgumentError(f'no {kind} is named "{name}", and no such file exists{near} (all names: {listing})')
    path = assets_root() / given
    if not given.is_absolute() and path.is_file():
        return path
    siblings = [str(given.parent / sibling.name) for sibling in path.parent.glob("*.yaml")]
    near = close_match(text, siblings or known)
    raise BadArgumentError(f"{name}: no such file, here or among the shipped ones{near} (all names: {listing})")
