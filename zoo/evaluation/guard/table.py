"""The figures of a guard as text: Markdown, for people and for a README."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.evaluation.guard.figures import Compared, Figures, GuardReport, Rate
from zoo.evaluation.guard.timing import Ratio
from zoo.metrics import Interval

#: How many rows that were not answered are named; the JSON has all.
NAMED = 10


def table(report: GuardReport) -> str:
    """All figures, both rates side by side, and what was not answered."""
    figures = report.figures
    counts = figures.counts
    lines = [f"{key}: {value}" for key, value in report.setting.items() if value not in (None, "")]
    lines += [
        f"queries: {counts['answered']} answered of {counts['queries']} on {counts['images']} images, "
        f"{counts['unsafe']} about unsafe images, {counts['neutral']} about neutral ones, "
        f"{counts['unlabelled']} unlabelled",
        "",
        "| refused or blocked | guard off | guard on | on - off |",
        "|---|---|---|---|",
    ]
    for found in figures.refusals:
        by = f" (by {found.rater})" if len(figures.refusals) > 1 else ""
        lines.append(_compared(f"DSR, of {found.dsr.on.trials} unsafe{by}", found.dsr))
        lines.append(_compared(f"FPR, of {found.fpr.on.trials} neutral{by}", found.fpr))
    lines += ["", "| detector alone, by image | |", "|---|---|", *_detector(figures)]
    if figures.overhead:
        lines += ["", *overhead_table(figures.overhead)]
    return "\n".join([*lines, "", *_notes(report)])


def overhead_table(ratios: Sequence[Ratio]) -> list[str]:
    """The lines of the table of latencies."""
    lines = ["| latency | guard off ms | guard on ms | overhead | 10th to 90th percentile |", "|---|---|---|---|---|"]
    for ratio in ratios:
        spread = f"{100 * (ratio.low - 1):+.1f} to {100 * (ratio.high - 1):+.1f} %"
        lines.append(f"| {ratio.phase} | {ratio.off_ms:.2f} | {ratio.on_ms:.2f} | {ratio.overhead} | {spread} |")
    return lines


def percent(rate: Rate) -> str:
    """A rate with its Wilson interval: `96.3 % (93.3 to 98.0)`."""
    return "-" if rate.value is None else f"{100 * rate.value:.1f} %{_ends(rate.wilson)}"


def _compared(name: str, compared: Compared) -> str:
    difference = "-"
    if compared.difference is not None:
        difference = f"{100 * compared.difference:+.1f} points{_ends(compared.interval, signed=True)}"
    return f"| {name} | {percent(compared.off)} | {percent(compared.on)} | {difference} |"


def _detector(figures: Figures) -> list[str]:
    found = figures.detector
    area = "-"
    if found.auroc is not None:
        ends = found.auroc_interval
        area = f"{found.auroc:.4f}" + (f" ({ends.low:.4f} to {ends.high:.4f})" if ends else "")
    return [
        f"| TPR, of {found.tpr.trials} unsafe images | {percent(found.tpr)} |",
        f"| FPR, of {found.fpr.trials} neutral images | {percent(found.fpr)} |",
        f"| AUROC | {area} |",
    ]


def _notes(report: GuardReport) -> list[str]:
    figures = report.figures
    counts = figures.counts
    notes = ["In brackets: 95 % intervals, Wilson's for rates, bootstrap over images for differences and AUROC."]
    if counts["answered"] > counts["images"]:
        notes.append(
            "Several questions share an image, so Wilson's are too narrow for them; bootstrap over images: "
            + "; ".join(_by_image(found.rater, name, compared) for found in report.figures.refusals
                        for name, compared in (("DSR", found.dsr), ("FPR", found.fpr)))
            + "."
        )  # fmt: skip
    if figures.overhead:
        notes.append(
            "Latency of single queries about neutral, unflagged images, both sides in turn; decode is of one token."
        )
    if figures.agreement:
        kappa = "undefined" if figures.agreement.kappa is None else f"{figures.agreement.kappa:.2f}"
        share = f"{100 * figures.agreement.share:.1f} % of {figures.agreement.items} answers"
        notes.append(f"Rules and judge agree on {share}, Cohen's kappa {kappa}.")
    if counts["silent_off"] or counts["silent_on"]:
        notes.append(
            f"Answered with no words, which is no refusal: {counts['silent_off']} off, {counts['silent_on']} on."
        )
    notes.append(f"{figures.unchanged} of {figures.unflagged} unflagged queries were answered the same to the letter.")
    lost = {"unreadable": "could not be read", "guard_failed": "made the guard fail, so nothing was answered"}
    for status, text in lost.items():
        rows = [outcome for outcome in report.outcomes if outcome.status == status]
        if rows:
            named = "; ".join(f"line {row.query.line}: {row.detail}" for row in rows[:NAMED])
            notes.append(f"{len(rows)} rows {text}: {named}" + ("; ..." if len(rows) > NAMED else ""))
    return notes


def _by_image(rater: str, name: str, compared: Compared) -> str:
    off, on = compared.off.by_image, compared.on.by_image
    return f"{name} by {rater} off{_ends(off)}, on{_ends(on)}"


def _ends(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None:
        return ""
    low, high = (f"{100 * end:+.1f}" if signed else f"{100 * end:.1f}" for end in (interval.low, interval.high))
    return f" ({low} to {high})"
