"""Build an engine, verify it, and place it in a bundle, new or existing: whole or not at all."""

from __future__ import annotations

import dataclasses
import glob
import json
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import torch

import zoo
from export.bundle.manifest import (
    BATCHES,
    TEXT_ENCODER,
    Engine,
    Kind,
    Manifest,
    Precision,
    Profile,
    Range,
    contract,
    given,
    signature_path,
)
from export.bundle.store import Bundle, read_bundle, read_manifest
from export.onnx.graph import text_encoder_graph
from export.precision.nodes import save
from export.source import load, weights_hash
from export.verify.compare import verify_engine
from export.verify.report import Check
from export.verify.threshold import Reference
from zoo.errors import BadArgumentError, IncompatibleBundleError
from zoo.files.held import hashes, is_bundle
from zoo.files.hub import HUB, model_folder
from zoo.files.writing import MANIFEST, POLICY, TOKENIZER, edited_directory, new_directory, write_file
from zoo.models.clip import PhraseEncoder
from zoo.release.store import Release, write_card

#: Why some kinds of engine have no `int8`.
NO_INT8 = {"openvino": "OpenVINO is slow at", "tensorrt": "TensorRT does not read"}
#: An engine, but for what only its writer knows.
Entry = Callable[..., Engine]
#: Writes the files of an engine for these batches, each named STEM.ENDING, and completes its entry in the manifest.
Build = Callable[[Release, Path, Range, Entry], Engine]


class EngineOptions(TypedDict, total=False):
    """What all exporters take beside the precision.

    `batch` replaces the batches of the `profile`. `int8_qdq` takes its scales from `calibrate` (see `calibration` in
    `export.verify.inputs`). With `untrained` a registered architecture is built with random (seeded) weights and these
    hyperparameters, for benchmarks. With `check` the engine is verified before it goes into the bundle. With
    `replace` an engine of that name is built again and all else stays, the bundle's policy too. With `overwrite` the
    bundle is replaced, without its other engines.
    """

    profile: Profile
    batch: Range | None
    calibrate: Path | None
    untrained: dict[str, Any] | None
    check: Check | None
    replace: bool
    overwrite: bool


def engine_name(kind: Kind, precision: Precision, profile: Profile) -> str:
    """The name of an engine in its bundle, such as `onnx-fp16`; it ends with `-throughput` for that profile."""
    return f"{kind}-{precision}" + ("-throughput" if profile == "throughput" else "")


def add_engine(
    source: str | Path, out: Path, kind: Kind, precision: Precision, build: Build, options: EngineOptions
) -> Manifest:
    """Build one engine of a model into the bundle `out`, which is created if it does not exist.

    If anything fails, `out` stays as it was. Raises what `load_release` and `build` raise, BadArgumentError when `out`
    is something else or has an engine of that name, IncompatibleBundleError when it holds other weights, ParityError
    when the engine misses its budget, and with `replace` what `read_bundle` raises about the rest of the bundle.
    """
    if precision == "int8" and kind in NO_INT8:
        why = f"int8 scales its activations as they come, which {NO_INT8[kind]}"
        raise BadArgumentError(f"{why}: use int8_qdq with `calibrate`")
    if str(source).startswith(HUB):
        source = model_folder(source)[1]  # with its commit, which `zoo verify` will ask for again
    profile, overwrite = options.get("profile", "latency"), options.get("overwrite", False)
    untrained = options.get("untrained")
    name, batch = engine_name(kind, precision, profile), options.get("batch") or BATCHES[profile]
    release = load(source, untrained)
    weights = weights_hash(release.model)
    old = None
    if is_bundle(out) and not overwrite:
        existing = _existing(out, name, weights, options.get("replace", False))
        # The policy of the bundle may have changed since then. All its engines answer by the same one.
        old, release = existing.manifest, Release(release.model, release.card, existing.policy)
    ours = (MANIFEST, signature_path(out / MANIFEST).name, *(_listed(out) if overwrite else ()))
    with edited_directory(out) if old else new_directory(out, overwrite=overwrite, ours=ours) as folder:
        if old is None:
            _write_common(release, folder)
        others = old.engines if old else ()
        for file in (file for one in others if one.name == name for file in one.files):
            (folder / file).unlink(missing_ok=True)  # never written in place: it is a link to the file of the bundle
        entry = partial(Engine, name, kind, precision, profile=profile, batch=batch, embedded=release.policy.id)
        engine = build(release, folder / name, batch, entry)
        asked = given(batch=options.get("batch"), calibrate=options.get("calibrate")) | engine.options
        engine = dataclasses.replace(engine, options=asked, versions=_versions() | engine.versions)
        inputs, outputs = contract(release.card)
        files = {file: digest for file, digest in hashes(folder).items() if file not in ours[:2]}
        engines = tuple({one.name: one for one in (*others, engine)}.values())
        manifest = Manifest(engines, inputs, outputs, files, str(source), weights, untrained)
        manifest.write(folder)
        if (check := options.get("check")) is not None:
            built = read_bundle(folder, to_judge=False)  # nobody can have signed it yet
            report = verify_engine(built, engine, Reference(release.model, release.judge), check)
            report.raise_if_failed()
            manifest = report.note(manifest, folder)
    return manifest


def _versions() -> dict[str, str]:
    """The versions of the software that engines of every kind are built with."""
    versions = {"python": platform.python_version(), "safety-zoo": zoo.__version__}
    versions |= {package: version(package) for package in ("torch", "transformers")}
    return versions | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def _existing(out: Path, name: str, weights: str, replace: bool) -> Bundle:
    lost = [
        file for one in read_manifest(out, to_judge=False).engines if one.name == name and replace for file in one.files
    ]
    bundle = read_bundle(out, but=lost, to_judge=False)
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
