"""What the exporters' subcommands share: the options of every engine, those of verification, and what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import yaml

from export.bundle.manifest import Budget, Kind, Manifest, Precision, Profile
from export.verify.report import Check
from zoo.assets import find_asset
from zoo.errors import BadArgumentError


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Declare what every format of engine takes: the model, the bundle, precision, batches and verification."""
    parser.add_argument("--model", required=True, help="release directory, hf-hub:ORG/NAME, or registry name")
    parser.add_argument("--out", type=Path, required=True, help="bundle to write, or one of this model to add to")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--replace",
        action="store_true",
        help="make the bundle's engine of this name anew; all else in it stays",
    )
    existing.add_argument("--overwrite", action="store_true", help="start the bundle anew, without its other engines")
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="fp32", help="of the matrix products (default: fp32)"
    )
    parser.add_argument(
        "--profile", choices=get_args(Profile), default="latency", help="what it is for; sets the usual batches"
    )
    parser.add_argument("--batch", type=parse_range, metavar="MIN:OPT:MAX", help="batches instead: 1:8:64 say")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="PATH",
        help="int8_qdq: what to find the scales on, as the model reads it: a folder of images, a file of texts (one a "
        "line), or a manifest (CSV) with columns image and text",
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
    add_check_options(parser)


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments that `add_engine_options` gives to an exporter (`export_onnx`)."""
    hparams = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in options.set)}
    if hparams and not options.untrained:
        raise BadArgumentError("--set goes with --untrained: the hyperparameters of a release are fixed")
    wanted = options.precision != "fp32" if options.verify is None else options.verify
    return {
        "precision": options.precision,
        "profile": options.profile,
        "batch": options.batch,
        "calibrate": options.calibrate,
        "overwrite": options.overwrite,
        "replace": options.replace,
        "untrained": hparams if options.untrained else None,
        "check": read_check(options) if wanted else None,
    }


def parse_range(text: str) -> tuple[int, int, int]:
    """`1:8:64` as least, usual and largest; one number stands for all three."""
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f'expected MIN:OPT:MAX such as 1:8:64, or one number, got "{text}"')
    least, usual, largest = map(int, parts * (3 // len(parts)))
    if not 1 <= least <= usual <= largest:
        raise argparse.ArgumentTypeError(f"least, usual and largest must rise from 1 upwards, got {text}")
    return least, usual, largest


def add_check_options(parser: argparse.ArgumentParser) -> None:
    """Declare what an engine is verified on, and by which budget."""
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


def read_check(options: argparse.Namespace) -> Check:
    """The check that `add_check_options` describes."""
    budget = find_asset(options.budget) if options.budget else None
    if budget is not None:
        Budget.read(budget)  # before the export, not after it
    return Check(
        images=options.images,
        texts=options.texts,
        adversarial=options.adversarial,
        data=options.data,
        positive_label=options.positive_label,
        count=options.count,
        budget=budget,
    )


def print_exported(options: argparse.Namespace, kind: Kind, manifest: Manifest) -> None:
    """Say what the engine that was just exported is."""
    from export.onnx.export import engine_name

    out: Path = options.out
    engine = manifest.engine(engine_name(kind, options.precision, options.profile))
    size = sum((out / name).stat().st_size for name in engine.files) / 1e6
    products = ", ".join(f"{count} {kind}" for kind, count in engine.matmuls.items())
    opset = f"opset {engine.opset}, " if engine.opset else ""
    print(f"{out}: {engine.name}, {opset}{size:.1f} MB, batch {engine.batch}; products: {products}")
    print("inputs " + ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in manifest.inputs))
    found = engine.verification
    if found is None:
        print(f"not verified yet: zoo verify {out} --engine {engine.name}")
    else:
        print(f"verified on {found.inputs} inputs, verdicts that flip: {found.flips}")
