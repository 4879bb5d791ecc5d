"""The `zoo` and `lightning` commands. Each subcommand imports what it needs when it runs: `zoo list` needs no torch."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable
from importlib import import_module

import zoo
from zoo.assets import find_asset, shipped
from zoo.commands.common import CommandParser, with_flags
from zoo.contract.schema import read_yaml
from zoo.errors import BadInputError, MissingDependencyError, close_match, refusal, training_needed
from zoo.registry import import_models, load_plugins

TRAINING = {
    "fit": "train a model by its recipe",
    "validate": "run the validation of a recipe",
    "test": "run the test of a recipe",
    "predict": "judge the test rows of a recipe, verdicts to predictions.jsonl",
}

#: The module of each command, in `zoo.commands`: of a command that is known, its own alone is imported.
COMMANDS = {
    **dict.fromkeys(("list", "show", "pull", "recipes", "threats", "budgets"), "catalogue"),
    "data": "data",
    **dict.fromkeys(("release", "import", "panel"), "release"),
    "score": "score",
    **dict.fromkeys(("evaluate", "guard"), "evaluate"),
    **dict.fromkeys(("attacks", "leaderboard"), "robustness"),
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
train    zoo fit --config quickstart    (the same as: lightning fit, python -m zoo fit)
release  zoo release runs/quickstart/checkpoints/best.ckpt --out releases/signs
judge    zoo score --model releases/signs photo.jpg --policy my_policy.yaml
combine  zoo panel clip_vit_l14 safeclip_vit_l14.zeroshot imported/laion --out releases/panel
guard    zoo evaluate guard --lvlm llava --detector releases/safeclip --data questions.csv
attack   zoo evaluate robustness --model releases/signs --data manifest.csv --threat linf4
deploy   zoo export onnx --model releases/signs --out bundles/signs && zoo verify bundles/signs
extend   zoo list --import my_models    (every command: first import this module, which registers your own models)

`zoo COMMAND --help` tells more about each.
"""


def main() -> None:
    """Entry point of `zoo` and of `python -m zoo`."""
    sys.exit(run(sys.argv[1:]))


def lightning() -> None:
    """Entry point of `lightning`: the training commands alone, because Lightning itself ships no such script."""
    args = sys.argv[1:]
    command = own_modules(args)[1][:1]
    if command and command[0] in TRAINING:
        sys.exit(run(args))
    print(f"usage: lightning {{{','.join(TRAINING)}}} --config recipes/NAME.yaml [--key value ...]")
    print("The same commands stand under `zoo`, with all others. `lightning fit --help` lists the keys.")
    if not command or command[0] in ("-h", "--help"):
        sys.exit(0)
    sys.exit(f'lightning: no command "{command[0]}"' + close_match(command[0], TRAINING))


def run(args: list[str]) -> int:
    """Run one command and return its exit status: 0 done, 1 refused (message on standard error), 2 wrong usage.

    `zoo score` also returns 3 when something is unsafe or wants review, 4 when something could not be judged.
    """
    modules, words = own_modules(args)
    if (replacement := moved(words)) is not None:
        print(replacement, file=sys.stderr)
        return 2
    if "" in modules:
        print("zoo: --import needs the name of a module, such as --import my_models", file=sys.stderr)
        return 2
    trains = bool(words) and words[0] in TRAINING
    try:
        words = with_configs(words) if trains else words
        import_own(modules)
    except BadInputError as problem:
        print(f"zoo: {problem}", file=sys.stderr)
        return 1
    if trains:
        try:
            with training_needed():
                from zoo.training import cli as training
        except MissingDependencyError as problem:
            print(f"zoo: {problem}", file=sys.stderr)
            return 1
        training.run(words)
        return 0
    options = build_parser(words[0] if words else "").parse_args(words)
    options.command = shlex.join(["zoo", *args])  # for reports: the command that gives the figures again
    try:
        import_own(getattr(options, "imports", []))  # an abbreviation of --import
        status: int = options.run(options)
    except BrokenPipeError:  # `zoo list | head`
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as problem:
        message = refusal(problem)
        if message is None:
            raise
        print(f"zoo: {with_flags(message, options)}", file=sys.stderr)
        return 1
    return status


def own_modules(args: list[str]) -> tuple[list[str], list[str]]:
    """The modules of each `--import MODULE`, wherever it stands before a `--`, and the other words of the command."""
    modules, words, rest = [], [], list(args)
    while rest and rest[0] != "--":
        word = rest.pop(0)
        name, equals, module = word.partition("=")
        if name != "--import":
            words.append(word)
        elif equals:
            modules.append(module)
        else:
            modules.append(rest.pop(0) if rest and not rest[0].startswith("-") else "")
    return modules, words + rest


def with_configs(words: list[str]) -> list[str]:
    """The words of a training command, each value of `--config` as a path: a recipe or fragment may be named (`gpu`).

    So a recipe that is missing, or is no YAML, is refused before torch is imported. Raises BadInputError.
    """
    return [_config(before, word) for before, word in zip(["", *words], words, strict=False)]


def _config(before: str, word: str) -> str:
    option, sign, value = word.partition("=")
    if option in ("-c", "--config") and sign:
        return f"{option}={_config(option, value)}"
    # jsonargparse also takes the text of a configuration itself.
    if before not in ("-c", "--config") or ":" in word:
        return word
    path = find_asset(word, "trainer" if word in shipped("trainer") else "recipe")
    read_yaml(path)  # refuses a key that stands there twice, and quotes no line, as jsonargparse would
    return str(path)


def import_own(modules: Iterable[str]) -> None:
    """Import modules that register models; they are looked for in the current folder first.

    Raises BadArgumentError naming the module that is missing or raises.
    """
    for module in modules:
        if os.getcwd() not in sys.path:  # a console script has its own folder there
            sys.path.insert(0, os.getcwd())
        import_models(module)


def moved(args: list[str]) -> str | None:
    """The message about a command that moved to the benchmarks of the repository; None for all others."""
    for (command, word), module in MOVED.items():
        if args[:1] == [command] and word in args[1:]:
            return f"zoo {command} {word} is now `python -m {module}`, in a clone of the repository"
    return None


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The parser of all commands, or of one in `COMMANDS`; other packages add theirs through entry points."""
    parser = CommandParser(
        prog="zoo",
        description="Safety Zoo: image and prompt safety models whose checkpoints deploy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"safety-zoo {zoo.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in TRAINING.items():
        commands.add_parser(name, help=text)  # for the list only: run() hands these to Lightning
    for module in dict.fromkeys([COMMANDS[command]] if command in COMMANDS else COMMANDS.values()):
        import_module(f"zoo.commands.{module}").add(commands)
    if command not in COMMANDS:
        load_plugins("safety_zoo.commands", lambda add: add(commands))
    return parser
