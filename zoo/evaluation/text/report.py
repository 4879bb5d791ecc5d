"""The report about one model of texts: one JSON file that can be read back, tables, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from rich.table import Table

from zoo.contract import schema
from zoo.contract.card import Measurement
from zoo.evaluation.page import COLOURS, write_png
from zoo.evaluation.report import EvaluationReport, plain_console, plain_table, shown
from zoo.evaluation.text.rankers import UNKNOWN
from zoo.metrics import Estimate, Ranking, Values, estimate

#: Which texts an attack changed: none, the positives of each category, all, or a sample of its positives.
Changed = Literal["none", "positives", "all", "sample"]

#: Figures in [0, 1] for a table, without and with their interval.
_short = partial(shown, scale=1, places=3, ends=None)
_long = partial(shown, scale=1, places=3, ends=2)


@dataclass(frozen=True, config=schema.STRICT)
class RankerFigures:
    """One ranker in one condition: figures of each category, and their means without the tests of style.

    `relative_loss` is of the mean AUPRC, (clean - attacked) / clean on the same texts; None if nothing was changed.
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
    """A model, and a baseline beside it (empty if none was asked for), on one split of a manifest.

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
        data, lines = f"{self.data}, {self.split}", []
        for condition in self.conditions:
            own = condition.rankers[0]
            figures = {"relative_loss": own.relative_loss}
            if condition.attack == "clean":
                figures = {"mean_auprc": own.mean_auprc, "mean_auroc": own.mean_auroc}
            threat = f"{condition.attack} on {condition.changed}, 10 % of characters"
            lines += self.lines(figures, data, "" if condition.changed == "none" else threat)
        return lines


def print_text_report(report: TextReport) -> None:
    """Print the categories, the attacks, the tests of style, and the latency."""
    console = plain_console()
    console.print(f"{report.model} on {report.data}, {report.split}: {report.texts:,} texts")
    if report.baseline:
        console.print(f"baseline: {report.baseline}")
    console.print(_categories(report, style=False))
    gain = report.conditions[0].gain
    if gain is not None:
        console.print(f"mean AUPRC over the baseline: {_long(gain)}")
    if len(report.conditions) > 1:
        console.print(_attacks(report))
    if any(category.style for category in report.categories):
        console.print(_categories(report, style=True))
    for latency in report.latency:
        spread = f"90th percentile {latency.p90_ms:.1f}"
        console.print(f"{latency.what}: {latency.p50_ms:.1f} ms a text ({spread}), batch 1")


def plot_text_report(report: TextReport, path: Path) -> Path:
    """Draw AUPRC by category, clean and after the worst attack on positives, and each attack's loss, as a PNG."""
    from matplotlib.figure import Figure

    clean = report.conditions[0]
    attacked = [one for one in report.conditions if one.changed == "positives"]
    figure = Figure(figsize=(12, 4.6), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = [category.name + (" (style)" if category.style else "") for category in report.categories]
    width = 0.8 / len(clean.rankers)
    for place, ranker in enumerate(clean.rankers):
        label = report.model if place == 0 else "frozen MiniLM, logistic regression"
        estimates = [ranker.auprc[category.name] for category in report.categories]
        across = np.arange(len(names)) + place * width
        values, low, high = np.array([one.span for one in estimates]).T
        ends = np.clip([values - low, high - values], 0, None)
        left.bar(across, values, width, yerr=ends, color=COLOURS[place], label=label, capsize=2)
        losses = [condition.rankers[place].relative_loss for condition in attacked]
        heights = [100 * one.span[0] if one else 0.0 for one in losses]
        right.bar(np.arange(len(attacked)) + place * width, heights, width, color=COLOURS[place], label=label)
    left.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names, rotation=35, ha="right")
    left.set(ylabel="AUPRC", ylim=(0, 1), title="as they are")
    left.legend(fontsize="small")
    kinds = [condition.attack for condition in attacked]
    right.set_xticks(np.arange(len(kinds)) + 0.4 - width / 2, kinds, rotation=35, ha="right")
    right.set(ylabel="relative loss of mean AUPRC, %", title="positives edited at random, 10 % of characters")
    return write_png(figure, path)


def _categories(report: TextReport, *, style: bool) -> Table:
    clean = report.conditions[0]
    title = "as they are"
    if style:
        title = "tests of style: texts and counter-examples come from different sources; left out of the means"
    rows = []
    for category in report.categories:
        if category.style == style:
            pairs = [(one.auprc[category.name], one.auroc[category.name]) for one in clean.rankers]
            cells = [cell for precision, area in pairs for cell in (_long(precision), _short(area))]
            rows.append([category.name, f"{category.positives} / {category.negatives}", *cells])
    if not style:
        means = [cell for one in clean.rankers for cell in (_long(one.mean_auprc), _short(one.mean_auroc))]
        rows.append(["mean", "", *means])
    return plain_table(title, ["category", "yes / no", *_columns(report, "AUPRC", "AUROC")], rows)


def _attacks(report: TextReport) -> Table:
    rows = []
    for condition in report.conditions[1:]:
        cells = [cell for one in condition.rankers for cell in (_short(one.mean_auprc), _loss(one))]
        rows.append([condition.attack, {"none": "-"}.get(condition.changed, condition.changed), *cells])
    title = "mean AUPRC under attack, and its relative loss"
    return plain_table(title, ["attack", "on", *_columns(report, "AUPRC", "loss")], rows)


def _columns(report: TextReport, *figures: str) -> list[str]:
    """The figures of the model, then those of the baseline."""
    rankers = ("model", "baseline")[: len(report.conditions[0].rankers)]
    return [f"{name}\n{ranker}" for ranker in rankers for name in figures]


def _loss(ranker: RankerFigures) -> str:
    loss = shown(ranker.relative_loss, ends=None)
    return loss if loss == "-" else f"{loss} %"
