"""Robustness against the budget as a figure, of one model or of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import BadArgumentError
from zoo.evaluation.page import COLOURS, DASHES, MARKERS
from zoo.evaluation.robustness.report import Curve, RobustnessReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = {"policy": "at the policy's operating point", "fpr": "at a fixed false positive rate", "labels": "by label"}


def plot_curves(reports: Sequence[RobustnessReport], path: Path) -> Path:
    """Draw the curves of these reports into a PNG: a column for each operating point, recall below accuracy.

    Raises BadInputError where no report has a curve, or where they are of different norms or threat kinds.
    """
    from matplotlib.figure import Figure

    drawn = [report for report in reports if report.curves]
    if not drawn:
        raise BadArgumentError(
            "no report holds a curve: measure with `zoo evaluate robustness --eps 0,1/255,2/255,4/255`"
        )
    norms = sorted({curve.norm for report in drawn for curve in report.curves})
    if len(norms) > 1:
        raise BadArgumentError(f"the curves are of the norms {norms}: one figure shows one norm")
    columns = [name for name in POINTS if any(curve.point == name for report in drawn for curve in report.curves)]
    recall = any(at.robust_recall for report in drawn for curve in report.curves for at in curve.points)
    rows = ["robust accuracy", "robust unsafe recall"] if recall else ["robust accuracy"]
    figure = Figure(figsize=(6.2 * len(columns), 4.3 * len(rows)), dpi=130, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    for across, column in enumerate(columns):
        for down, row in enumerate(rows):
            _draw(grid[down][across], drawn, column, row, norms[0])
        grid[0][across].set_title(POINTS[column])
    grid[0][0].legend(loc="best", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _draw(axes: Axes, reports: Sequence[RobustnessReport], column: str, row: str, norm: str) -> None:
    alike = len({report.items_sha256 for report in reports}) == 1
    for place, report in enumerate(reports):
        name = report.model if alike else f"{report.model} on {report.counts['items']} items of {report.data}"
        for curve in (curve for curve in report.curves if curve.point == column):
            _line(axes, curve, row, place, name)
    unit = "grey levels of 255" if norm == "Linf" else "on pixels in [0, 1]"
    axes.set(xlabel=f"{norm} eps ({unit})", ylabel=row, ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)


def _line(axes: Axes, curve: Curve, row: str, place: int, name: str) -> None:
    scale = 255 if curve.norm == "Linf" else 1
    lines: list[tuple[float, float, float, float]] = []
    for at in curve.points:
        figure = at.robust_accuracy if row == "robust accuracy" else at.robust_recall
        if figure is not None and figure.value is not None:
            low = figure.value if figure.low is None else figure.low
            lines.append((at.eps * scale, figure.value, low, figure.value if figure.high is None else figure.high))
    if not lines:
        return
    across, middle, low_ends, high_ends = (list(part) for part in zip(*lines, strict=True))
    colour, dash = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
    label = f"{name} ({', '.join(curve.attacks)})"
    axes.plot(across, middle, color=colour, linestyle=dash, marker=MARKERS[place % len(MARKERS)], label=label)
    axes.fill_between(across, low_ends, high_ends, color=colour, alpha=0.15, lw=0)
