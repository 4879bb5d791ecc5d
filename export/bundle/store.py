"""A bundle's folder: read and checked, changed as a whole or not at all. No torch."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.bundle.manifest import Manifest, signature_path
from export.bundle.rebuild import policy_command, rebuild, rebuild_all
from zoo.contract import schema
from zoo.contract.card import ModelCard
from zoo.contract.policy import AnyPolicy, read_policy
from zoo.errors import (
    BadArgumentError,
    BadCardError,
    BadDataError,
    IncompatibleBundleError,
    MissingDependencyError,
    TamperedFileError,
    ZooError,
    near_match,
)
from zoo.files.held import HeldFiles, is_bundle, sha256
from zoo.files.writing import CARD, MANIFEST, POLICY, TOKENIZER, edited_directory, new_file, write_file
from zoo.judging.judge import AnyJudge, bind
from zoo.keys import configured_key


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are the ones that its manifest names, with its policy bound to its model once.

    `files` holds them open: what was hashed is what engines read.
    """

    folder: Path
    manifest: Manifest
    card: ModelCard
    policy: AnyPolicy
    files: HeldFiles = field(repr=False, compare=False)
    judge: AnyJudge = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "judge", bind(self.card, self.policy))


def read_bundle(
    folder: str | Path, *, public_key: str | Path | None = None, but: Sequence[str] = (), to_judge: bool = True
) -> Bundle:
    """Read and check a bundle, and its signature where a key is given (or named by `SAFETY_ZOO_PUBLIC_KEY`).

    `but` are files that are about to be replaced, and may be lost. A bundle that is to be changed or signed, and not
    `to_judge` by, needs no signature.
    Raises BadInputError (no bundle there), TamperedFileError (missing or changed file, with the command that rebuilds;
    signature), BadCardError (fields, newer schema), BadPolicyError (policy and model do not fit),
    IncompatibleBundleError (an older schema, or not made by export).
    """
    folder = Path(folder)
    manifest = read_manifest(folder, public_key=public_key, to_judge=to_judge)
    engine_files = [name for engine in manifest.engines for name in engine.files]
    for required in (*engine_files, CARD, POLICY):
        if required not in manifest.files:
            raise BadCardError(f'{folder / MANIFEST}: field "files" names no {required}')
    files = check_files(folder, manifest, but)
    files.signed = to_judge and configured_key(public_key) is not None
    card = ModelCard.read(folder / CARD, files.read(CARD))
    if card.reads_text and TOKENIZER not in manifest.files:
        raise IncompatibleBundleError(f"{folder}: {card.name} reads text, but the bundle has no {TOKENIZER}")
    return Bundle(folder, manifest, card, read_policy(folder / POLICY, files.read(POLICY)), files)


def _not_a_bundle(folder: Path) -> ZooError:
    if folder.is_file():
        return BadArgumentError(
            f"{folder}: is a file, and a bundle is a directory (made by `zoo export onnx`); give that"
        )
    if not folder.is_dir():
        near = near_match(folder.name, [path.name for path in folder.parent.glob("*") if path.is_dir()])
        return BadArgumentError(f"{folder}: no such directory{near}; a bundle is one on this machine")
    release = f"; export this release: zoo export onnx --model {folder} --out DIR" if (folder / CARD).is_file() else ""
    return BadDataError(f"{folder}: holds no {MANIFEST}, so it is not a bundle (made by `zoo export onnx`){release}")


def read_manifest(folder: Path, *, public_key: str | Path | None = None, to_judge: bool = True) -> Manifest:
    """The manifest of a bundle, without a check of its other files. Raises as `read_bundle` does."""
    if not is_bundle(folder):
        raise _not_a_bundle(folder)
    content = (folder / MANIFEST).read_bytes()
    if to_judge:
        check_signature(folder / MANIFEST, public_key, content)
    data = schema.read_json(folder / MANIFEST, content)
    if isinstance(data, dict) and data.get("schema_version") in (None, 1):
        source = data.get("source", "MODEL")
        raise IncompatibleBundleError(
            f"{folder / MANIFEST}: schema_version {data.get('schema_version')}, from an older safety-zoo; this one "
            f"reads 2; export again: zoo export onnx --model {source} --out {folder} --overwrite"
        )
    return schema.parse(Manifest, data, str(folder / MANIFEST))


