"""`zoo data`: datasets that the zoo can make by itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command


def add(commands: Commands) -> None:
    """Declare the subcommand."""
    parser = add_command(commands, "data", _signs, "write a dataset to disk", "zoo data signs --out runs/signs")
    parser.add_argument("kind", choices=("signs",), help="signs: drawn signs with captions, a third of them forbidden")
    parser.add_argument("--out", type=Path, required=True, help="folder to write manifest.csv and images/ into")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawing (default: 0)")


def _signs(options: argparse.Namespace) -> int:
    from zoo.training.signs import write_signs

    print(write_signs(options.out, seed=options.seed))
    return 0
