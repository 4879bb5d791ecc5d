"""`zoo attacks`: list the attacks."""

from __future__ import annotations

import argparse

from zoo.commands.common import Commands, add_command


def add(commands: Commands) -> None:
    """Add `zoo attacks list`."""
    text = "list every attack: what it changes, its bound, its source"
    parser = add_command(commands, "attacks", _list, text, "zoo attacks list")
    add_command(parser.add_subparsers(metavar="{list}"), "list", _list, text, "zoo attacks list")


def _list(options: argparse.Namespace) -> int:
    from zoo.adversary.threat import SOURCES

    for name, source in SOURCES.items():
        print(f"{name:12} {source.kind:6} {source.bound:20} {source.needs:21} {source.paper}")
    return 0
