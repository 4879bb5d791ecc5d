"""The bundle on disk: engines, card.json, policy.yaml, tokenizer.json and manifest.json. No torch to read it."""

from export.bundle.manifest import (
    CARD,
    POLICY,
    TEXT_ENCODER,
    TOKENIZER,
    Device,
    Difference,
    Engine,
    Given,
    Gpu,
    Kind,
    Manifest,
    Profile,
    Shapes,
    TensorSpec,
    Verification,
)
from export.bundle.store import Bundle, read_bundle
from zoo.files import MANIFEST, is_bundle

__all__ = [
    "CARD",
    "MANIFEST",
    "POLICY",
    "TEXT_ENCODER",
    "TOKENIZER",
    "Bundle",
    "Device",
    "Difference",
    "Engine",
    "Given",
    "Gpu",
    "Kind",
    "Manifest",
    "Profile",
    "Shapes",
    "TensorSpec",
    "Verification",
    "is_bundle",
    "read_bundle",
]
