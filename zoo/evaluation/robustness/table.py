"""A robustness report as tables for the terminal."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from zoo.evaluation.robustness.figures import PointFigures
from zoo.evaluation.robustness.report import Curve, RobustnessReport, eps_text
from zoo.metrics import Estimate


def percent(estimate: Estimate | None, *, ends: bool = True) -> str:
    """A figure in percent with its interval: `31.2 (25-38)`; `-` where there is none."""
    if estimate is None or estimate.value is None:
        return "-"
    if not ends or estimate.low is None or estimate.high is None:
        return f"{100 * estimate.value:.1f}"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.0f}-{100 * estimate.high:.0f})"


def print_report(report: RobustnessReport, console: Console | None = None) -> None:
    """Print everything: what was attacked, a table for each operating point, what has to be known of it."""
    console = console or Console()
    console.print(f"{report.model} on {report.data}, {report.split}, policy {report.policy or '- (its own labels)'}")
    console.print(f"threat {report.budget}; all figures in %, in brackets 95 % intervals", highlight=False)
    console.print(", ".join(f"{count:,} {name}" for name, count in report.counts.items() if count), highlight=False)
    for point in report.points:
        console.print(_point(point))
        if point.groups:
            console.print(_groups(point))
    for curve in report.curves:
        console.print(_curve(curve))
    for note in [*report.notes, *warnings(report)]:
        console.print(note, highlight=False)
    for reason, detail in report.lost.items():
        console.print(f"left out, {reason}: {report.counts.get(reason, 0)}; the first: {detail}", markup=False)


def warnings(report: RobustnessReport) -> list[str]:
    """What makes the figures less than they seem: no gradients, chance, refuted successes."""
    found = []
    for point in report.points:
        for attack in point.attacks:
            where = f"{attack.attack} at {point.point}"
            if attack.blind:
                why = f" ({attack.why_blind})" if attack.why_blind else ""
                found.append(
                    f"{where}: no gradient on {attack.blind} of {attack.attacked} items{why}; the attack went on "
                    "without one, so the robustness there may be an illusion"
                )
            if attack.randomised:
                found.append(f"{where}: two passes of the model differ, so that successes are partly luck")
            if attack.refuted:
                found.append(f"{where}: {attack.refuted} successes did not hold on a second look and count as none")
    return found


def title(point: PointFigures) -> str:
    """An operating point in words."""
    if point.point == "fpr":
        assert point.fpr_target is not None
        assert point.threshold is not None
        measured = "" if point.fpr_measured is None else f", {100 * point.fpr_measured:.1f} % measured"
        found = f"{point.negatives} safe items of {point.calibrated_on}{measured}"
        return f"at a false positive rate of {100 * point.fpr_target:g} % (threshold {point.threshold:.6g}, by {found})"
    return "at the policy's own operating point" if point.point == "policy" else "by the highest label"


def _point(point: PointFigures) -> Table:
    """The clean figures as the title, then a row for each attack."""
    both = any(attack.robust_fpr and attack.false_alarm_rate for attack in point.attacks)
    tells = point.clean.recall is not None
    columns = ["robust\naccuracy", *(["robust\nrecall"] if tells else []), "attack\nsuccess", "of"]
    columns += [*(["FPR", "false\nalarms"] if both else []), *(["AUROC"] if tells else []), "queries"]
    table = Table(
        "attack",
        title=f"{title(point)}\n{_clean(point)}",
        title_justify="left",
        box=SIMPLE,
        title_style="",
        padding=(0, 1, 0, 0),
    )
    table.columns[0].no_wrap = True
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for attack in [*point.attacks, *([point.worst] if len(point.attacks) > 1 else [])]:
        cells = [percent(attack.robust_accuracy), *([percent(attack.robust_recall)] if tells else [])]
        cells += [percent(attack.success_rate), str(attack.success_rate.count)]
        cells += [percent(attack.robust_fpr), percent(attack.false_alarm_rate)] if both else []
        cells += [percent(attack.auroc, ends=False)] if tells else []
        table.add_row(attack.attack, *cells, f"{attack.queries:,}")
    return table


def _clean(point: PointFigures) -> str:
    clean = point.clean
    named = {"accuracy": clean.accuracy, "recall": clean.recall, "FPR": clean.fpr, "AUROC": clean.auroc}
    named["AUPRC"] = clean.auprc
    return "clean: " + ", ".join(f"{name} {percent(figure)}" for name, figure in named.items() if figure)


def _groups(point: PointFigures) -> Table:
    table = Table(title="worst case by kind of item", title_justify="left", box=SIMPLE, title_style="")
    table.padding = (0, 1, 0, 0)
    for name in ("", "items", "accuracy", "robust accuracy", "recall", "robust recall", "attack success"):
        table.add_column(name, justify="left" if not name else "right")
    for group in point.groups:
        figures = (group.accuracy, group.robust_accuracy, group.recall, group.robust_recall, group.success_rate)
        table.add_row(f"{group.column} = {group.value}", str(group.items), *map(percent, figures))
    return table


def _curve(curve: Curve) -> Table:
    table = Table(
        title=f"against the budget, {curve.point}, by {', '.join(curve.attacks)}", title_justify="left", box=SIMPLE
    )
    for name in (f"{curve.norm} eps", "robust accuracy", "robust recall", "attack success"):
        table.add_column(name, justify="right")
    for at in curve.points:
        cells = (at.robust_accuracy, at.robust_recall, at.success_rate)
        table.add_row("0" if not at.eps else eps_text(at.eps), *map(percent, cells))
    return table