def check_files(folder: Path, manifest: Manifest, but: Sequence[str] = ()) -> HeldFiles:
    """The files of a bundle, held open.

    Raises TamperedFileError, with the command that repairs it, for a file that is not the one in the manifest.
    """
    files = HeldFiles(folder)
    damage: dict[str, TamperedFileError] = {}
    for name, wanted in manifest.files.items():
        if name in but:
            continue
        try:
            files.check(name, wanted)
        except TamperedFileError as problem:
            damage[name] = problem
    if damage.keys() == {POLICY}:
        mine = folder / POLICY if (folder / POLICY).is_file() else Path("my_policy.yaml")
        raise TamperedFileError(
            f"{damage[POLICY]}; restore it, or, where it was changed on purpose: {policy_command(mine, folder)}"
        )
    if damage:
        hurt = [engine for engine in manifest.engines if damage.keys() <= set(engine.files)]
        mend = rebuild(manifest, hurt[0], folder) if hurt else rebuild_all(manifest, folder)
        raise TamperedFileError(f"{'; '.join(map(str, damage.values()))}; restore it, or export again: {mend}")
    return files


Banks = Mapping[str, NDArray[np.float32]]
SUFFIX = ".npz"


def write_banks(engine: Path, banks: Banks) -> str:
    """Write the banks `[P, D]` of an engine by input name, beside its file; returns the name of theirs."""
    path = engine.with_suffix(SUFFIX)
    with new_file(path, "wb") as stream:
        np.savez(stream, allow_pickle=False, **banks)
    return path.name


def read_banks(files: HeldFiles, engine: str) -> dict[str, NDArray[np.float32]]:
    """The banks beside an engine's file; empty without such a file."""
    name = Path(engine).with_suffix(SUFFIX).name
    if not files.has(name):
        return {}
    with np.load(io.BytesIO(files.read(name)), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def use_policy(folder: Path, policy: AnyPolicy) -> None:
    """Give a bundle another policy, whole or not at all; a signature is removed, because it was of the old one.

    The bundle's own `policy.yaml` may have been changed or lost, but no other file. Raises what `read_bundle` raises,
    BadPolicyError when policy and model do not fit.
    """
    manifest = read_manifest(folder, to_judge=False)
    files = check_files(folder, manifest, but=(POLICY,))
    bind(ModelCard.read(folder / CARD, files.read(CARD)), policy)
    with edited_directory(folder) as work:
        write_file(work / POLICY, policy.to_yaml())
        dataclasses.replace(manifest, files={**manifest.files, POLICY: sha256(work / POLICY)}).write(work)


def sign(manifest: Path, private_key: Path) -> Path:
    """Sign a manifest with an ed25519 key (PEM, `openssl genpkey -algorithm ed25519`); returns the signature's path.

    Anything that writes the manifest afterwards (`zoo verify`, another engine) makes the signature invalid: sign last.
    Raises BadInputError for another kind of key, MissingDependencyError without `cryptography`.
    """
    configured_key()  # raises for an empty setting
    path = signature_path(manifest)
    write_file(path, _key(private_key, "private").sign(manifest.read_bytes()))
    return path


def check_signature(manifest: Path, public_key: str | Path | None = None, content: bytes | None = None) -> bool:
    """Whether the manifest, or its `content`, is signed by the given key, or by that of `SAFETY_ZOO_PUBLIC_KEY`.

    False when no key is configured: then nothing was checked. Raises TamperedFileError when the signature is missing
    or wrong, BadDataError for a file that is not an ed25519 public key, MissingDependencyError without `cryptography`.
    """
    path = configured_key(public_key)
    if path is None:
        return False
    key = _key(path, "public")
    from cryptography.exceptions import InvalidSignature

    if not signature_path(manifest).is_file():
        raise TamperedFileError(
            f"{manifest}: not signed, and the key {path} is required; sign it with `zoo bundle sign`, or use a signed "
            "bundle"
        )
    try:
        key.verify(signature_path(manifest).read_bytes(), manifest.read_bytes() if content is None else content)
    except InvalidSignature:
        raise TamperedFileError(f"{manifest}: the signature is not one by {path} of this very manifest") from None
    return True


def _key(path: Path, kind: Literal["private", "public"]) -> Any:
    """The ed25519 key in a PEM file. Raises BadInputError for another one, or none."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingDependencyError(
            "a signature key is given, and checking it needs cryptography: pip install 'safety-zoo[sign]'"
        ) from None
    try:
        data = path.read_bytes()
        key = form.load_pem_private_key(data, None) if kind == "private" else form.load_pem_public_key(data)
    except OSError as problem:
        raise BadDataError(f"{path}: key cannot be read: {problem.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as problem:  # TypeError: it is encrypted
        raise BadDataError(f"{path}: not a readable {kind} key ({problem})") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey if kind == "private" else ed25519.Ed25519PublicKey):
        hint = "-out private.pem" if kind == "private" else "-out private.pem && openssl pkey -in private.pem -pubout"
        raise BadDataError(f"{path}: not an ed25519 {kind} key; make one: openssl genpkey -algorithm ed25519 {hint}")
    return key
