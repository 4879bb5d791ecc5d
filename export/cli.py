"""`zoo export`, `zoo verify` and `zoo bench`, found by the `zoo` command through its entry points."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import yaml

from export.budget import Budget
from export.bundle import Manifest, Profile
from export.check import Check
from export.cli_bundle import add_bundle, add_policy
from export.cli_tensorrt import add_matrix, add_tensorrt
from export.cli_triton import add_triton
from export.precisions import Precision
from zoo.assets import find_asset
from zoo.commands.common import Commands, add_command
from zoo.errors import BadInputError


def add_export(commands: Commands) -> None:
    """Declare `zoo export` with its formats, and `zoo bundle` and `zoo policy`, for what was exported."""
    text = "export a model to a bundle that runs without torch"
    example = "zoo export onnx --model releases/x --out bundles/x"
    parser = add_command(commands, "export", _export_onnx, text, example)
    formats: Commands = parser.add_subparsers(title="formats", metavar="FORMAT", required=True)
    _add_onnx(formats)
    add_tensorrt(formats)
    add_matrix(formats)
    add_triton(formats)
    add_bundle(commands)
    add_policy(commands)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Declare what every format of engine takes: the model, the bundle, precision, batches and verification."""
    parser.add_argument("--model", required=True, help="release directory, hf-hub:ORG/NAME, or registry name")
    parser.add_argument("--out", type=Path, required=True, help="bundle to write, or one of this model to add to")
    parser.add_argument("--overwrite", action="store_true", help="start the bundle anew, without its other engines")
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="fp32", help="of the matrix products (default: fp32)"
    )
    parser.add_argument(
        "--profile", choices=get_args(Profile), default="latency", help="what it is for; sets the usual batches"
    )
    parser.add_argument("--batch", type=parse_batch, metavar="MIN:OPT:MAX", help="batches instead: 1:8:64 say")
    parser.add_argument(
        "--calibrate", type=Path, metavar="DIR", help="int8_qdq: folder of images to find the scales on"
    )
    parser.add_argument("--untrained", action="store_true", help="random weights, for benchmarks of an architecture")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="with --untrained: a hyperparameter, as YAML"
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        help="verify the engine, and keep nothing of it when it misses its budget (default: unless it is fp32)",
    )
    _add_check_options(parser)


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments that `add_engine_options` gives to an exporter (`export_onnx`)."""
    hparams = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in options.set)}
    if hparams and not options.untrained:
        raise BadInputError("--set goes with --untrained: the hyperparameters of a release are fixed")
    wanted = options.precision != "fp32" if options.verify is None else options.verify
    return {
        "precision": options.precision,
        "profile": options.profile,
        "batch": options.batch,
        "calibrate": options.calibrate,
        "overwrite": options.overwrite,
        "untrained": hparams if options.untrained else None,
        "check": _check(options) if wanted else None,
    }


def parse_batch(text: str) -> tuple[int, int, int]:
    """`1:8:64` as least, usual and largest batch."""
    try:
        least, usual, largest = (int(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f'expected MIN:OPT:MAX such as 1:8:64, got "{text}"') from None
    if not 1 <= least <= usual <= largest:
        raise argparse.ArgumentTypeError(f"batches must rise from 1 upwards, got {text}")
    return least, usual, largest


def add_verify(commands: Commands) -> None:
    """Declare `zoo verify`."""
    text = "compare a bundle with the model it came from: names, shapes, values, verdicts"
    parser = add_command(commands, "verify", _verify, text, "zoo verify bundles/signs --images photos/")
    parser.add_argument("bundle", type=Path, help="bundle directory")
    parser.add_argument("--model", help="release to compare with (default: the one it was exported from)")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME", help="only this engine (repeatable)")
    _add_check_options(parser)


def _add_check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, metavar="DIR", help="verify on these images too, beside the drawn ones")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="and on these texts, one a line")
    parser.add_argument(
        "--adversarial", type=Path, metavar="DIR", help="and on stored examples: manifest.csv and images"
    )
    parser.add_argument(
        "--data", type=Path, metavar="CSV", help="and on labelled data: a manifest, for flips and AUROC"
    )
    parser.add_argument("--positive-label", default="1", metavar="L", help="the label that means unsafe (default: 1)")
    parser.add_argument("--count", type=int, default=256, help="photos and drawn images, at least 256 (default: 256)")
    parser.add_argument("--budget", type=Path, metavar="FILE", help="budget (default: configs/export/PRECISION.yaml)")


def _check(options: argparse.Namespace) -> Check:
    budget = Budget.read(find_asset(options.budget)) if options.budget else None
    return Check(
        images=options.images,
        texts=options.texts,
        adversarial=options.adversarial,
        data=options.data,
        positive_label=options.positive_label,
        count=options.count,
        budget=budget,
    )


def add_bench(commands: Commands) -> None:
    """Declare `zoo bench`."""
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


def _add_onnx(formats: Commands) -> None:
    text = "an ONNX graph, for onnxruntime on CPUs and CUDA"
    example = "zoo export onnx --model releases/x --out bundles/x --precision int8"
    add_engine_options(add_command(formats, "onnx", _export_onnx, text, example))


def _export_onnx(options: argparse.Namespace) -> int:
    from export.onnx import export_onnx

    print_exported(options.out, export_onnx(options.model, options.out, **engine_options(options)))
    return 0


def print_exported(out: Path, manifest: Manifest) -> None:
    """Say what the newest engine of a bundle is."""
    engine = manifest.engines[-1]
    size = sum((out / name).stat().st_size for name in engine.files) / 1e6
    products = ", ".join(f"{count} {kind}" for kind, count in engine.matmuls.items())
    print(f"{out}: {engine.name}, opset {engine.opset}, {size:.1f} MB, batch {engine.batch}; products: {products}")
    print("inputs " + ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in manifest.inputs))
    found = engine.verification
    if found is None:
        print(f"not verified yet: zoo verify {out} --engine {engine.name}")
    else:
        print(f"verified on {found.inputs} inputs: {found.flips} verdicts flip")


def _verify(options: argparse.Namespace) -> int:
    from export.verify import verify

    reports = verify(options.bundle, _check(options), model=options.model, engines=options.engine)
    for report in reports:
        print(report.text())
    for report in reports:
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
    if options.overhead:
        from export.bench_overhead import bench_overhead

        print(bench_overhead(options.bundle, batches, options.threads, options.rounds))
        return 0
    from export.bench import bench

    width, _, height = options.image.partition("x")
    result = bench(options.bundle, batches, options.threads, options.rounds, (int(width), int(height)))
    print(result.text())
    if options.out:
        result.write(options.out)
    return 0
