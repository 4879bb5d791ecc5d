"""`zoo export`: a release becomes an engine in a bundle, and a bundle a model of a Triton server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from export.bundle.manifest import Budget, Precision, Profile, Range
from export.runtime.cuda import gpu_here
from export.verify.report import Check
from zoo.assets import find_asset
from zoo.commands.common import Commands, add_command, add_flag, add_flags, call_with, hparams, read_policy
from zoo.errors import BadArgumentError


def add(commands: Commands) -> None:
    text = "export a model to a bundle that runs without torch"
    parser = add_command(commands, "export", _export_engine, text, "zoo export onnx --model releases/x --out bundles/x")
    formats = parser.add_subparsers(title="formats", metavar="FORMAT", required=True)
    text = "an ONNX graph, for onnxruntime on CPUs and CUDA"
    example = "zoo export onnx --model releases/x --out bundles/x --precision int8"
    _add_engine(formats, "onnx", text, example)
    text = "an OpenVINO graph, for CPUs: fp32, or int8_qdq with --calibrate"
    example = "zoo export openvino --model releases/x --out bundles/x --precision int8_qdq --calibrate photos/"
    _add_engine(formats, "openvino", text, example)
    _add_tensorrt(formats)
    _add_triton(formats)


def _add_engine(formats: Commands, kind: str, text: str, example: str) -> argparse.ArgumentParser:
    """Add a format of engine, with what each takes: the model, the bundle, precision, batches and verification."""
    parser = add_command(formats, kind, _export_engine, text, example)
    parser.set_defaults(kind=kind)
    add_flag(parser, "--model", "release directory, hf-hub:ORG/NAME, or registry name", required=True)
    add_flag(parser, "--out", "bundle; one of this model gets another engine", metavar="DIR", required=True)
    existing = parser.add_mutually_exclusive_group()
    text = "replace the bundle's engine of this name; everything else in it stays"
    existing.add_argument("--replace", action="store_true", help=text)
    add_flag(existing, "--overwrite", "the whole bundle, with its other engines")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of the matrix products")
    text = "what it is for, which sets the usual batches"
    parser.add_argument("--profile", choices=get_args(Profile), default="latency", help=text)
    text = "batches in place of the profile's, as 1:8:64"
    parser.add_argument("--batch", type=parse_range, metavar="MIN:OPT:MAX", help=text)
    text = "int8_qdq: what to find the scales on, as the model reads it: a folder of images, a file of texts (one a "
    text += "line), or a manifest (CSV) with columns image and text"
    parser.add_argument("--calibrate", type=Path, metavar="PATH", help=text)
    text = "random weights, for benchmarks of an architecture"
    parser.add_argument("--untrained", action="store_true", help=text)
    add_flag(parser, "--set", "with --untrained")
    text = "verify the engine, and keep nothing of it when it misses its budget (default: unless it is fp32)"
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, help=text)
    add_check_options(parser)
    return parser


def _add_tensorrt(formats: Commands) -> None:
    text = "a TensorRT plan, for NVIDIA GPUs"
    example = "zoo export tensorrt --model releases/x --out bundles/x --precision fp16 --batch 1:8:64"
    parser = _add_engine(formats, "tensorrt", text, example)
    parser.set_defaults(precision="fp16")
    text = "side in pixels of the images that come in, as 64:224:1024"
    parser.add_argument("--image", type=parse_range, metavar="MIN:OPT:MAX", help=text)
    text = "GPU architecture to build for, as SM86 (repeatable; default with TensorRT for RTX: SM80, SM86, SM89)"
    parser.add_argument("--capability", action="append", default=[], metavar="SM", help=text)
    text = "a policy's phrases: an input, any number of them; built in, for servers; or refitted"
    parser.add_argument("--text-bank", choices=("input", "constant", "refit"), default="input", help=text)
    text = "a plan without weights, filled when it is loaded"
    parser.add_argument("--strip-weights", action="store_true", help=text)
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="with tensorrt: kernels measured before")
    text = "which TensorRT (default: tensorrt, where it is installed)"
    parser.add_argument("--package", choices=("tensorrt", "tensorrt_rtx"), help=text)


def _add_triton(formats: Commands) -> None:
    text = "a bundle's engine as a model of a Triton Inference Server"
    example = "zoo export triton --model bundles/x --out model_repository"
    renamed = {"--bundle": "--model", "--version": "--model-version"}
    parser = add_command(formats, "triton", _export_triton, text, example, renamed)
    add_flag(parser, "--model", "bundle directory", type=Path, required=True)
    add_flag(parser, "--out", "model repository; its other models stay", metavar="DIR", required=True)
    add_flag(parser, "--engine", "(default: its first for onnxruntime)")
    add_flag(parser, "--policy", "its phrases go into the model (default: the bundle's own)")
    add_flag(parser, "--name", "the model in Triton (default: the model's own)")
    _add_number(parser, "--model-version", "version directory; others are kept", 1)
    add_flag(parser, "--device", "(default: the engine's first)", choices=("cpu", "cuda"), default=None)
    _add_number(parser, "--instances", "instances at once", 1)
    text = "largest batch (default: the engine's); 0: none, phrases come with each request"
    _add_number(parser, "--max-batch", text, None)
    _add_number(parser, "--delay-us", "how long a batch waits for more requests, in microseconds", 2000)
    _add_number(parser, "--queue", "requests that may wait; more are refused", 1024)
    add_flag(parser, "--overwrite", "the model with all its versions")


def add_check_options(parser: argparse.ArgumentParser) -> None:
    """Declare what an engine is verified on, and by which budget."""
    parser.add_argument("--images", type=Path, metavar="DIR", help="verify on these images too, beside the drawn ones")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="verify on these texts too, one a line")
    text = "verify on stored examples too: manifest.csv and images"
    parser.add_argument("--adversarial", type=Path, metavar="DIR", help=text)
    add_flag(parser, "--data", "verify on labelled data too, for flips and AUROC")
    add_flags(parser, "--positive-label")
    _add_number(parser, "--count", "photos and drawn images, at least 256", 256)
    text = "budget, a file or a shipped name (default: that of the precision; see `zoo budgets list`)"
    parser.add_argument("--budget", metavar="BUDGET", help=text)


def _add_number(parser: argparse.ArgumentParser, name: str, text: str, default: int | None) -> None:
    parser.add_argument(name, type=int, default=default, metavar="N", help=text)


def read_check(options: argparse.Namespace) -> Check:
    """The check that `add_check_options` describes."""
    budget = find_asset(options.budget, "budget") if options.budget else None
    if budget is not None:
        Budget.read(budget)  # before the export, not after it
    return call_with(Check, options, budget=budget)


def parse_range(text: str) -> Range:
    """`1:8:64` as least, usual and largest; one number stands for all three."""
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f'expected MIN:OPT:MAX such as 1:8:64, or one number, got "{text}"')
    least, usual, largest = map(int, parts * (3 // len(parts)))
    if not 1 <= least <= usual <= largest:
        raise argparse.ArgumentTypeError(f"least, usual and largest must rise from 1 upwards, got {text}")
    return least, usual, largest


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments that `zoo export FORMAT` gives to its exporter (such as `export_onnx`)."""
    if options.set and not options.untrained:
        raise BadArgumentError("--set goes with --untrained: the hyperparameters of a release are fixed")
    wanted = options.verify
    if wanted is None:
        wanted = options.precision != "fp32" and (options.kind != "tensorrt" or gpu_here() is not None)
    same = ("precision", "profile", "batch", "calibrate", "overwrite", "replace")
    return {name: getattr(options, name) for name in same} | {
        "untrained": hparams(options.set) if options.untrained else None,
        "check": read_check(options) if wanted else None,
    }


