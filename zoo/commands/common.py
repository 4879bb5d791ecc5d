"""What the subcommands share: parsers that show an example, policies by path."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

from zoo.assets import find_asset
from zoo.contract.panel import AnyPolicy
from zoo.contract.panel import read_policy as read_policy_file
from zoo.errors import BadArgumentError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


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
    parser.set_defaults(run=run)
    return parser


def names(text: str | None) -> tuple[str, ...]:
    """The names of an option such as `dog,dogs,puppy`; none where it was left out."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def read_policy(path: str | None) -> AnyPolicy | None:
    """The policy of a `--policy` option, as given or as shipped; None where the option was left out."""
    return read_policy_file(find_asset(path)) if path else None


def renamed(columns: str) -> dict[str, str]:
    """The roles and columns of `--columns text=caption,label=nsfw`. Raises BadInputError for an entry without "="."""
    roles = {}
    for pair in filter(None, columns.split(",")):
        role, sign, name = pair.partition("=")
        if not sign:
            raise BadArgumentError(f'--columns: "{pair}" must be ROLE=COLUMN, such as text=caption')
        roles[role.strip()] = name.strip()
    return roles
