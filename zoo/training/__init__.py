"""Training with Lightning: modules that hold steps only, data from a manifest, the command line."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.training.adversarial import Adversarial as Adversarial
    from zoo.training.classification import Classification as Classification
    from zoo.training.contrastive import Contrastive as Contrastive
    from zoo.training.data import ManifestData as ManifestData
    from zoo.training.question_data import QuestionData as QuestionData
    from zoo.training.robust_tower import RobustTower as RobustTower
    from zoo.training.vision_language import VisionLanguage as VisionLanguage

# On first use: `zoo data signs` draws pictures and should not wait for Lightning.
_PUBLIC = {
    "Adversarial": "zoo.training.adversarial",
    "Classification": "zoo.training.classification",
    "Contrastive": "zoo.training.contrastive",
    "ManifestData": "zoo.training.data",
    "QuestionData": "zoo.training.question_data",
    "RobustTower": "zoo.training.robust_tower",
    "VisionLanguage": "zoo.training.vision_language",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module zoo.training has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