def _export_engine(options: argparse.Namespace) -> int:
    from export.make import engine_name
    from export.onnx.export import export_onnx
    from export.openvino import export_openvino
    from export.tensorrt.build import PlanOptions
    from export.tensorrt.export import export_tensorrt

    out, common = options.out, engine_options(options)
    if options.kind == "tensorrt":
        manifest = export_tensorrt(options.model, out, plan=call_with(PlanOptions, options), **common)
    else:
        export = {"onnx": export_onnx, "openvino": export_openvino}[options.kind]
        manifest = export(options.model, out, **common)
    engine = manifest.engine(engine_name(options.kind, options.precision, options.profile))
    size = sum((out / name).stat().st_size for name in engine.files) / 1e6
    products = ", ".join(f"{count} {kind}" for kind, count in engine.matmuls.items())
    opset = f"opset {engine.opset}, " if engine.opset else ""
    print(f"{out}: {engine.name}, {opset}{size:.1f} MB, batch {engine.batch}; products: {products}")
    print("inputs " + ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in manifest.inputs))
    verification = engine.verification
    if verification is None:
        print(f"not verified yet: zoo verify {out} --engine {engine.name}")
    else:
        print(f"verified on {verification.inputs} inputs, verdicts that flip: {verification.flips}")
    return 0


def _export_triton(options: argparse.Namespace) -> int:
    from export.triton import export_triton

    policy, version = read_policy(options.policy), options.model_version
    model = call_with(
        export_triton, options, folder=options.model, repository=options.out, policy=policy, version=version
    )
    print(f"{model}: version {options.model_version}; what clients send and get is said in {model / 'config.pbtxt'}")
    return 0
