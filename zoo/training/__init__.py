"""Training with Lightning: modules that hold steps only, data from a manifest, the command line."""

from __future__ import annotations

from zoo.training.adversarial import Adversarial
from zoo.training.classification import Classification
from zoo.training.contrastive import Contrastive
from zoo.training.data import ManifestData
from zoo.training.question_data import QuestionData
from zoo.training.robust_tower import RobustTower
from zoo.training.vision_language import VisionLanguage

__all__ = [
    "Adversarial",
    "Classification",
    "Contrastive",
    "ManifestData",
    "QuestionData",
    "RobustTower",
    "VisionLanguage",
]
