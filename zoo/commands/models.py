"""`zoo list`, `zoo show` and `zoo import`: what there is, and how published weights become a release."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from zoo.commands.common import Commands, add_command


def add(commands: Commands) -> None:
    """Declare the three subcommands."""
    parser = add_command(commands, "list", _list, "list the registered models", "zoo list '*clip*' --task zero_shot")
    parser.add_argument("pattern", nargs="?", default="*", help="wildcard pattern (default: all)")
    parser.add_argument("--tag", help="only this tag, such as zeroshot")
    parser.add_argument("--task", choices=("zero_shot", "classification"), help="only this task")
    parser.add_argument("--table", action="store_true", help="a Markdown table with summary, task and weights")
    text = "print the card of a model as JSON"
    parser = add_command(commands, "show", _show, text, "zoo show safeclip_tiny.zeroshot")
    parser.add_argument("model", help="registry name, or a release or bundle directory")
    text = "turn published weights into a release"
    parser = add_command(commands, "import", _import, text, "zoo import nsfwjs nsfwjs/models/mobilenet_v2 --out nsfw")
    parser.add_argument("kind", choices=("nsfwjs",), help="what the directory holds")
    parser.add_argument("directory", type=Path, help="TensorFlow.js layers model: model.json and its weight shards")
    parser.add_argument("--out", type=Path, required=True, help="release directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing release")


def _list(options: argparse.Namespace) -> int:
    from zoo.registry import list_models, model_table

    names = list_models(options.pattern, tag=options.tag, task=options.task)
    if not names:
        print(f'no model matches "{options.pattern}"')
        return 1
    print(model_table(names) if options.table else "\n".join(names))
    return 0


def _show(options: argparse.Namespace) -> int:
    from zoo.card import ModelCard
    from zoo.registry import model_entry

    folder = Path(options.model)
    card = ModelCard.read(folder / "card.json") if folder.is_dir() else model_entry(options.model).card
    print(json.dumps(card.to_dict(), indent=2, ensure_ascii=False))
    return 0


def _import(options: argparse.Namespace) -> int:
    from zoo.importers import import_release

    card = import_release(options.kind, options.directory, options.out, overwrite=options.overwrite)
    print(f"{options.out}: {card.name}")
    return 0
