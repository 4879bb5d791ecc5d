"""`zoo bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command, names
from zoo.errors import BadArgumentError

EXAMPLES = """zoo bench bundles/vit_b32 --against transformers,transformers-bf16,open_clip --batch 1,8,32 --out figures
         zoo bench bundles/vit_b32 --input pixels --engine onnx-fp32 --engine onnx-int8

peers (the same CLIP with random weights, so the bundle must be of a safeclip_* model):
  transformers          CLIPModel and CLIPImageProcessorPil, torch eager, float32
  transformers-bf16     the same in bfloat16
  transformers-compile  the same in float32, by torch.compile; needs a C++ compiler and minutes to warm up
  open_clip             open_clip's CLIP and transform, torch eager, float32; needs open_clip_torch and torchvision

In each round all sides run once. Ratios are of medians, to the first peer of the same run."""


def add(commands: Commands) -> None:
    """Declare the subcommand."""
    text = "time the engines of a bundle and the same model in other libraries, in turns in one run"
    parser = add_command(commands, "bench", _bench, text, EXAMPLES)
    parser.add_argument("bundle", type=Path, help="bundle directory")
    parser.add_argument(
        "--against", default="transformers", metavar="PEERS", help="peers, by comma (default: transformers)"
    )
    parser.add_argument(
        "--engine", action="append", default=[], metavar="NAME", help="repeatable (default: all that run here)"
    )
    parser.add_argument(
        "--input",
        choices=("jpeg", "pixels"),
        default="jpeg",
        help="from JPEG bytes to verdict, or the network alone, from pixels to scores (default: jpeg)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of all sides (default: cpu)")
    parser.add_argument("--batch", default="1,8,32", help="batch sizes (default: 1,8,32)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (default: 2)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds of each batch size (default: 20)")
    parser.add_argument("--image", default="1024x768", help="size of the JPEGs (default: 1024x768)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for bench.json, bench.md and the plot bench.png"
    )


def _bench(options: argparse.Namespace) -> int:
    batches = [_whole(size, "--batch", "1,8,32") for size in names(options.batch)]
    if options.out and options.out.exists() and not options.out.is_dir():
        raise BadArgumentError(f"{options.out} is a file, and --out takes a folder: figures, table and plot go into it")
    from export.bench.compare import bench

    width, _, height = options.image.partition("x")
    result = bench(
        options.bundle,
        against=names(options.against),
        engines=options.engine,
        input=options.input,
        device=options.device,
        batches=batches,
        threads=options.threads,
        rounds=options.rounds,
        size=(_whole(width, "--image", "1024x768"), _whole(height, "--image", "1024x768")),
    )
    print(result.text())
    if options.out:
        result.write(options.out)
    return 0


def _whole(text: str, option: str, example: str) -> int:
    """A whole number of an option. Raises BadInputError that shows what is expected."""
    if not text.isdecimal():
        raise BadArgumentError(f'{option} takes whole numbers such as {example}, got "{text}"')
    return int(text)
