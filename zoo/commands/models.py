"""`zoo list`, `zoo show` and `zoo import`: what there is, and how published weights become a release."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from zoo.commands.common import Commands, add_command
from zoo.errors import BadArgumentError
from zoo.models.upstream import KINDS, UPSTREAM

IMPORT_HELP = """
KIND      SOURCE
nsfwjs    directory of a TensorFlow.js layers model: model.json and its weight shards
clip      a CLIP for a safeclip model (--name): Hub id, transformers directory, or safeclip release of ours, which
          can be read again at another layer as far as it keeps its layers
"""

IMPORT_EXAMPLES = """
examples:
  zoo import nsfwjs nsfwjs/models/mobilenet_v2 --out nsfwjs
  zoo import laion_nsfw_vit_b32 laion_nsfw_vit_b32.safetensors --tower clip-vit-base-patch32/ --out laion
  zoo import clip openai/clip-vit-large-patch14-336 --name safeclip_vit_l14_336.zeroshot \\
      --projection-from openai/clip-vit-large-patch14 --set layer=-1 --set post_layernorm=true --out safeclip

Heads are read from safetensors alone, and only when the file is the one that was tested (by sha256), or one that you
checked yourself and give the sha256 of. No weights are shipped: theirs are the licences above.
"""


def add(commands: Commands) -> None:
    """Declare the three subcommands."""
    parser = add_command(commands, "list", _list, "list the registered models", "zoo list '*clip*' --task zero_shot")
    parser.add_argument("pattern", nargs="?", default="*", help="wildcard pattern (default: all)")
    parser.add_argument("--tag", help="only this tag, such as zeroshot")
    parser.add_argument("--task", choices=("zero_shot", "classification", "panel"), help="only this task")
    parser.add_argument("--table", action="store_true", help="a Markdown table with summary, task and weights")
    text = "print the card of a model as JSON"
    parser = add_command(commands, "show", _show, text, "zoo show safeclip_tiny.zeroshot")
    parser.add_argument("model", help="registry name, or a release or bundle directory")
    _add_import(commands)


def _add_import(commands: Commands) -> None:
    parser = add_command(commands, "import", _import, "turn published weights into a release", "")
    heads = "".join(
        f"{kind:<22}  safetensors of {entry.source}; {entry.licence}\n"
        + (f"{'':24}{entry.note}\n" if entry.note else "")
        for kind, entry in UPSTREAM.items()
    )
    parser.epilog = IMPORT_HELP.lstrip("\n") + heads + IMPORT_EXAMPLES
    parser.add_argument("kind", choices=tuple(KINDS), metavar="KIND", help="whose weights, see below")
    parser.add_argument("source", metavar="SOURCE", help="file, directory or Hub id, as the kind wants it")
    parser.add_argument("--out", type=Path, required=True, help="release directory to write")
    parser.add_argument(
        "--tower", help="heads: the CLIP below, a Hub id, transformers directory or release of ours (default: OpenAI's)"
    )
    parser.add_argument("--sha256", metavar="HEX", help="heads: sha256 of a file that you checked yourself")
    parser.add_argument("--name", help="clip: registry name that it becomes, such as safeclip_vit_b32.zeroshot")
    parser.add_argument(
        "--projection-from",
        metavar="SOURCE2",
        help="clip: another CLIP for projection, text tower, tokenizer and temperature",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="heads, clip: a hyperparameter, as YAML"
    )
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
    from zoo.contract.card import ModelCard
    from zoo.registry import model_entry

    folder = Path(options.model)
    card = ModelCard.read(folder / "card.json") if folder.is_dir() else model_entry(options.model).card
    print(json.dumps(card.to_dict(), indent=2, ensure_ascii=False))
    return 0


def _import(options: argparse.Namespace) -> int:
    from zoo.release.imports import import_release

    card = import_release(
        options.kind,
        options.source,
        options.out,
        tower=options.tower,
        sha256=options.sha256,
        name=options.name,
        projection_from=options.projection_from,
        hparams=_hparams(options.set),
        overwrite=options.overwrite,
    )
    print(f"{options.out}: {card.name}\n  source   {card.source}\n  licence  {card.licence}")
    return 0


def _hparams(pairs: list[str]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise BadArgumentError(f'--set wants KEY=VALUE, got "{pair}"')
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as problem:
            raise BadArgumentError(f'--set {key}: "{value}" is no YAML: {problem}') from None
    return found
