"""Robustness reports side by side, from their JSON files alone: a table for each data, threat and target; curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.contract import schema
from zoo.errors import BadArgumentError, BadDataError, close_match
from zoo.evaluation.page import COLOURS, DASHES, MARKERS, write_png
from zoo.evaluation.report import shown
from zoo.evaluation.robustness.report import Curve, PointFigures, RobustnessReport
from zoo.metrics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_Value = Callable[[RobustnessReport], Estimate | None]


def read_reports(paths: Iterable[Path]) -> list[RobustnessReport]:
    """The reports in these files, and in the JSON files of these folders, except replays.

    Raises BadInputError for another kind of file or a folder without a report, and BadCardError for another schema.
    """
    reports = []
    for path in paths:
        files = [one for one in sorted(path.glob("*.json")) if not _is_replay(one)] if path.is_dir() else [path]
        if not files:
            raise BadDataError(f"{path}: holds no robustness report (made by `zoo evaluate robustness`)")
        reports += [RobustnessReport.read(file) for file in files]
    return reports


def _is_replay(path: Path) -> bool:
    data = schema.read_json(path)
    return isinstance(data, dict) and data.get("report") == "replay"


def _at(name: str, figure: Callable[[PointFigures], Estimate | None]) -> _Value:
    def value(report: RobustnessReport) -> Estimate | None:
        point = next((point for point in report.points if point.point in (name, "labels")), None)
        return None if point is None or (point.point == "labels" and name == "fpr") else figure(point)

    return value


#: The columns of the table: key, heading, value, and whether more is better.
COLUMNS: tuple[tuple[str, str, _Value, bool], ...] = (
    ("clean_accuracy", "clean accuracy", _at("policy", lambda point: point.clean.accuracy), True),
    ("auroc", "AUROC", lambda report: report.points[0].clean.auroc, True),
    ("tpr", "TPR", _at("policy", lambda point: point.clean.recall), True),
    ("fpr", "FPR", _at("policy", lambda point: point.clean.fpr), False),
    ("asr", "ASR", _at("policy", lambda point: point.worst.success_rate), False),
    ("robust_accuracy", "robust accuracy", _at("policy", lambda point: point.worst.robust_accuracy), True),
    ("tpr_at_fpr", "TPR at fixed FPR", _at("fpr", lambda point: point.clean.recall), True),
    ("asr_at_fpr", "ASR at fixed FPR", _at("fpr", lambda point: point.worst.success_rate), False),
    ("robust_accuracy_at_fpr", "robust accuracy at fixed FPR", _at("fpr", lambda p: p.worst.robust_accuracy), True),
)
_UNKNOWN = Estimate(None, None, None, 0)
_INTERVALS = ("asr", "robust_accuracy", "asr_at_fpr", "robust_accuracy_at_fpr")


def leaderboard(reports: Sequence[RobustnessReport], sort: str = "asr_at_fpr") -> list[dict[str, Any]]:
    """Groups of reports that can be compared, as plain data: what they share, and a row for each, the best first.

    A group has attacked the same items under the same threat (seeds may differ) at the same fixed rate. Raises
    BadArgumentError for an unknown column to sort by.
    """
    rising = {key: more for key, _, _, more in COLUMNS}
    if sort not in (*rising, "model"):
        raise BadArgumentError(f'`sort`: no column "{sort}"' + close_match(sort, [*rising, "model"]))
    members_of: dict[tuple[object, ...], list[RobustnessReport]] = {}
    for report in reports:
        members_of.setdefault(_comparable(report), []).append(report)
    groups = []
    for members in members_of.values():
        first = members[0]
        rows = [_row(report) for report in sorted(members, key=lambda report: report.model)]
        if sort != "model":
            rows.sort(key=lambda row: _order(row[sort]["value"], rising[sort]))
        groups.append(
            {
                "data": first.data,
                "split": first.split,
                "items": first.counts["items"],
                "unsafe": first.counts["unsafe"],
                "threat": first.budget,
                "target": first.target,
                "direction": first.direction,
                "fpr_target": _fpr_target(first),
                "rows": rows,
            }
        )
    return groups


def markdown(groups: Sequence[dict[str, Any]]) -> str:
    """The groups as Markdown tables. ASR is the worst case over the attacks; in brackets 95 % intervals, all in %."""
    parts = []
    for group in groups:
        fixed = "" if group["fpr_target"] is None else f", fixed FPR {100 * group['fpr_target']:g} %"
        what = "labels" if group["target"] == "labels" else f"{group['unsafe']:,} unsafe"
        used = [column for column in COLUMNS if any(row[column[0]]["value"] is not None for row in group["rows"])]
        lines = [
            f"**{group['data']}, {group['split']}** ({group['items']:,} items, {what}{fixed}), {group['threat']}",
            "",
            "| model | n | " + " | ".join(heading for _, heading, _, _ in used) + " |",
            "| --- | --- | " + " | ".join("---" for _ in used) + " |",
        ]
        for row in group["rows"]:
            ends = {key: 1 if key in _INTERVALS else None for key, _, _, _ in used}
            cells = [shown(Estimate(**row[key]), ends=places, dash="–") for key, places in ends.items()]
            lines.append(f"| `{row['model']}` | {row['items']:,} | {' | '.join(cells)} |")
        flags = [f"`{row['model']}`: {', '.join(row['warnings'])}" for row in group["rows"] if row["warnings"]]
        parts.append("\n".join([*lines, *(["", *flags] if flags else [])]))
    legend = "In %; worst case over the attacks; in brackets 95 % intervals. ASR: broken, of the unsafe items flagged."
    return "\n\n".join([*parts, legend]) + "\n"


def _comparable(report: RobustnessReport) -> tuple[object, ...]:
    """The key that comparable reports share; the seeds of a threat are chance and may differ."""
    threat = report.threat
    image = threat.image and dataclasses.replace(threat.image, seed=0)
    text = tuple(dataclasses.replace(part, seed=0) for part in threat.text)
    threat = dataclasses.replace(threat, image=image, text=text)
    return report.items_sha256, threat, report.target, report.direction, _fpr_target(report)


def _fpr_target(report: RobustnessReport) -> float | None:
    return next((point.fpr_target for point in report.points if point.fpr_target is not None), None)


def _row(report: RobustnessReport) -> dict[str, Any]:
    figures = {key: dataclasses.asdict(value(report) or _UNKNOWN) for key, _, value, _ in COLUMNS}
    worst = [point.worst for point in report.points]
    doubts = {
        "some items give no gradient": any(attack.blind for attack in worst),
        "the model is random": any(attack.randomised for attack in worst),
    }
    warnings = [doubt for doubt, holds in doubts.items() if holds]
    return {"model": report.model, "items": report.counts["items"], **figures, "warnings": warnings}


def _order(value: float | None, more: bool) -> tuple[bool, float]:
    """The best first, rows without the figure last."""
    return value is None, 0.0 if value is None else -value if more else value


POINTS = {"policy": "at the policy's operating point", "fpr": "at a fixed false positive rate", "labels": "by label"}


def plot_curves(reports: Sequence[RobustnessReport], path: Path) -> Path:
    """Draw the curves of these reports into a PNG: a column for each operating point, recall below accuracy.

    Raises BadArgumentError if no report has a curve, or if the curves are of different norms.
    """
    from matplotlib.figure import Figure

    drawn = [report for report in reports if report.curves]
    if not drawn:
        raise BadArgumentError("no report holds a curve: evaluate robustness with `eps`, such as 0,1/255,2/255,4/255")
    norms = sorted({curve.norm for report in drawn for curve in report.curves})
    if len(norms) > 1:
        raise BadArgumentError(f"the curves are of the norms {norms}: one figure shows one norm")
    columns = [name for name in POINTS if any(curve.point == name for report in drawn for curve in report.curves)]
    recall = any(at.robust_recall for report in drawn for curve in report.curves for at in curve.points)
    rows = ("robust_accuracy", "robust_recall") if recall else ("robust_accuracy",)
    figure = Figure(figsize=(6.2 * len(columns), 4.3 * len(rows)), dpi=130, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    for across, column in enumerate(columns):
        for down, row in enumerate(rows):
            _draw(grid[down][across], drawn, column, row, norms[0])
        grid[0][across].set_title(POINTS[column])
    grid[0][0].legend(loc="best", fontsize="small")
    return write_png(figure, path)


def _draw(axes: Axes, reports: Sequence[RobustnessReport], column: str, row: str, norm: str) -> None:
    alike = len({report.items_sha256 for report in reports}) == 1
    for place, report in enumerate(reports):
        name = report.model if alike else f"{report.model} on {report.counts['items']} items of {report.data}"
        for curve in (curve for curve in report.curves if curve.point == column):
            _line(axes, curve, row, place, name)
    unit = "grey levels of 255" if norm == "Linf" else "on pixels in [0, 1]"
    what = {"robust_accuracy": "robust accuracy", "robust_recall": "robust unsafe recall"}[row]
    axes.set(xlabel=f"{norm} eps ({unit})", ylabel=what, ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)


def _line(axes: Axes, curve: Curve, row: str, place: int, name: str) -> None:
    scale = 255 if curve.norm == "Linf" else 1
    figures: list[tuple[float, Estimate | None]] = [(at.eps, getattr(at, row)) for at in curve.points]
    drawn = [(scale * eps, *figure.span) for eps, figure in figures if figure and figure.value is not None]
    if not drawn:
        return
    across, middle, low, high = np.array(drawn).T
    colour, dash = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
    label = f"{name} ({', '.join(curve.attacks)})"
    axes.plot(across, middle, color=colour, linestyle=dash, marker=MARKERS[place % len(MARKERS)], label=label)
    axes.fill_between(across, low, high, color=colour, alpha=0.15, lw=0)
