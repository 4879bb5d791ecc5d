"""`zoo recipes`: list the shipped recipes, copy one to edit, check one without running it."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from zoo.assets import assets_root, recipes
from zoo.commands.common import Commands, add_command
from zoo.errors import BadArgumentError, close_match


def add(commands: Commands) -> None:
    """Declare the subcommand."""
    example = "zoo recipes copy quickstart --to mine && zoo recipes check mine/recipes/quickstart.yaml"
    parser = add_command(commands, "recipes", _list, "list, copy and check training recipes", example)
    actions = parser.add_subparsers(metavar="{copy,check}")
    copy = actions.add_parser("copy", help="copy a recipe and the fragments that it names, to edit them")
    copy.add_argument("name", help="name of a shipped recipe")
    copy.add_argument("--to", type=Path, default=Path(), help="folder to copy into (default: here)")
    copy.set_defaults(run=_copy)
    check = actions.add_parser("check", help="bind every class and argument of recipes, without running them")
    check.add_argument("files", nargs="+", type=Path, help="recipe files")
    check.set_defaults(run=_check)


def _list(options: argparse.Namespace) -> int:
    for name, path in recipes().items():
        header = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        print(f"{name:28} {header[0] if header else ''}")
    return 0


def _copy(options: argparse.Namespace) -> int:
    known = recipes()
    if options.name not in known:
        raise BadArgumentError(f'no recipe is named "{options.name}"' + close_match(options.name, known))
    source = known[options.name]
    text = source.read_text(encoding="utf-8")
    # Fragments are named relative to the recipe; copied beside it, those names go on being right.
    named = sorted(set(re.findall(r"\.\./(configs/[\w./-]+\.yaml)", text)))
    targets = {options.to / "recipes" / source.name: source}
    targets |= {options.to / name: assets_root() / name for name in named}
    taken = [str(target) for target in targets if target.exists()]
    if taken:
        raise BadArgumentError(f"{', '.join(taken)}: exists already; move it away, or give another --to")
    for target, origin in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(origin.read_text(encoding="utf-8"), encoding="utf-8")
        print(target)
    return 0


def _check(options: argparse.Namespace) -> int:
    for path in options.files:
        if not path.is_file():
            raise BadArgumentError(f"{path}: no such recipe file" + close_match(path.stem, recipes()))
    from zoo.training.cli import check

    for path in options.files:
        found = check(path)
        print(f"{path}: ok, {' with '.join(found.values())}", file=sys.stdout)
    return 0
