"""`zoo export`: a release becomes an engine in a bundle, and a bundle a model of a Triton server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from export.bundle.manifest import Budget, Kind, Manifest, Precision, Profile
from export.verify.report import Check
from zoo.assets import find_asset
from zoo.commands.common import Commands, add_command, add_flag, add_flags, call_with, hparams, read_policy
from zoo.errors import BadArgumentError, IncompatibleBundleError, MissingDependencyError


def add(commands: Commands) -> None:
    text = "export a model to a bundle that runs without torch"
    parser = add_command(commands, "export", _export_onnx, text, "zoo export onnx --model releases/x --out bundles/x")
    formats = parser.add_subparsers(title="formats", metavar="FORMAT", required=True)
    text = "an ONNX graph, for onnxruntime on CPUs and CUDA"
    example = "zoo export onnx --model releases/x --out bundles/x --precision int8"
    _add_engine_options(add_command(formats, "onnx", _export_onnx, text, example))
    text = "an OpenVINO graph, for CPUs: fp32, or int8_qdq with --calibrate"
    example = "zoo export openvino --model releases/x --out bundles/x --precision int8_qdq --calibrate photos/"
    _add_engine_options(add_command(formats, "openvino", _export_openvino, text, example))
    _add_tensorrt(formats)
    _add_triton(formats)


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Declare what every format of engine takes: the model, the bundle, precision, batches and verification."""
    add_flag(parser, "--model", "release directory, hf-hub:ORG/NAME, or registry name", required=True)
    add_flag(parser, "--out", "bundle; one of this model gets another engine", metavar="DIR", required=True)
    existing = parser.add_mutually_exclusive_group()
    text = "replace the bundle's engine of this name; everything else in it stays"
    existing.add_argument("--replace", action="store_true", help=text)
    add_flag(existing, "--overwrite", "the whole bundle, with its other engines")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of the matrix products")
    parser.add_argument(
        "--profile", choices=get_args(Profile), default="latency", help="what it is for, which sets the usual batches"
    )
    parser.add_argument(
        "--batch", type=parse_range, metavar="MIN:OPT:MAX", help="batches in place of the profile's, as 1:8:64"
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="PATH",
        help="int8_qdq: what to find the scales on, as the model reads it: a folder of images, a file of texts (one a "
        "line), or a manifest (CSV) with columns image and text",
    )
    text = "random weights, for benchmarks of an architecture"
    parser.add_argument("--untrained", action="store_true", help=text)
    add_flag(parser, "--set", "with --untrained")
    text = "verify the engine, and keep nothing of it when it misses its budget (default: unless it is fp32)"
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, help=text)
    add_check_options(parser)


def _add_tensorrt(formats: Commands) -> None:
    text = "a TensorRT plan, for NVIDIA GPUs"
    example = "zoo export tensorrt --model releases/x --out bundles/x --precision fp16 --batch 1:8:64"
    parser = add_command(formats, "tensorrt", _export_tensorrt, text, example)
    _add_engine_options(parser)
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
    text = "version directory; others are kept"
    parser.add_argument("--model-version", type=int, default=1, metavar="N", help=text)
    add_flag(parser, "--device", "(default: the engine's first)", choices=("cpu", "cuda"), default=None)
    parser.add_argument("--instances", type=int, default=1, metavar="N", help="instances at once")
    text = "largest batch (default: the engine's); 0: none, phrases come with each request"
    parser.add_argument("--max-batch", type=int, metavar="N", help=text)
    text = "how long a batch waits for more requests, in microseconds"
    parser.add_argument("--delay-us", type=int, default=2000, metavar="N", help=text)
    text = "requests that may wait; more are refused"
    parser.add_argument("--queue", type=int, default=1024, metavar="N", help=text)
    add_flag(parser, "--overwrite", "the model with all its versions")


def add_check_options(parser: argparse.ArgumentParser) -> None:
    """Declare what an engine is verified on, and by which budget."""
    parser.add_argument("--images", type=Path, metavar="DIR", help="verify on these images too, beside the drawn ones")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="verify on these texts too, one a line")
    text = "verify on stored examples too: manifest.csv and images"
    parser.add_argument("--adversarial", type=Path, metavar="DIR", help=text)
    add_flag(parser, "--data", "verify on labelled data too, for flips and AUROC")
    add_flags(parser, "--positive-label")
    text = "photos and drawn images, at least 256"
    parser.add_argument("--count", type=int, default=256, metavar="N", help=text)
    text = "budget, a file or a shipped name (default: that of the precision; see `zoo budgets list`)"
    parser.add_argument("--budget", metavar="BUDGET", help=text)


def read_check(options: argparse.Namespace) -> Check:
    """The check that `add_check_options` describes."""
    budget = find_asset(options.budget, "budget") if options.budget else None
    if budget is not None:
        Budget.read(budget)  # before the export, not after it
    return call_with(Check, options, budget=budget)


def parse_range(text: str) -> tuple[int, int, int]:
    """`1:8:64` as least, usual and largest; one number stands for all three."""
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f'expected MIN:OPT:MAX such as 1:8:64, or one number, got "{text}"')
    least, usual, largest = map(int, parts * (3 // len(parts)))
    if not 1 <= least <= usual <= largest:
        raise argparse.ArgumentTypeError(f"least, usual and largest must rise from 1 upwards, got {text}")
    return least, usual, largest


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments that `zoo export FORMAT` gives to an exporter (`export_onnx`)."""
    if options.set and not options.untrained:
        raise BadArgumentError("--set goes with --untrained: the hyperparameters of a release are fixed")
    wanted = options.precision != "fp32" if options.verify is None else options.verify
    same = ("precision", "profile", "batch", "calibrate", "overwrite", "replace")
    return {name: getattr(options, name) for name in same} | {
        "untrained": hparams(options.set) if options.untrained else None,
        "check": read_check(options) if wanted else None,
    }


def _export_onnx(options: argparse.Namespace) -> int:
    from export.onnx.export import export_onnx

    _print_exported(options, "onnx", export_onnx(options.model, options.out, **engine_options(options)))
    return 0


def _export_openvino(options: argparse.Namespace) -> int:
    from export.openvino import export_openvino

    _print_exported(options, "openvino", export_openvino(options.model, options.out, **engine_options(options)))
    return 0


def _export_tensorrt(options: argparse.Namespace) -> int:
    from export.tensorrt.export import PlanOptions, export_tensorrt

    if options.verify is None:
        options.verify = options.precision != "fp32" and _gpu_here()
    common = engine_options(options)
    del common["batch"]  # one of the options of a plan
    chosen = call_with(PlanOptions, options, capabilities=options.capability)
    manifest = export_tensorrt(options.model, options.out, options=chosen, **common)
    _print_exported(options, "tensorrt", manifest)
    return 0


def _gpu_here() -> bool:
    from export.runtime.cuda import local_gpu

    try:
        local_gpu()
    except (IncompatibleBundleError, MissingDependencyError):
        return False
    return True


def _export_triton(options: argparse.Namespace) -> int:
    from export.triton import export_triton

    policy, version = read_policy(options.policy), options.model_version
    model = call_with(
        export_triton, options, folder=options.model, repository=options.out, policy=policy, version=version
    )
    print(f"{model}: version {options.model_version}; what clients send and get is said in {model / 'config.pbtxt'}")
    return 0


def _print_exported(options: argparse.Namespace, kind: Kind, manifest: Manifest) -> None:
    """Say what the engine that was just exported is."""
    from export.onnx.export import engine_name

    out: Path = options.out
    engine = manifest.engine(engine_name(kind, options.precision, options.profile))
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
