"""Build an engine, verify it, and place it in a bundle, new or existing: whole or not at all."""

from __future__ import annotations

import dataclasses
import glob
import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import torch

import zoo
from export.bundle.manifest import POLICY, TEXT_ENCODER, TOKENIZER, Engine, Manifest, signature_path
from export.bundle.store import Bundle, read_bundle, read_manifest
from export.onnx.graph import contract, text_encoder_graph
from export.precision.nodes import save
from export.source import load, weights_hash
from export.verify.compare import verify_engine
from export.verify.report import Check
from zoo.errors import BadArgumentError, IncompatibleBundleError
from zoo.files import HUB, MANIFEST, edited_directory, hashes, is_bundle, model_folder, new_directory, write_file
from zoo.models.clip import PhraseEncoder
from zoo.release.store import Release, write_card

#: Writes an engine's files into the folder and says what they are.
Build = Callable[[Release, Path], Engine]


class Placing(TypedDict, total=False):
    """How an engine goes into its bundle: the last arguments of `add_engine`, which all exporters take."""

    overwrite: bool
    replace: bool
    untrained: dict[str, Any] | None
    check: Check | None


def add_engine(
    source: str | Path,
    out: Path,
    name: str,
    build: Build,
    *,
    overwrite: bool = False,
    replace: bool = False,
    untrained: dict[str, Any] | None = None,
    check: Check | None = None,
) -> Manifest:
    """Build one engine of a model into the bundle `out`, which is created if it does not exist.

    With `check` the engine is verified first. If anything fails, `out` stays as it was. With `replace` an engine of
    that name is built again and all else stays, the bundle's policy too. With `overwrite` the bundle is replaced,
    without its other engines. Raises what `load_release` and `build` raise, BadArgumentError when `out` is something
    else or has an engine of that name, IncompatibleBundleError when it holds other weights, ParityError when the engine
    misses its budget, and with `replace` what `read_bundle` raises about the rest of the bundle.
    """
    if str(source).startswith(HUB):
        source = model_folder(source)[1]  # with its commit, which `zoo verify` will ask for again
    release = load(source, untrained)
    weights = weights_hash(release.model)
    old = None
    if is_bundle(out) and not overwrite:
        existing = _existing(out, name, weights, replace)
        # The policy of the bundle may have changed since then. All its engines answer by the same one.
        old, release = existing.manifest, Release(release.model, release.card, existing.policy)
    ours = (MANIFEST, signature_path(out / MANIFEST).name, *(_listed(out) if overwrite else ()))
    with edited_directory(out) if old else new_directory(out, overwrite=overwrite, ours=ours) as folder:
        if old is None:
            _write_common(release, folder)
        engines = {one.name: one for one in old.engines} if old else {}
        for file in engines[name].files if name in engines else ():
            (folder / file).unlink(missing_ok=True)  # never written in place: it is a link to the file of the bundle
        engine = build(release, folder)
        engines[name] = dataclasses.replace(engine, name=name, versions={**_versions(), **engine.versions})
        inputs, outputs = contract(release.card)
        files = {file: digest for file, digest in hashes(folder).items() if file not in ours[:2]}
        manifest = Manifest(tuple(engines.values()), inputs, outputs, files, str(source), weights, untrained)
        manifest.write(folder)
        if check is not None:
            report = verify_engine(read_bundle(folder), engines[name], release.model, check)
            report.raise_if_failed()
            manifest = report.note(manifest, folder)
    return manifest


def _versions() -> dict[str, str]:
    """The versions of the software that engines of every kind are built with."""
    versions = {"python": platform.python_version(), "safety-zoo": zoo.__version__}
    versions |= {package: version(package) for package in ("torch", "transformers")}
    return versions | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def _existing(out: Path, name: str, weights: str, replace: bool) -> Bundle:
    lost = [file for one in read_manifest(out).engines if one.name == name and replace for file in one.files]
    bundle = read_bundle(out, but=lost)
    manifest = bundle.manifest
    if manifest.weights != weights:
        raise IncompatibleBundleError(
            f"{out}: its engines are of {manifest.source} with other weights than these, and a bundle has one model; "
            "give another `out`, or `overwrite` to start again"
        )
    if not replace and any(engine.name == name for engine in manifest.engines):
        raise BadArgumentError(
            f"{out}: has an engine {name} already; `replace` builds it again and keeps the others, `overwrite` starts "
            "the bundle again, or give another `out`"
        )
    return bundle


def _listed(out: Path) -> tuple[str, ...]:
    """The files that a manifest of any schema lists: these may be overwritten with the bundle."""
    try:
        return tuple(map(glob.escape, json.loads((out / MANIFEST).read_bytes())["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _write_common(release: Release, folder: Path) -> None:
    """Write the files that all engines share: card, policy, tokenizer, and the encoder of phrases if any are used."""
    if isinstance(release.model, PhraseEncoder) and release.card.bank_names:
        save(text_encoder_graph(release.model), folder / TEXT_ENCODER)
    write_card(release.card, folder)
    write_file(folder / POLICY, release.policy.to_yaml())
    if release.model.tokenizer_json is not None:
        write_file(folder / TOKENIZER, release.model.tokenizer_json)
