"""`zoo export matrix`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from export.precision.names import Precision
from zoo.commands.common import Commands, add_command
from zoo.errors import BadInputError


def add(formats: Commands) -> None:
    """Declare the subcommand."""
    text = "a table: which registered models TensorRT builds, in which precision"
    example = "zoo export matrix 'safeclip_*' --precision fp32 --precision fp16"
    parser = add_command(formats, "matrix", _matrix, text, example)
    parser.add_argument("pattern", nargs="?", default="*", help="wildcard pattern of model names (default: all)")
    parser.add_argument(
        "--precision", action="append", choices=get_args(Precision), default=[], help="repeatable (default: all)"
    )
    parser.add_argument("--calibrate", type=Path, metavar="DIR", help="images for int8_qdq (default: drawn ones)")
    parser.add_argument("--package", choices=("tensorrt", "tensorrt_rtx"), help="which TensorRT")


def _matrix(options: argparse.Namespace) -> int:
    from export.tensorrt.matrix import tensorrt_matrix
    from zoo.registry import list_models

    names = list_models(options.pattern)
    if not names:
        raise BadInputError(f'no registered model matches "{options.pattern}" (see `zoo list`)')
    precisions = options.precision or [name for name in get_args(Precision) if name != "int8"]
    print(tensorrt_matrix(names, precisions, package=options.package))
    return 0
