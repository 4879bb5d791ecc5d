"""`zoo verify`."""

from __future__ import annotations

import argparse
from pathlib import Path

from export.commands.options import add_check_options, read_check
from zoo.commands.common import Commands, add_command


def add(commands: Commands) -> None:
    """Declare the subcommand."""
    text = "compare a bundle with the model it came from: names, shapes, values, verdicts"
    parser = add_command(commands, "verify", _verify, text, "zoo verify bundles/signs --images photos/")
    parser.add_argument("bundle", type=Path, help="bundle directory")
    parser.add_argument("--model", help="release to compare with (default: the one it was exported from)")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME", help="only this engine (repeatable)")
    add_check_options(parser)


def _verify(options: argparse.Namespace) -> int:
    from export.verify.compare import verify

    reports = verify(options.bundle, read_check(options), model=options.model, engines=options.engine)
    for report in reports:
        print(report.text())
    for report in reports:
        report.raise_if_failed()
    return 0
