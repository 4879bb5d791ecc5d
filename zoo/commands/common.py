"""The parts that commands share: parsers with examples and close matches, flags with one meaning, policies by name."""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from zoo.assets import KINDS, shipped, summary
from zoo.contract import schema
from zoo.contract.policy import AnyPolicy
from zoo.contract.policy import read_policy as read_policy_file
from zoo.errors import BadArgumentError, close_match, quoted

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"
_Made = TypeVar("_Made")

#: The types of values by the metavar of their flag; others are text.
TYPES: dict[str, Callable[[str], Any]] = {
    **{"N": int, "SHARE": float, "RATE": float},
    **dict.fromkeys(("DIR", "MANIFEST", "CHECKPOINT", "REPORT", "PNG"), Path),
}
#: Flags that several commands take. A command adds a detail after the colon, never another meaning.
FLAGS: dict[str, dict[str, Any]] = {
    "--columns": {"default": "", "metavar": "ROLE=COLUMN,...", "help": "rename columns, as text=caption,label=nsfw"},
    "--data": {"metavar": "MANIFEST", "help": "manifest, a CSV or Parquet file"},
    "--device": {"default": "cpu", "metavar": "DEVICE", "help": "cpu or cuda"},
    "--dtype": {"help": "type of the weights"},
    "--engine": {"metavar": "NAME", "help": "engine of the bundle"},
    "--image-root": {"metavar": "DIR", "help": "folder of the images (default: the manifest's)"},
    "--json": {"action": "store_true", "help": "print JSON"},
    "--limit": {"metavar": "N", "help": "only N rows, drawn with --seed (default: all)"},
    "--model": {"metavar": "MODEL", "help": "model"},
    "--name": {"metavar": "NAME", "help": "name of what is written"},
    "--out": {"help": "what is written"},
    "--overwrite": {"action": "store_true", "help": "replace what --out names"},
    "--policy": {"metavar": "POLICY", "help": "policy, a file or a shipped name"},
    "--positive-label": {"default": "1", "metavar": "LABEL", "help": "label that marks a row as unsafe"},
    "--positive-words": {"metavar": "WORDS", "help": "a row is unsafe when its text has one of these: dog,dogs,puppy"},
    "--report": {"metavar": "DIR", "help": "folder for report.html and report.png"},
    "--rounds": {"metavar": "N", "help": "timed rounds"},
    "--seed": {"default": 0, "metavar": "N", "help": "seed of everything that is drawn"},
    "--set": {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "hyperparameter, as YAML; repeatable"},
    "--split": {"choices": ("train", "val", "test"), "help": "only the rows of this split"},
    "--threads": {"default": 2, "metavar": "N", "help": "threads on the CPU"},
    "--update-card": {"action": "store_true", "help": "write the figures into the release's card.json"},
}


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that keeps the line breaks of examples, and tells every default that the text leaves out."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        silent = default is None or default is False or default in ("", [], argparse.SUPPRESS) or "default" in text
        return text if silent or action.required else f"{text} (default: %(default)s)"


