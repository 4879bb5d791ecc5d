"""`zoo export tensorrt`."""

from __future__ import annotations

import argparse
from pathlib import Path

from export.commands.options import add_engine_options, engine_options, parse_range, print_exported
from zoo.commands.common import Commands, add_command
from zoo.errors import IncompatibleBundleError, MissingDependencyError


def add(formats: Commands) -> None:
    """Declare the subcommand."""
    text = "a TensorRT plan, for NVIDIA GPUs"
    example = "zoo export tensorrt --model releases/x --out bundles/x --precision fp16 --batch 1:8:64"
    parser = add_command(formats, "tensorrt", _export_tensorrt, text, example)
    add_engine_options(parser)
    parser.set_defaults(precision="fp16")
    parser.add_argument(
        "--image",
        type=parse_range,
        metavar="MIN:OPT:MAX",
        help="side in pixels of the images that come in: 64:224:1024 say",
    )
    parser.add_argument(
        "--capability",
        action="append",
        default=[],
        metavar="SM",
        help="GPU architecture to build for, as SM86 (repeatable; default with TensorRT for RTX: SM80, SM86, SM89)",
    )
    parser.add_argument(
        "--text-bank",
        choices=("input", "constant", "refit"),
        default="input",
        help="a policy's phrases: an input, any number of them (default), built in for servers, or refitted",
    )
    parser.add_argument("--strip-weights", action="store_true", help="a plan without weights, filled when it is loaded")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="with tensorrt: kernels measured before")
    parser.add_argument(
        "--package",
        choices=("tensorrt", "tensorrt_rtx"),
        help="which TensorRT (default: tensorrt, where it is installed)",
    )


def _export_tensorrt(options: argparse.Namespace) -> int:
    from export.tensorrt.export import PlanOptions, export_tensorrt

    if options.verify is None:
        options.verify = options.precision != "fp32" and _gpu_here()
    common = engine_options(options)
    chosen = PlanOptions(
        batch=common.pop("batch"),
        image=options.image,
        capabilities=options.capability,
        text_bank=options.text_bank,
        strip_weights=options.strip_weights,
        timing_cache=options.timing_cache,
        package=options.package,
    )
    manifest = export_tensorrt(options.model, options.out, options=chosen, **common)
    print_exported(options, "tensorrt", manifest)
    return 0


def _gpu_here() -> bool:
    from export.runtime.cuda import local_gpu

    try:
        local_gpu()
    except (IncompatibleBundleError, MissingDependencyError):
        return False
    return True
