"""`zoo list` and `zoo show`: the registered models, and the card of one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from zoo.commands.common import Commands, add_command


def add(commands: Commands) -> None:
    parser = add_command(commands, "list", _list)
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="wildcard pattern of the names")
    parser.add_argument("--tag", metavar="TAG", help="only this tag, such as zeroshot")
    parser.add_argument("--task", choices=("zero_shot", "classification", "panel"), help="only this task")
    parser.add_argument("--table", action="store_true", help="a Markdown table with summary, task and weights")
    parser = add_command(commands, "show", _show)
    parser.add_argument("model", metavar="MODEL", help="registry name, or a release or bundle directory")


def _list(options: argparse.Namespace) -> int:
    """List the registered models.

    zoo list '*clip*' --task zero_shot
    """
    from zoo.registry import list_models, model_table

    names = list_models(options.pattern, tag=options.tag, task=options.task)
    if not names:
        print(f'no model matches "{options.pattern}"')
        return 1
    print(model_table(names) if options.table else "\n".join(names))
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
