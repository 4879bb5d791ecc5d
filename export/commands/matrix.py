"""`zoo export matrix`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import get_args

from export.precision.names import Precision
from zoo.commands.common import Commands, add_command
from zoo.errors import BadInputError

#: Between these lines `--into` puts the table.
START, END = "<!-- tensorrt -->\n", "<!-- /tensorrt -->"


def add(formats: Commands) -> None:
    """Declare the subcommand."""
    text = "a table: which registered models TensorRT reads, in which precision"
    example = "zoo export matrix 'safeclip_*' --precision fp32 --precision fp16"
    parser = add_command(formats, "matrix", _matrix, text, example)
    parser.add_argument("pattern", nargs="?", default="[!t]*", help="wildcard pattern (default: all but test models)")
    parser.add_argument(
        "--precision",
        action="append",
        choices=get_args(Precision),
        default=[],
        help="repeatable (default: all but int8, whose operators TensorRT does not have)",
    )
    parser.add_argument("--build", action="store_true", help="build the engines, not only parse the graphs")
    parser.add_argument("--package", choices=("tensorrt", "tensorrt_rtx"), help="which TensorRT")
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help="put the table there, between <!-- tensorrt --> and its end"
    )


def _matrix(options: argparse.Namespace) -> int:
    from export.tensorrt.matrix import tensorrt_matrix
    from zoo.registry import list_models

    names = list_models(options.pattern)
    if not names:
        raise BadInputError(f'no registered model matches "{options.pattern}" (see `zoo list`)')
    if options.into:
        put(options.into, None)  # before the work, not after it
    precisions = options.precision or [name for name in get_args(Precision) if name != "int8"]
    table = tensorrt_matrix(names, precisions, build=options.build, package=options.package)
    print(table)
    if options.into:
        put(options.into, table)
    return 0


def put(file: Path, table: str | None) -> None:
    """Put a table between the two marks of a file; None only looks for them. Raises BadInputError without them."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(f"({START}).*({END})", text, re.DOTALL)
    if found is None:
        raise BadInputError(f"{file}: has no lines {START.strip()} and {END} for the table to stand between")
    if table is not None:
        file.write_text(f"{text[: found.end(1)]}{table}\n{text[found.start(2) :]}", encoding="utf-8")