class CommandParser(argparse.ArgumentParser):
    """A parser that names the close match of an unknown command, option or choice, at every depth."""

    #: Old spellings of options and their new ones. An old one still works, and a line on stderr names the new one.
    renamed: Mapping[str, str] = {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; an option that this command does not have ends here, where its own options are known."""
        args = [self._new_spelling(word) for word in args or ()]
        options = [option for action in self._actions for option in action.option_strings]
        actions = [name for one in self._actions if isinstance(one, argparse._SubParsersAction) for name in one.choices]
        # Before argparse asks for the required option that was misspelt. What follows an action is that action's.
        words = itertools.takewhile(lambda word: word != "--" and word not in actions, args)
        for name in (word.partition("=")[0] for word in words if word.startswith("--") and " " not in word):
            if not any(option.startswith(name) for option in options):
                self.error(f'unknown option "{name}"' + close_match(name, options))
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            few = len(unknown) <= 3
            told = " ".join(map(_told, unknown)) if few else f"{len(unknown)} words; a text of several needs quotes"
            self.error(f"unrecognized arguments: {told}")
        return parsed, unknown

    def _new_spelling(self, word: str) -> str:
        name, sign, value = word.partition("=")
        if name not in self.renamed:
            return word
        new = self.renamed[name]
        print(f"{self.prog}: {name} is now {new}; the old spelling goes with the next release", file=sys.stderr)
        return new + sign + value

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = close_match(str(value), map(str, action.choices))
            if isinstance(action, argparse._SubParsersAction):
                raise argparse.ArgumentError(None, f"unknown command {quoted(value)}{near}")
            raise argparse.ArgumentError(action, f"invalid choice: {_told(value)!r}{near}")


def _told(word: str) -> str:
    """A word of the command line in a message, which may be a prompt."""
    return quoted(word).strip('"')


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str = "",
    example: str = "",
    renamed: Mapping[str, str] | None = None,
) -> CommandParser:
    """Add a subcommand whose `--help` says what it does and shows an example; `renamed`: old options to new ones.

    By default they are the first and last paragraph of the docstring of `run`; one between them is the description.
    """
    description = ""
    if not text:
        text, *between, example = inspect.cleandoc(run.__doc__ or f"{name}\n\n{name}").split("\n\n")
        text, description = text[0].lower() + text[1:].replace("\n", " ").removesuffix("."), "".join(between)
    parser = commands.add_parser(
        name,
        help=text,
        description=description or text[0].upper() + text[1:] + ".",
        epilog="example:\n  " + example,
        formatter_class=Help,
    )
    text = "first import this module, which registers your own models (repeatable)"
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE", help=text)
    parser.set_defaults(run=run)
    parser.renamed = renamed or {}
    return parser


def add_flags(parser: argparse._ActionsContainer, *names: str) -> None:
    """Declare flags of `FLAGS` without a change."""
    for name in names:
        add_flag(parser, name)


def add_flag(parser: argparse._ActionsContainer, name: str, detail: str = "", **more: Any) -> None:
    """Declare a flag of `FLAGS` with what this command adds to it, or one of this command alone.

    `--out` needs a metavar: FILE or DIR.
    """
    given = {**FLAGS.get(name, {"help": ""}), **more}
    if "metavar" in given:
        kinds = TYPES if name != "--out" else {"FILE": output_file, "DIR": output_folder}
        given.setdefault("type", kinds.get(given["metavar"]))
    gap = "" if not given["help"] or not detail else " " if detail.startswith("(") else ": "
    parser.add_argument(name, **{**given, "help": given["help"] + gap + detail})


def output_file(text: str) -> Path:
    """The path of a file to write. Refuses a folder that exists."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, and a file is written: add a name for it")
    return Path(text)


def output_folder(text: str) -> Path:
    """The path of a folder to write into. Refuses a file that exists."""
    if Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is a file, and several files are written: name a folder")
    return Path(text)


def add_list(actions: Commands, kind: str, text: str) -> CommandParser:
    """Add the action `list` of a kind of shipped files."""
    parser = add_command(actions, "list", list_shipped, text, KINDS[kind][1])
    parser.set_defaults(kind=kind)
    add_flag(parser, "--json", "name, path and summary of each")
    return parser


def list_shipped(options: argparse.Namespace) -> int:
    """Print the names of shipped files (`options.kind`), each with the first sentence of its header."""
    rows = [{"name": name, "path": str(path), "summary": summary(path)} for name, path in shipped(options.kind).items()]
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print("\n".join(f"{row['name']:36} {row['summary']}" for row in rows))
    return 0


def names(text: str | None) -> tuple[str, ...]:
    """The names of an option such as `dog,dogs,puppy`; empty for an option that was left out."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def read_policy(name: str | None) -> AnyPolicy | None:
    """The policy of a `--policy` option, by path or shipped name; None for an option that was left out."""
    return read_policy_file(name) if name else None


def renamed(columns: str) -> dict[str, str]:
    """The roles and columns of `--columns text=caption,label=nsfw`. An entry without "=" is a BadArgumentError."""
    roles = {}
    for pair in filter(None, columns.split(",")):
        role, sign, name = pair.partition("=")
        if not sign:
            raise BadArgumentError(f'--columns: "{pair}" must be ROLE=COLUMN, such as text=caption')
        roles[role.strip()] = name.strip()
    return roles


def call_with(function: Callable[..., _Made], options: argparse.Namespace, **more: Any) -> _Made:
    """Call a function or a dataclass: each argument is the option of its name, unless `more` has it."""
    names = inspect.signature(function).parameters
    return function(**{**{name: getattr(options, name) for name in names if hasattr(options, name)}, **more})


def with_flags(message: str, options: argparse.Namespace) -> str:
    """A message of the library with flags in place of the arguments that it names: --limit for `limit`."""

    def flag(name: re.Match[str]) -> str:
        return "--" + name[1].replace("_", "-") if name[1] in vars(options) else name[0]

    return re.sub(r"`(\w+)`", flag, message)


def hparams(pairs: list[str]) -> dict[str, Any]:
    """The hyperparameters of `--set KEY=VALUE`. Raises BadArgumentError for what is not a pair, or not YAML."""
    import yaml

    read: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise BadArgumentError(f'--set wants KEY=VALUE, got "{pair}"')
        try:
            read[key] = schema.load_yaml(value)
        except (yaml.YAMLError, ValueError):  # ValueError: !!int a
            raise BadArgumentError(f"--set {key}: {quoted(value)} is not YAML") from None
    return read
