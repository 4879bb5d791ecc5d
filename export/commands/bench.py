"""`zoo bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command
from zoo.errors import BadInputError


def add(commands: Commands) -> None:
    """Declare the subcommand."""
    text = "time a bundle from JPEG bytes to verdict, against transformers in the same run"
    parser = add_command(commands, "bench", _bench, text, "zoo bench bundles/vit_b32 --batch 1,8,32 --threads 2")
    parser.add_argument(
        "bundle", type=Path, nargs="?", help="bundle directory; of a safeclip_* model against transformers"
    )
    parser.add_argument("--startup", action="store_true", help="instead: time how fast the commands start")
    parser.add_argument(
        "--overhead", action="store_true", help="instead: what the runtime adds to a bare session.run of any bundle"
    )
    parser.add_argument("--heads", metavar="PANEL", help="instead: time each head of a registered panel and its tower")
    parser.add_argument("--against", choices=("transformers",), default="transformers", help="the peer")
    parser.add_argument("--batch", default="1,8,32", help="batch sizes (default: 1,8,32)")
    parser.add_argument("--threads", type=int, default=2, help="threads of either side (default: 2)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds of each batch size (default: 20)")
    parser.add_argument("--image", default="1024x768", help="size of the JPEGs (default: 1024x768)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")


def _bench(options: argparse.Namespace) -> int:
    if [options.bundle is not None, options.startup, options.heads is not None].count(True) != 1:
        raise BadInputError("zoo bench takes a bundle directory, or --startup, or --heads PANEL")
    if options.startup:
        from export.bench.startup import bench_startup

        print(bench_startup(options.rounds))
        return 0
    batches = [int(size) for size in options.batch.split(",")]
    if options.heads:
        from export.bench.heads import bench_heads

        for batch in batches:
            print(bench_heads(options.heads, batch, options.threads, options.rounds) + "\n")
        return 0
    if options.overhead:
        from export.bench.overhead import bench_overhead

        print(bench_overhead(options.bundle, batches, options.threads, options.rounds))
        return 0
    from export.bench.peers import bench

    width, _, height = options.image.partition("x")
    result = bench(options.bundle, batches, options.threads, options.rounds, (int(width), int(height)))
    print(result.text())
    if options.out:
        result.write(options.out)
    return 0
