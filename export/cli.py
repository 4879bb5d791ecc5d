"""`zoo export`, `zoo verify` and `zoo bench`, found by the `zoo` command through its entry points."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from zoo.commands.common import Commands, add_command
from zoo.errors import BadInputError


def add_export(commands: Commands) -> None:
    """Declare `zoo export`."""
    text = "export a model to a bundle that runs without torch"
    parser = add_command(commands, "export", _export, text, "zoo export onnx --model releases/x --out bundles/x")
    parser.add_argument("format", choices=("onnx",), help="engine to export to")
    parser.add_argument("--model", required=True, help="release directory, hf-hub:ORG/NAME, or registry name")
    parser.add_argument("--out", type=Path, required=True, help="bundle directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument("--untrained", action="store_true", help="random weights, for benchmarks of an architecture")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="with --untrained: a hyperparameter, as YAML"
    )


def add_verify(commands: Commands) -> None:
    """Declare `zoo verify`."""
    text = "compare a bundle with the model it came from: names, shapes, values, verdicts"
    parser = add_command(commands, "verify", _verify, text, "zoo verify bundles/signs --images photos/")
    parser.add_argument("bundle", type=Path, help="bundle directory")
    parser.add_argument("--model", help="release to compare with (default: the one it was exported from)")
    parser.add_argument("--images", type=Path, help="folder of images to use beside the drawn ones")
    parser.add_argument("--count", type=int, default=256, help="how many inputs, at least 256 (default: 256)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest logit difference (default: 1e-4)")


def add_bench(commands: Commands) -> None:
    """Declare `zoo bench`."""
    text = "time a bundle from JPEG bytes to verdict, against transformers in the same run"
    parser = add_command(commands, "bench", _bench, text, "zoo bench bundles/vit_b32 --batch 1,8,32 --threads 2")
    parser.add_argument("bundle", type=Path, nargs="?", help="bundle directory of a safeclip_* model")
    parser.add_argument("--startup", action="store_true", help="instead: time how fast the commands start")
    parser.add_argument("--heads", metavar="PANEL", help="instead: time each head of a registered panel and its tower")
    parser.add_argument("--against", choices=("transformers",), default="transformers", help="the peer")
    parser.add_argument("--batch", default="1,8,32", help="batch sizes (default: 1,8,32)")
    parser.add_argument("--threads", type=int, default=2, help="threads of either side (default: 2)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds of each batch size (default: 20)")
    parser.add_argument("--image", default="1024x768", help="size of the JPEGs (default: 1024x768)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")


def _export(options: argparse.Namespace) -> int:
    from export.onnx import export_onnx

    hparams = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in options.set)}
    if hparams and not options.untrained:
        raise BadInputError("--set goes with --untrained: the hyperparameters of a release are fixed")
    manifest = export_onnx(
        options.model, options.out, overwrite=options.overwrite, untrained=hparams if options.untrained else None
    )
    size = sum(path.stat().st_size for path in options.out.iterdir()) / 1e6
    inputs = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in manifest.inputs)
    print(f"{options.out}: {manifest.precision}, opset {manifest.opset}, {size:.1f} MB; inputs {inputs}")
    print(f"not verified yet: zoo verify {options.out}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from export.verify import verify

    report = verify(
        options.bundle, model=options.model, images=options.images, count=options.count, tolerance=options.tolerance
    )
    print(report.text())
    report.raise_if_failed()
    return 0


def _bench(options: argparse.Namespace) -> int:
    if [options.bundle is not None, options.startup, options.heads is not None].count(True) != 1:
        raise BadInputError("zoo bench takes a bundle directory, or --startup, or --heads PANEL")
    if options.startup:
        from export.bench_startup import bench_startup

        print(bench_startup(options.rounds))
        return 0
    batches = [int(size) for size in options.batch.split(",")]
    if options.heads:
        from export.bench_heads import bench_heads

        for batch in batches:
            print(bench_heads(options.heads, batch, options.threads, options.rounds) + "\n")
        return 0
    from export.bench import bench

    width, _, height = options.image.partition("x")
    result = bench(options.bundle, batches, options.threads, options.rounds, (int(width), int(height)))
    print(result.text())
    if options.out:
        result.write(options.out)
    return 0
