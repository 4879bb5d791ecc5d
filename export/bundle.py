"""The bundle on disk: model.onnx, card.json, policy.yaml, tokenizer.json and the manifest that vouches for them.

No torch: the runtime reads bundles with this.
"""

from __future__ import annotations

import json
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from zoo import schema
from zoo.card import ModelCard
from zoo.errors import BadCardError, BadInputError, IncompatibleBundleError, TamperedFileError
from zoo.files import check_hashes
from zoo.panel import AnyPolicy, bind, read_policy

MODEL, TEXT_ENCODER, MANIFEST = "model.onnx", "text_encoder.onnx", "manifest.json"
CARD, POLICY, TOKENIZER = "card.json", "policy.yaml", "tokenizer.json"


@dataclass(frozen=True, config=schema.STRICT)
class TensorSpec:
    """One input or output of the graph. A string in `shape` is a dimension that may vary."""

    name: str
    dtype: Literal["uint8", "int64", "bool", "float32"]
    shape: tuple[int | str, ...]
    optional: bool = False


@dataclass(frozen=True, config=schema.STRICT)
class Verification:
    """What `zoo verify` found; `max_logit_difference` is None where the bundle answered no finite number."""

    passed: bool
    inputs: int
    at_threshold: int
    flips: int
    max_logit_difference: float | None
    tolerance: float
    image_source: str


@dataclass(frozen=True, config=schema.STRICT)
class Manifest:
    """What is in a bundle and how it was built. `files` are the sha256 of every other file.

    `source` is the release or registry name that was exported, for `zoo verify`. `verification` is None until
    the bundle was compared with it.
    """

    precision: Literal["fp32"]
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: dict[str, str]
    source: str
    versions: dict[str, str] = field(default_factory=dict)
    verification: Verification | None = None
    schema_version: Literal[1] = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `parse` reads back to an equal manifest."""
        return schema.dump(self)

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into a bundle."""
        (folder / MANIFEST).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


@plain_dataclass(frozen=True)
class Bundle:
    """A bundle whose files were found to be the ones that its manifest names."""

    folder: Path
    manifest: Manifest
    card: ModelCard
    policy: AnyPolicy


def read_bundle(folder: str | Path) -> Bundle:
    """Read and check a bundle.

    Raises BadInputError (no bundle there), TamperedFileError (missing or changed file), BadCardError (fields,
    newer schema), BadPolicyError (policy and model do not fit), IncompatibleBundleError (not made by export).
    """
    folder = Path(folder)
    if not is_bundle(folder):
        raise BadInputError(f"{folder}: holds no {MANIFEST}, so it is no bundle (made by `zoo export onnx`)")
    manifest = schema.parse(Manifest, schema.read_json(folder / MANIFEST), str(folder / MANIFEST))
    for required in (MODEL, CARD, POLICY):
        if not (folder / required).is_file():
            raise TamperedFileError(f"{folder / required}: missing; a bundle without it cannot answer")
        if required not in manifest.files:
            raise BadCardError(f'{folder / MANIFEST}: field "files" names no {required}')
    check_hashes(folder, manifest.files)
    card = ModelCard.read(folder / CARD)
    if card.reads_text and TOKENIZER not in manifest.files:
        raise IncompatibleBundleError(f"{folder}: {card.name} reads text, but the bundle has no {TOKENIZER}")
    policy = read_policy(folder / POLICY)
    bind(card, policy)
    return Bundle(folder, manifest, card, policy)


def is_bundle(folder: str | Path) -> bool:
    """Whether a path is a directory with a manifest."""
    return (Path(folder) / MANIFEST).is_file()
