"""The command that makes an engine of a bundle again, from what its manifest keeps. No torch."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from export.bundle.manifest import Engine, Given, Manifest, given


def rebuild(manifest: Manifest, engine: Engine, folder: Path, **changes: object) -> str:
    """The command that builds one engine again as it was and keeps the others of the bundle.

    `changes` replace options that it was exported with, such as `text_bank="input"`. An engine that was verified is
    verified again, on the same inputs.
    """
    return _command(manifest, engine, folder, "--replace", given(**changes))


def rebuild_all(manifest: Manifest, folder: Path) -> str:
    """The commands that build all engines of a bundle again, for when a file that they share is lost."""
    first, *others = manifest.engines
    lines = [_command(manifest, first, folder, "--overwrite"), *(_command(manifest, one, folder, "") for one in others)]
    return " && ".join(lines)


def runs_anywhere(manifest: Manifest, folder: Path) -> str:
    """The command that adds a float32 ONNX engine, which any machine with onnxruntime can run."""
    return " ".join(["zoo export onnx", *_source(manifest), "--precision fp32 --out", shlex.quote(str(folder))])


def policy_command(policy: Path, folder: Path) -> str:
    """The command that makes a file the policy of a bundle."""
    return f"zoo policy use {shlex.quote(str(policy))} --model {shlex.quote(str(folder))}"


def _command(manifest: Manifest, engine: Engine, folder: Path, mode: str, changes: Given | None = None) -> str:
    words = ["zoo export", engine.kind, *_source(manifest), "--precision", engine.precision]
    if engine.profile != "latency":
        words += ["--profile", engine.profile]
    words += _options(engine.options | (changes or {}))
    if engine.verification is not None:
        words += ["--verify", *_options(engine.verification.options)]
    elif engine.precision != "fp32":
        words.append("--no-verify")
    return " ".join([*words, "--out", shlex.quote(str(folder)), *([mode] if mode else [])])


def _source(manifest: Manifest) -> list[str]:
    words = ["--model", shlex.quote(manifest.source)]
    if manifest.untrained is not None:
        words.append("--untrained")
        for name, value in manifest.untrained.items():
            words += ["--set", shlex.quote(f"{name}={json.dumps(value)}")]
    return words


def _options(options: Given) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words += [f"--{name}"] if value else []
        else:
            for one in [value] if isinstance(value, str) else value:
                words += [f"--{name}", shlex.quote(one)]
    return words
