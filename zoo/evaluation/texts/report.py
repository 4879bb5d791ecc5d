"""Everything that was measured of one model of texts, as one JSON that reads itself back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.contract.card import Measurement
from zoo.evaluation.report import EvaluationReport
from zoo.evaluation.texts.rankers import UNKNOWN
from zoo.metrics import Estimate, Ranking, Values, estimate

#: Which texts an attack changed: none, the positives of each category, all, or a sample of its positives.
Changed = Literal["none", "positives", "all", "sample"]


@dataclass(frozen=True, config=schema.STRICT)
class RankerFigures:
    """One ranker in one condition: figures of each category, and their means without the tests of style.

    `relative_loss` is of the mean AUPRC, (clean - attacked) / clean on the same texts; None where nothing was changed.
    `queries` are texts that a search had scored.
    """

    ranker: str
    auprc: dict[str, Estimate]
    auroc: dict[str, Estimate]
    mean_auprc: Estimate
    mean_auroc: Estimate
    relative_loss: Estimate | None = None
    queries: int = 0


@dataclass(frozen=True, config=schema.STRICT)
class Condition:
    """All rankers on the same texts: as they are, or after one attack.

    `gain` is the mean AUPRC of the first less that of the second, the baseline.
    """

    attack: str
    changed: Changed
    rankers: tuple[RankerFigures, ...]
    gain: Estimate | None


class Scored(NamedTuple):
    """The logits `[N, L]` of one ranker in one condition with the labels `[N, L]` that count there."""

    ranker: str
    logits: NDArray[np.float64]
    labels: NDArray[np.int64]
    queries: int = 0


class PairedFigures:
    """Turns logits into figures with one set of bootstrap draws, so that differences are those of paired texts."""

    def __init__(self, categories: Sequence[str], style: frozenset[str], counts: NDArray[np.float32]) -> None:
        self.categories, self.style, self.counts = tuple(categories), style, counts

    def condition(
        self, attack: str, changed: Changed, scored: Sequence[Scored], clean: Sequence[Scored] | None = None
    ) -> Condition:
        """The figures of every ranker; `clean` holds the same texts before the attack, ranker by ranker."""
        figures, means = [], []
        for place, one in enumerate(scored):
            precision, area = self._values(one)
            means.append(self._mean(precision))
            loss = None
            if clean is not None:
                before = self._mean(self._values(clean[place])[0])
                with np.errstate(invalid="ignore", divide="ignore"):
                    loss = estimate((before - means[-1]) / before, len(one.labels))
            count = {name: int((one.labels[:, c] != UNKNOWN).sum()) for c, name in enumerate(self.categories)}
            figures.append(
                RankerFigures(
                    one.ranker,
                    {name: estimate(values, count[name]) for name, values in precision.items()},
                    {name: estimate(values, count[name]) for name, values in area.items()},
                    estimate(means[-1], len(one.labels)),
                    estimate(self._mean(area), len(one.labels)),
                    loss,
                    one.queries,
                )
            )
        gain = estimate(means[0] - means[1], len(scored[0].labels)) if len(means) == 2 else None
        return Condition(attack, changed, tuple(figures), gain)

    def _values(self, one: Scored) -> tuple[dict[str, Values], dict[str, Values]]:
        """Average precision and AUROC `[1 + D]` of each category that was judged."""
        precision, area = {}, {}
        for column, name in enumerate(self.categories):
            judged = np.flatnonzero(one.labels[:, column] != UNKNOWN)
            ranking = Ranking(one.logits[judged, column], one.labels[judged, column])
            drawn = self.counts[:, judged]
            precision[name], area[name] = ranking.average_precision(drawn), ranking.auroc(drawn)
        return precision, area

    def _mean(self, values: dict[str, Values]) -> Values:
        """The mean over the categories that are not tests of style and have a figure on these texts."""
        kept = [one for name, one in values.items() if name not in self.style and not np.isnan(one[0])]
        return np.mean(kept, axis=0) if kept else np.full(len(self.counts), np.nan)


@dataclass(frozen=True, config=schema.STRICT)
class CategoryCounts:
    """How many texts are of a category and how many were judged not to be; `style` marks a test of style."""

    name: str
    positives: int
    negatives: int
    sources: tuple[str, ...]
    style: bool


@dataclass(frozen=True, config=schema.STRICT)
class TextLatency:
    """Milliseconds for one text alone, from the text to its answer: median and 90th percentile of `count` texts."""

    what: str
    p50_ms: float
    p90_ms: float
    count: int


@dataclass(frozen=True, config=schema.STRICT)
class TextReport(EvaluationReport):
    """A model, and a baseline beside it (empty where there was none), on one split of a manifest.

    The first condition is the clean one; the others change texts within the budget of `threat`. Categories whose
    positives and negatives share no source are tests of style: they have figures, but count in no mean. `strengths` are
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
    categories: tuple[CategoryCounts, ...]
    conditions: tuple[Condition, ...]
    latency: tuple[TextLatency, ...]
    threat: dict[str, Any]
    seed: int
    seconds: float
    schema_version: Literal[1] = 1

    def measurements(self) -> list[Measurement]:
        """For the card: mean AUPRC and AUROC on clean texts, and the relative loss under each attack."""
        data = f"{self.data}, {self.split}"
        lines = []
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
                    lines.append(Measurement(name, figure.value, data, self.texts, self.command, threat))
        return lines
