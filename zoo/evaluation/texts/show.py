"""A text report as tables for the terminal, and as a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from zoo.evaluation.page import COLOURS
from zoo.evaluation.texts.report import RankerFigures, TextReport
from zoo.metrics import Estimate


def print_text_report(report: TextReport, console: Console | None = None) -> None:
    """Print the categories, the attacks, the tests of style, and the latency."""
    console = console or Console()
    console.print(f"{report.model} on {report.data}, {report.split}: {report.texts:,} texts", highlight=False)
    if report.baseline:
        console.print(f"baseline: {report.baseline}", highlight=False)
    console.print(_categories(report, style=False))
    gain = report.conditions[0].gain
    if gain is not None:
        console.print(f"mean AUPRC over the baseline: {_figure(gain)}", highlight=False)
    if len(report.conditions) > 1:
        console.print(_attacks(report))
    if any(category.style for category in report.categories):
        console.print(_categories(report, style=True))
    for latency in report.latency:
        console.print(
            f"{latency.what}: {latency.p50_ms:.1f} ms a text (90th percentile {latency.p90_ms:.1f}), batch 1",
            highlight=False,
        )


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
        values = [one.value or 0.0 for one in estimates]
        ends = [[v - (v if one.low is None else one.low) for v, one in zip(values, estimates, strict=True)]]
        ends.append([(v if one.high is None else one.high) - v for v, one in zip(values, estimates, strict=True)])
        left.bar(across, values, width, yerr=np.clip(ends, 0, None), color=COLOURS[place], label=label, capsize=2)
        losses = [condition.rankers[place].relative_loss for condition in attacked]
        heights = [0.0 if one is None or one.value is None else 100 * one.value for one in losses]
        right.bar(np.arange(len(attacked)) + place * width, heights, width, color=COLOURS[place], label=label)
    left.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names, rotation=35, ha="right")
    left.set(ylabel="AUPRC", ylim=(0, 1), title="as they are")
    left.legend(fontsize="small")
    kinds = [condition.attack for condition in attacked]
    right.set_xticks(np.arange(len(kinds)) + 0.4 - width / 2, kinds, rotation=35, ha="right")
    right.set(ylabel="relative loss of mean AUPRC, %", title="positives edited at random, 10 % of characters")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _categories(report: TextReport, *, style: bool) -> Table:
    clean = report.conditions[0]
    title = "as they are"
    if style:
        title = "tests of style: texts and counter-examples come from different sources; left out of the means"
    table = Table(Column("category", no_wrap=True), title=title, title_justify="left", box=SIMPLE)
    table.add_column("yes / no", justify="right", no_wrap=True)
    for place in range(len(clean.rankers)):
        for name in ("AUPRC", "AUROC"):
            table.add_column(f"{name}\n{'baseline' if place else 'model'}", justify="right", no_wrap=True)
    for category in report.categories:
        if category.style == style:
            pairs = [(one.auprc[category.name], one.auroc[category.name]) for one in clean.rankers]
            cells = [cell for precision, area in pairs for cell in (_figure(precision), _short(area))]
            table.add_row(category.name, f"{category.positives} / {category.negatives}", *cells)
    if not style:
        cells = [cell for one in clean.rankers for cell in (_figure(one.mean_auprc), _short(one.mean_auroc))]
        table.add_row("mean", "", *cells)
    return table


def _attacks(report: TextReport) -> Table:
    table = Table(
        Column("attack", no_wrap=True),
        "on",
        title="mean AUPRC under attack, and its relative loss",
        title_justify="left",
        box=SIMPLE,
    )
    for place in range(len(report.conditions[0].rankers)):
        for name in ("AUPRC", "loss"):
            table.add_column(f"{name}\n{'baseline' if place else 'model'}", justify="right", no_wrap=True)
    for condition in report.conditions[1:]:
        cells = [cell for one in condition.rankers for cell in (_short(one.mean_auprc), _loss(one))]
        table.add_row(condition.attack, {"none": "-"}.get(condition.changed, condition.changed), *cells)
    return table


def _loss(ranker: RankerFigures) -> str:
    if ranker.relative_loss is None or ranker.relative_loss.value is None:
        return "-"
    return f"{100 * ranker.relative_loss.value:.1f} %"


def _short(figure: Estimate) -> str:
    return "-" if figure.value is None else f"{figure.value:.3f}"


def _figure(figure: Estimate) -> str:
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({figure.low:.2f}-{figure.high:.2f})"
