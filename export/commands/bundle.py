"""`zoo bundle`: look into a bundle, or sign it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from export.bundle.manifest import Engine
from export.bundle.store import Bundle, read_bundle
from zoo.commands.common import Commands, add_command
from zoo.files import MANIFEST


def add(commands: Commands) -> None:
    """Declare the subcommand and its actions."""
    parser = add_command(commands, "bundle", _info, "look into a bundle, or sign it", "zoo bundle info bundles/signs")
    actions: Commands = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    text = "check a bundle and show its engines: precision, batches, verification, which one runs here"
    info = add_command(actions, "info", _info, text, "zoo bundle info bundles/signs --json")
    info.add_argument("bundle", type=Path, help="bundle directory")
    info.add_argument("--json", action="store_true", help="the manifest as JSON, with the engine that runs here")
    info.add_argument("--public-key", type=Path, help="PEM file; SAFETY_ZOO_PUBLIC_KEY names one for every bundle")
    text = "sign a bundle's manifest, and so all of its files, with an ed25519 key"
    sign = add_command(actions, "sign", _sign, text, "zoo bundle sign bundles/signs --key private.pem")
    sign.add_argument("bundle", type=Path, help="bundle directory, complete and verified")
    sign.add_argument("--key", type=Path, required=True, help="PEM file: openssl genpkey -algorithm ed25519")


def _info(options: argparse.Namespace) -> int:
    from export.bundle.store import check_signature
    from export.runtime.engine import open_best
    from zoo.errors import ZooError

    bundle = read_bundle(options.bundle, public_key=options.public_key)
    signed = check_signature(options.bundle / MANIFEST, options.public_key)
    try:
        runs = open_best(bundle, threads=1).why
    except ZooError as problem:  # to look into a bundle that cannot run here is what this command is for
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
        where = ", ".join(engine.runs_on) + (
            f" ({' '.join(filter(None, (engine.gpu.name, engine.gpu.capability)))})" if engine.gpu else ""
        )
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
    found = engine.verification
    if found is None:
        return "not yet"
    logits = found.outputs["logits"].max
    worst = "nan" if logits is None else f"{logits:.1e}"
    word = "passed" if found.passed else "FAILED"
    return f"{word}: {found.flips} of {found.inputs} flip, logits within {worst}, on {found.device}"


def _sign(options: argparse.Namespace) -> int:
    from export.bundle.store import sign

    read_bundle(options.bundle)
    print(
        f"{sign(options.bundle / MANIFEST, options.key)}: signed; sign again after anything that changes the manifest"
    )
    return 0
