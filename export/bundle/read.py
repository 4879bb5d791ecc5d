"""Read and check a bundle: engines, card, policy, tokenizer, and the manifest that vouches for them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from export.bundle.command import rebuild, rebuild_all, use_policy
from export.bundle.manifest import CARD, POLICY, TOKENIZER, Engine, Manifest
from export.bundle.signature import check_signature
from zoo.contract import schema
from zoo.contract.card import ModelCard
from zoo.contract.panel import AnyPolicy, read_policy
from zoo.errors import BadCardError, BadDataError, IncompatibleBundleError, TamperedFileError
from zoo.files import MANIFEST, check_hashes, is_bundle
from zoo.judging.panel import AnyJudge, bind


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are the ones that its manifest names, with its policy bound to its model once."""

    folder: Path
    manifest: Manifest
    card: ModelCard
    policy: AnyPolicy
    judge: AnyJudge = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "judge", bind(self.card, self.policy))

    def path(self, engine: Engine) -> Path:
        """The file of an engine that is to be loaded."""
        return self.folder / engine.files[0]


def read_bundle(folder: str | Path, *, public_key: Path | None = None, but: Sequence[str] = ()) -> Bundle:
    """Read and check a bundle, and its signature where a key is given (or named by `SAFETY_ZOO_PUBLIC_KEY`).

    `but` are files that are about to be replaced, and may be lost.
    Raises BadInputError (no bundle there), TamperedFileError (missing or changed file, with the command that rebuilds;
    signature), BadCardError (fields, newer schema), BadPolicyError (policy and model do not fit),
    IncompatibleBundleError (an older schema, or not made by export).
    """
    folder = Path(folder)
    manifest = read_manifest(folder, public_key=public_key)
    engine_files = [name for engine in manifest.engines for name in engine.files]
    for required in (*engine_files, CARD, POLICY):
        if required not in manifest.files:
            raise BadCardError(f'{folder / MANIFEST}: field "files" names no {required}')
    check_files(folder, manifest, but)
    card = ModelCard.read(folder / CARD)
    if card.reads_text and TOKENIZER not in manifest.files:
        raise IncompatibleBundleError(f"{folder}: {card.name} reads text, but the bundle has no {TOKENIZER}")
    return Bundle(folder, manifest, card, read_policy(folder / POLICY))


def read_manifest(folder: Path, *, public_key: Path | None = None) -> Manifest:
    """What a bundle says of itself, whatever became of its files. Raises as `read_bundle` does."""
    if not is_bundle(folder):
        raise BadDataError(f"{folder}: holds no {MANIFEST}, so it is no bundle (made by `zoo export onnx`)")
    check_signature(folder / MANIFEST, public_key)
    data = schema.read_json(folder / MANIFEST)
    if isinstance(data, dict) and data.get("schema_version") in (None, 1):
        source = data.get("source", "MODEL")
        raise IncompatibleBundleError(
            f"{folder / MANIFEST}: schema_version {data.get('schema_version')}, from an older safety-zoo; this one "
            f"reads 2; export again: zoo export onnx --model {source} --out {folder} --overwrite"
        )
    return schema.parse(Manifest, data, str(folder / MANIFEST))


def check_files(folder: Path, manifest: Manifest, but: Sequence[str] = ()) -> None:
    """Raise TamperedFileError where a file is not the one that the manifest names, with the command that mends it."""
    damage: dict[str, TamperedFileError] = {}
    for name, wanted in manifest.files.items():
        if name in but:
            continue
        try:
            check_hashes(folder, {name: wanted})
        except TamperedFileError as problem:
            damage[name] = problem
    if damage.keys() == {POLICY}:
        mine = folder / POLICY if (folder / POLICY).is_file() else Path("my_policy.yaml")
        raise TamperedFileError(
            f"{damage[POLICY]}; restore it, or, where it was changed on purpose: {use_policy(mine, folder)}"
        )
    if damage:
        hurt = [engine for engine in manifest.engines if damage.keys() <= set(engine.files)]
        mend = rebuild(manifest, hurt[0], folder) if hurt else rebuild_all(manifest, folder)
        raise TamperedFileError(f"{'; '.join(map(str, damage.values()))}; restore it, or export again: {mend}")
