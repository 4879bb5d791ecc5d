"""Read and check a bundle: engines, card, policy, tokenizer, and the manifest that vouches for them. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.bundle.manifest import CARD, MANIFEST, POLICY, TOKENIZER, Engine, Manifest
from export.bundle.signature import check_signature
from zoo import schema
from zoo.card import ModelCard
from zoo.errors import BadCardError, BadInputError, IncompatibleBundleError, TamperedFileError
from zoo.files import check_hashes
from zoo.panel import AnyPolicy, bind, read_policy


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were found to be the ones that its manifest names."""

    folder: Path
    manifest: Manifest
    card: ModelCard
    policy: AnyPolicy

    def path(self, engine: Engine) -> Path:
        """The file of an engine that is to be loaded."""
        return self.folder / engine.files[0]


def read_bundle(folder: str | Path, *, public_key: Path | None = None) -> Bundle:
    """Read and check a bundle, and its signature where a key is given (or named by `SAFETY_ZOO_PUBLIC_KEY`).

    Raises BadInputError (no bundle there), TamperedFileError (missing or changed file, signature), BadCardError
    (fields, newer schema), BadPolicyError (policy and model do not fit), IncompatibleBundleError (an older schema, or
    not made by export).
    """
    folder = Path(folder)
    if not is_bundle(folder):
        raise BadInputError(f"{folder}: holds no {MANIFEST}, so it is no bundle (made by `zoo export onnx`)")
    check_signature(folder / MANIFEST, public_key)
    manifest = _read_manifest(folder)
    engine_files = [name for engine in manifest.engines for name in engine.files]
    for required in (*engine_files, CARD, POLICY):
        if not (folder / required).is_file():
            raise TamperedFileError(f"{folder / required}: missing; a bundle without it cannot answer")
        if required not in manifest.files:
            raise BadCardError(f'{folder / MANIFEST}: field "files" names no {required}')
    try:
        check_hashes(folder, manifest.files)
    except TamperedFileError as problem:
        mend = manifest.rebuild(manifest.engines[0], folder)
        raise TamperedFileError(f"{problem}; restore it, or export again: {mend}") from None
    card = ModelCard.read(folder / CARD)
    if card.reads_text and TOKENIZER not in manifest.files:
        raise IncompatibleBundleError(f"{folder}: {card.name} reads text, but the bundle has no {TOKENIZER}")
    policy = read_policy(folder / POLICY)
    bind(card, policy)
    return Bundle(folder, manifest, card, policy)


def is_bundle(folder: str | Path) -> bool:
    """Whether a path is a directory with a manifest."""
    return (Path(folder) / MANIFEST).is_file()


def _read_manifest(folder: Path) -> Manifest:
    data = schema.read_json(folder / MANIFEST)
    if isinstance(data, dict) and data.get("schema_version") in (None, 1):
        source = data.get("source", "MODEL")
        raise IncompatibleBundleError(
            f"{folder / MANIFEST}: schema_version {data.get('schema_version')}, from an older safety-zoo; this one "
            f"reads 2; export again: zoo export onnx --model {source} --out {folder} --overwrite"
        )
    return schema.parse(Manifest, data, str(folder / MANIFEST))
