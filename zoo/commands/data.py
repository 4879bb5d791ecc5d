"""`zoo data`: datasets that the zoo can make by itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command

SIGNS = "zoo data signs --out runs/signs"
QUESTIONS = "zoo data questions --signs runs/signs --out runs/signs/questions.csv"


def add(commands: Commands) -> None:
    """Declare the subcommand."""
    parser = add_command(commands, "data", _signs, "write a dataset to disk", SIGNS)
    kinds = parser.add_subparsers(title="datasets", metavar="DATASET", required=True)
    signs = add_command(kinds, "signs", _signs, "drawn signs with captions, a third of them forbidden", SIGNS)
    signs.add_argument("--out", type=Path, required=True, help="folder to write manifest.csv and images/ into")
    for split, count in (("train", 4000), ("val", 400), ("test", 800)):
        signs.add_argument(f"--{split}", type=int, default=count, help=f"pictures in {split} (default: {count})")
    signs.add_argument("--seed", type=int, default=0, help="seed of the drawing (default: 0)")
    text = "questions and answers about drawn signs, for a vision-language model"
    questions = add_command(kinds, "questions", _questions, text, QUESTIONS)
    questions.add_argument("--signs", type=Path, required=True, help="folder that `zoo data signs` wrote")
    questions.add_argument("--out", type=Path, required=True, help="CSV file to write")
    wording = "which of two sets of phrasings, which share no sentence (default: plain)"
    questions.add_argument("--wording", choices=("plain", "new"), default="plain", help=wording)
    questions.add_argument("--per-image", type=int, default=5, help="questions on a picture, 1 to 5 (default: 5)")
    questions.add_argument("--seed", type=int, default=0, help="seed of the choice of questions (default: 0)")


def _signs(options: argparse.Namespace) -> int:
    from zoo.training.signs import write_signs

    print(write_signs(options.out, train=options.train, val=options.val, test=options.test, seed=options.seed))
    return 0


def _questions(options: argparse.Namespace) -> int:
    from zoo.training.questions import write_questions

    wording, count = options.wording, options.per_image
    print(write_questions(options.signs, options.out, wording=wording, per_image=count, seed=options.seed))
    return 0
