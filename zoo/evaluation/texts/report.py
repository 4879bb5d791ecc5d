"""Everything that was measured of one model of texts, as one JSON that reads itself back."""

from __future__ import annotations

from typing import Any, Literal

from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.contract.card import Measurement
from zoo.evaluation.report import Report
from zoo.evaluation.texts.figures import Condition


@dataclass(frozen=True, config=schema.STRICT)
class Category:
    """How many texts are of a category and how many were judged not to be; `style` marks a test of style."""

    name: str
    positives: int
    negatives: int
    sources: tuple[str, ...]
    style: bool


@dataclass(frozen=True, config=schema.STRICT)
class Latency:
    """Milliseconds for one text alone, from the text to its answer: median and 90th percentile of `count` texts."""

    what: str
    p50_ms: float
    p90_ms: float
    count: int


@dataclass(frozen=True, config=schema.STRICT)
class TextReport(Report):
    """A model, and a baseline beside it (empty where there was none), on one split of a manifest.

    The first condition is the clean one; the others change texts within the budget of `threat`. Categories whose
    positives and negatives share no source are tests of style: they have figures, and are in no mean. `strengths` are
    those of the baseline's regularisation that validation chose. Intervals are 95 %, bootstrap over texts, drawn
    together for all rankers.
    """

    _where = "text report"

    source: str
    baseline: str
    strengths: dict[str, float]
    data: str
    data_sha256: str
    split: str
    texts: int
    categories: tuple[Category, ...]
    conditions: tuple[Condition, ...]
    latency: tuple[Latency, ...]
    threat: dict[str, Any]
    seed: int
    seconds: float
    schema_version: Literal[1] = 1

    def measurements(self) -> list[Measurement]:
        """For the card: mean AUPRC and AUROC on clean texts, and the relative loss under each attack."""
        data = f"{self.data}, {self.split}"
        found = []
        for condition in self.conditions:
            own = condition.rankers[0]
            threat = (
                "" if condition.changed == "none" else f"{condition.attack} on {condition.changed}, 10 % of characters"
            )
            figures = {"relative_loss": own.relative_loss}
            if condition.attack == "clean":
                figures = {"mean_auprc": own.mean_auprc, "mean_auroc": own.mean_auroc}
            for name, figure in figures.items():
                if figure is not None and figure.value is not None:
                    found.append(Measurement(name, figure.value, data, self.texts, self.command, threat))
        return found
