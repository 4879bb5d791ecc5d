"""`zoo bundle`, `zoo verify` and `zoo bench`: look into a bundle, sign it, compare it with its release, time it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from export.bundle.manifest import Engine, Verification
from export.bundle.store import Bundle, check_signature, read_bundle, sign
from export.commands.formats import add_check_options, read_check
from zoo.commands.common import Commands, add_command, add_flag, add_flags, call_with, names
from zoo.errors import BadArgumentError, ZooError
from zoo.files.writing import MANIFEST

EXAMPLES = """zoo bench bundles/vit_b32 --against transformers,open_clip --batch-sizes 1,8,32 --out figures
  zoo bench bundles/vit_b32 --input pixels --engine onnx-fp32 --engine onnx-int8

peers (the same CLIP with random weights, so the bundle must be of a safeclip_* model):
  transformers          CLIPModel and CLIPImageProcessorPil, torch eager, float32
  transformers-bf16     the same in bfloat16
  transformers-compile  the same in float32, by torch.compile; needs a C++ compiler and minutes to warm up
  open_clip             open_clip's CLIP and transform, torch eager, float32; needs open_clip_torch and torchvision

In each round all sides run once. Ratios are of medians, to the first peer of the same run."""


def add(commands: Commands) -> None:
    parser = add_command(commands, "bundle", _info, "look into a bundle, or sign it", "zoo bundle info bundles/signs")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    text = "check a bundle and show its engines: precision, batches, verification, which one runs here"
    info = add_command(actions, "info", _info, text, "zoo bundle info bundles/signs --json")
    _add_bundle(info)
    add_flag(info, "--json", "the manifest, with the engine that runs here")
    text = "PEM file to check the signature by (default: the one that SAFETY_ZOO_PUBLIC_KEY names)"
    info.add_argument("--public-key", type=Path, metavar="PEM", help=text)
    text = "sign a bundle's manifest, and so all of its files, with an ed25519 key"
    signing = add_command(actions, "sign", _sign, text, "zoo bundle sign bundles/signs --key private.pem")
    _add_bundle(signing)
    text = "PEM file of a private key: openssl genpkey -algorithm ed25519"
    signing.add_argument("--key", type=Path, required=True, metavar="PEM", help=text)


def add_verify(commands: Commands) -> None:
    text = "compare a bundle with the model it came from: names, shapes, values, verdicts"
    parser = add_command(commands, "verify", _verify, text, "zoo verify bundles/signs --images photos/ --count 500")
    _add_bundle(parser)
    add_flag(parser, "--model", "release to compare with (default: the one it was exported from)")
    add_flag(parser, "--engine", "repeatable (default: all of them)", action="append", default=[])
    text = "it counts for this kind alone; auto is where the runtime would run the engine"
    add_flag(parser, "--device", text, choices=("auto", "cpu", "cuda"), default="auto")
    add_check_options(parser)


def add_bench(commands: Commands) -> None:
    text = "time the engines of a bundle and the same model in other libraries, in turns in one run"
    renamed = {"--batch": "--batch-sizes", "--image": "--jpeg-size"}
    parser = add_command(commands, "bench", _bench, text, EXAMPLES, renamed)
    _add_bundle(parser)
    text = "peers, see below"
    parser.add_argument("--against", default="transformers", metavar="PEER,...", help=text)
    add_flag(parser, "--engine", "repeatable (default: all that run here)", action="append", default=[])
    text = "from JPEG bytes to verdict, or the network alone, from pixels to scores"
    parser.add_argument("--input", choices=("jpeg", "pixels"), default="jpeg", help=text)
    add_flag(parser, "--device", choices=("cpu", "cuda"))
    parser.add_argument("--batch-sizes", default="1,8,32", metavar="N,...", help="batch sizes")
    add_flags(parser, "--threads")
    add_flag(parser, "--rounds", "for each batch size", default=20)
    parser.add_argument("--jpeg-size", default="1024x768", metavar="WxH", help="size of the JPEGs in pixels")
    text = "bench.json, bench.md and the plot bench.png (default: the table is only printed)"
    add_flag(parser, "--out", text, metavar="DIR")


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")


def _info(options: argparse.Namespace) -> int:
    from export.runtime.engine import open_best

    bundle = read_bundle(options.bundle, public_key=options.public_key)
    signed = check_signature(options.bundle / MANIFEST, options.public_key)
    try:
        runs = open_best(bundle, threads=1).why
    except ZooError as problem:  # this command also looks into bundles that cannot run here
        runs = f"none: {problem}"
    if options.json:
        print(json.dumps({**bundle.manifest.to_dict(), "runs_here": runs, "signature_checked": signed}, indent=2))
    else:
        _print_info(bundle, runs, signed)
    return 0


def _print_info(bundle: Bundle, runs: str, signed: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    manifest = bundle.manifest
    size = sum((bundle.folder / name).stat().st_size for name in manifest.files) / 1e6
    title = f"{bundle.card.name}, policy {bundle.policy.id}, {size:.1f} MB"
    table = Table(title=title, caption=f"from {manifest.source}, weights {manifest.weights[:12]}")
    for column in ("engine", "products", "profile", "batch", "runs on", "MB", "verification"):
        table.add_column(column, overflow="fold")
    for engine in manifest.engines:
        megabytes = sum((bundle.folder / name).stat().st_size for name in engine.files) / 1e6
        products = ", ".join(f"{kind} {engine.share(kind):.0%}" for kind in engine.matmuls)
        gpu = f" ({f'{engine.gpu.name} {engine.gpu.capability}'.strip()})" if engine.gpu else ""
        where = ", ".join(engine.runs_on) + gpu
        batch = ":".join(map(str, engine.batch))
        table.add_row(engine.name, products, engine.profile, batch, where, f"{megabytes:.1f}", _verification(engine))
    console = Console()
    console.print(table)
    for engine in manifest.engines:
        versions = ", ".join(f"{name} {number}" for name, number in engine.versions.items())
        console.print(f"{engine.name}: {versions}", highlight=False)
    console.print(f"signature: {'valid' if signed else 'not checked, no key is configured'}")
    console.print(f"runs here: {runs}", highlight=False, markup=False)


def _verification(engine: Engine) -> str:
    return "; ".join(map(_in_words, engine.verifications)) or "not yet"


def _in_words(result: Verification) -> str:
    if "logits" not in result.outputs:
        return f"FAILED: {'; '.join(result.problems)}, on {result.device}"
    logits = result.outputs["logits"].max
    worst = "nan" if logits is None else f"{logits:.1e}"
    word = "passed" if result.passed else "FAILED"
    return f"{word}: {result.flips} of {result.inputs} flip, logits within {worst}, on {result.device}"


def _sign(options: argparse.Namespace) -> int:
    read_bundle(options.bundle, to_judge=False)
    signature = sign(options.bundle / MANIFEST, options.key)
    print(f"{signature}: signed; sign again after anything that changes the manifest")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from export.verify.compare import verify

    reports = call_with(verify, options, folder=options.bundle, check=read_check(options), engines=options.engine)
    for report in reports:
        print(report.text())
    for report in reports:
        report.raise_if_failed()
    return 0


def _bench(options: argparse.Namespace) -> int:
    batches = [_whole(size, "--batch-sizes", "1,8,32") for size in names(options.batch_sizes)]
    from export.bench.compare import bench

    width, _, height = options.jpeg_size.partition("x")
    size = [_whole(side, "--jpeg-size", "1024x768") for side in (width, height)]
    chosen = {"against": names(options.against), "engines": options.engine, "batches": batches, "size": size}
    result = call_with(bench, options, folder=options.bundle, **chosen)
    print(result.text())
    if options.out:
        result.write(options.out)
    return 0


def _whole(text: str, option: str, example: str) -> int:
    """A whole number of an option. Raises BadArgumentError that shows what is expected."""
    if not text.isdecimal():
        raise BadArgumentError(f'{option} takes whole numbers such as {example}, got "{text}"')
    return int(text)
