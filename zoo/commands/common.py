"""What the subcommands share: parsers that show an example, policies by path."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from zoo.contract.policy import AnyPolicy
from zoo.contract.policy import read_policy as read_policy_file
from zoo.errors import BadArgumentError, close_match

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class CommandParser(argparse.ArgumentParser):
    """A parser that names the close match of an unknown command, option or choice, at every depth."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; an option that this command does not have ends here, where its own options are known."""
        options = [option for action in self._actions for option in action.option_strings]
        commands = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        if not commands:  # before argparse asks for the required option that was misspelt
            words = itertools.takewhile(lambda word: word != "--", args or ())
            for name in (word.partition("=")[0] for word in words if word.startswith("--") and " " not in word):
                if not any(option.startswith(name) for option in options):
                    self.error(f'unknown option "{name}"' + close_match(name, options))
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = close_match(str(value), map(str, action.choices))
            if isinstance(action, argparse._SubParsersAction):
                raise argparse.ArgumentError(None, f'unknown command "{value}"{near}')
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{near}")


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
) -> argparse.ArgumentParser:
    """Add a subcommand whose `--help` says what it does and shows an example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="example: " + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = "first import this module, which registers your own models (repeatable)"
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE", help=text)
    parser.set_defaults(run=run)
    return parser


def names(text: str | None) -> tuple[str, ...]:
    """The names of an option such as `dog,dogs,puppy`; none where it was left out."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def read_policy(path: str | None) -> AnyPolicy | None:
    """The policy of a `--policy` option, as given or as shipped; None where the option was left out."""
    return read_policy_file(path) if path else None


def renamed(columns: str) -> dict[str, str]:
    """The roles and columns of `--columns text=caption,label=nsfw`. Raises BadInputError for an entry without "="."""
    roles = {}
    for pair in filter(None, columns.split(",")):
        role, sign, name = pair.partition("=")
        if not sign:
            raise BadArgumentError(f'--columns: "{pair}" must be ROLE=COLUMN, such as text=caption')
        roles[role.strip()] = name.strip()
    return roles


def with_flags(message: str, options: argparse.Namespace) -> str:
    """A message of the library with flags in place of the arguments that it names: --limit for `limit`."""

    def flag(name: re.Match[str]) -> str:
        return "--" + name[1].replace("_", "-") if name[1] in vars(options) else name[0]

    return re.sub(r"`(\w+)`", flag, message)
