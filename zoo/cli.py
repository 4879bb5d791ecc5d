"""The `zoo` and `lightning` commands. Each subcommand imports what it needs when it runs: `zoo list` needs no torch."""

from __future__ import annotations

import argparse
import shlex
import sys
from importlib.metadata import entry_points
from typing import cast

import zoo
from zoo.commands import attacks, data, evaluate, guard, leaderboard, models, panel, recipes, release, score
from zoo.commands.common import CommandParser, Commands
from zoo.errors import close_match, refusal

TRAINING = {
    "fit": "train a model by its recipe",
    "validate": "run the validation of a recipe",
    "test": "run the test of a recipe",
    "predict": "judge the test rows of a recipe, verdicts to predictions.jsonl",
}

#: What only maintainers run moved out of the commands: an old call names the new one. Dropped after one release.
MOVED = {
    ("attacks", "bench"): "tests.benchmarks.attacks",
    ("bench", "--heads"): "tests.benchmarks.heads",
    ("bench", "--overhead"): "tests.benchmarks.overhead",
    ("bench", "--startup"): "tests.benchmarks.startup",
    ("export", "matrix"): "tests.benchmarks.matrix",
    ("recipes", "bench"): "tests.benchmarks.recipe_step",
}

EPILOG = """
train    zoo fit --config recipes/quickstart.yaml    (the same as: lightning fit, python -m zoo fit)
release  zoo release runs/quickstart/checkpoints/best.ckpt --out releases/signs
judge    zoo score --model releases/signs photo.jpg --policy my_policy.yaml
combine  zoo panel clip_vit_l14 safeclip_vit_l14.zeroshot imported/laion --out releases/panel
guard    zoo evaluate guard --lvlm llava --detector releases/safeclip --data questions.csv
attack   zoo evaluate robustness --model releases/signs --data manifest.csv --threat configs/threat/linf4.yaml
deploy   zoo export onnx --model releases/signs --out bundles/signs && zoo verify bundles/signs

`zoo COMMAND --help` tells more about each.
"""


def main() -> None:
    """Entry point of `zoo` and of `python -m zoo`."""
    sys.exit(run(sys.argv[1:]))


def lightning() -> None:
    """Entry point of `lightning`: the training commands alone, for Lightning itself ships no such script."""
    args = sys.argv[1:]
    if args and args[0] in TRAINING:
        sys.exit(run(args))
    print(f"usage: lightning {{{','.join(TRAINING)}}} --config recipes/NAME.yaml [--key value ...]")
    print("The same commands stand under `zoo`, with all others. `lightning fit --help` lists the keys.")
    if not args or args[0] in ("-h", "--help"):
        sys.exit(0)
    sys.exit(f'lightning: no command "{args[0]}"' + close_match(args[0], TRAINING))


def run(args: list[str]) -> int:
    """Run one command and return its exit status: 0 done, 1 refused (message on standard error), 2 wrong usage.

    `zoo score` also returns 3 when something is unsafe or wants review, 4 when something could not be judged.
    """
    if args and args[0] in TRAINING:
        from zoo.training import cli as training

        training.run(args)
        return 0
    if (replacement := moved(args)) is not None:
        print(replacement, file=sys.stderr)
        return 2
    options = build_parser().parse_args(args)
    options.invocation = shlex.join(["zoo", *args])  # for reports: the command that gives the figures again
    try:
        status: int = options.run(options)
    except BrokenPipeError:  # `zoo list | head`
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as problem:
        message = refusal(problem)
        if message is None:
            raise
        print(f"zoo: {message}", file=sys.stderr)
        return 1
    return status


def moved(args: list[str]) -> str | None:
    """What replaces a command that moved to the benchmarks of the repository; None for all others."""
    for (command, word), module in MOVED.items():
        if args[:1] == [command] and word in args[1:]:
            return f"zoo {command} {word} is now `python -m {module}`, in a clone of the repository"
    return None


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; those of other packages come through the entry points `safety_zoo.commands`."""
    parser = CommandParser(
        prog="zoo",
        description="Safety Zoo: image and prompt safety models whose checkpoints deploy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"safety-zoo {zoo.__version__}")
    commands = cast("Commands", parser.add_subparsers(title="commands", metavar="COMMAND", required=True))
    for name, text in TRAINING.items():
        commands.add_parser(name, help=text)  # for the list only: run() hands these to Lightning
    for module in (models, recipes, data, release, panel, score, evaluate, guard, attacks, leaderboard):
        module.add(commands)
    for entry in sorted(entry_points(group="safety_zoo.commands"), key=lambda found: found.name):
        entry.load()(commands)
    return parser
