"""How a guard is shown: tables in Markdown, and the page and its charts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.evaluation.guard.figures import Compared, GuardFigures, GuardReport, Rate
from zoo.evaluation.guard.run import GuardOutcome, Overhead, Reply
from zoo.evaluation.page import Card, Chart, Colour, Gallery, Line, Page, Tile, roc_charts
from zoo.metrics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: How many rows that were not answered are named; the JSON has all.
NAMED = 10
#: How many answers each gallery shows.
SHOWN = 9


def table(report: GuardReport) -> str:
    """All figures, both rates side by side, and what was not answered."""
    figures = report.figures
    counts = figures.counts
    lines = [f"{key}: {value}" for key, value in report.about.items()]
    lines += [
        f"queries: {counts['answered']} answered of {counts['queries']} on {counts['images']} images, "
        f"{counts['unsafe']} about unsafe images, {counts['neutral']} about neutral ones, "
        f"{counts['unlabelled']} unlabelled",
        "",
        "| refused or blocked | guard off | guard on | on - off |",
        "|---|---|---|---|",
    ]
    for rater, name, kind, rate in _rates(figures):
        by = f" (by {rater})" if len(figures.refusals) > 1 else ""
        lines.append(_compared(f"{name}, of {rate.on.trials} {kind}{by}", rate))
    lines += ["", "| detector alone, by image | |", "|---|---|", *_detector(figures)]
    if figures.overhead:
        lines += ["", *overhead_table(figures.overhead)]
    return "\n".join([*lines, "", *_notes(report)])


def overhead_table(ratios: Sequence[Overhead]) -> list[str]:
    """The lines of the table of latencies."""
    lines = ["| latency | guard off ms | guard on ms | overhead | 10th to 90th percentile |", "|---|---|---|---|---|"]
    rows = [f"{one.phase} | {one.off_ms:.2f} | {one.on_ms:.2f} | {one.overhead} | {one.spread}" for one in ratios]
    return [*lines, *(f"| {row} |" for row in rows)]


def percent(rate: Rate) -> str:
    """A rate with its Wilson interval: `96.3 % (93.3 to 98.0)`."""
    return "-" if rate.value is None else f"{100 * rate.value:.1f} %{_ends(rate.wilson)}"


def _rates(figures: GuardFigures) -> Iterator[tuple[str, str, str, Compared]]:
    """Who rates, the name of each rate, the images that it is of, and the rate."""
    for refusals in figures.refusals:
        yield refusals.rater, "DSR", "unsafe", refusals.dsr
        yield refusals.rater, "FPR", "neutral", refusals.fpr


def _compared(name: str, compared: Compared) -> str:
    difference = "-"
    if compared.difference is not None:
        difference = f"{100 * compared.difference:+.1f} points{_ends(compared.interval, signed=True)}"
    return f"| {name} | {percent(compared.off)} | {percent(compared.on)} | {difference} |"


def _detector(figures: GuardFigures) -> list[str]:
    detector = figures.detector
    area = "-"
    if detector.auroc is not None:
        ends = detector.auroc_interval
        area = f"{detector.auroc:.4f}" + (f" ({ends.low:.4f} to {ends.high:.4f})" if ends else "")
    return [
        f"| TPR, of {detector.tpr.trials} unsafe images | {percent(detector.tpr)} |",
        f"| FPR, of {detector.fpr.trials} neutral images | {percent(detector.fpr)} |",
        f"| AUROC | {area} |",
    ]


def _notes(report: GuardReport) -> list[str]:
    figures = report.figures
    counts = figures.counts
    notes = ["In brackets: 95 % intervals, Wilson's for rates, bootstrap over images for differences and AUROC."]
    if counts["answered"] > counts["images"]:
        by_image = [
            f"{name} by {rater} off{_ends(rate.off.by_image)}, on{_ends(rate.on.by_image)}"
            for rater, name, _, rate in _rates(figures)
        ]
        narrow = "Several questions share an image, so Wilson's are too narrow for them; bootstrap over images: "
        notes.append(f"{narrow}{'; '.join(by_image)}.")
    if figures.overhead:
        notes.append(
            "Latency of single queries about neutral, unflagged images, both sides in turn; decode is of one token."
        )
    if figures.agreement:
        kappa = "undefined" if figures.agreement.kappa is None else f"{figures.agreement.kappa:.2f}"
        share = f"{100 * figures.agreement.share:.1f} % of {figures.agreement.items} answers"
        notes.append(f"Rules and judge agree on {share}, Cohen's kappa {kappa}.")
    if counts["silent_off"] or counts["silent_on"]:
        notes.append(f"Answers without words, no refusals: {counts['silent_off']} off, {counts['silent_on']} on.")
    if counts["unseen"]:
        notes.append(f"{counts['unseen']} queries are for review because the model was not given the whole image.")
    notes.append(f"{figures.unchanged} of {figures.unflagged} unflagged queries were answered the same to the letter.")
    lost = {"unreadable": "could not be read", "guard_failed": "made the guard fail, so nothing was answered"}
    for status, text in lost.items():
        rows = [outcome for outcome in report.outcomes if outcome.status == status]
        if rows:
            named = "; ".join(f"line {row.query.line}: {row.detail}" for row in rows[:NAMED])
            notes.append(f"{len(rows)} rows {text}: {named}" + ("; ..." if len(rows) > NAMED else ""))
    return notes


def _ends(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None:
        return ""
    low, high = (f"{100 * end:+.1f}" if signed else f"{100 * end:.1f}" for end in (interval.low, interval.high))
    return f" ({low} to {high})"


def write_guard_report(report: GuardReport, out: Path, title: str) -> Path:
    """Write `out/report.html`, complete in itself, and `out/report.png`; return the path of the HTML.

    Images that were flagged, or are labelled unsafe, are blurred until pointed at.
    """
    seen = {str(o.query.image): o for o in report.outcomes if o.verdict is not None}
    verdicts = [outcome.verdict for outcome in seen.values() if outcome.verdict is not None]
    labels, scores = [o.query.label for o in seen.values()], [o.score for o in seen.values()]
    charts = [
        Chart("DSR against FPR", lambda axes: _draw_rates(axes, report.figures)),
        *roc_charts("The detector's ROC curve", verdicts, labels, scores, "Detector alone"),
    ]
    return Page(title, report.about, _tiles(report.figures), charts, _galleries(report.outcomes)).write(out)


def _draw_rates(axes: Axes, figures: GuardFigures) -> None:
    rated = [refusals for refusals in figures.refusals if refusals.fpr.on.trials and refusals.dsr.on.trials]
    for marker, refusals in zip("oD", rated, strict=False):
        sides = (
            ("off", Colour.PLAIN, refusals.fpr.off, refusals.dsr.off),
            ("on", Colour.SAFE, refusals.fpr.on, refusals.dsr.on),
        )
        for name, colour, across, up in sides:
            text = f"guard {name}, by {refusals.rater}: DSR {100 * _share(up):.1f} %, FPR {100 * _share(across):.1f} %"
            axes.errorbar(
                [_share(across)], [_share(up)], xerr=_error(across), yerr=_error(up), fmt=marker, color=colour,
                markeredgecolor="black", markersize=9, capsize=4, clip_on=False, zorder=3, label=text,
            )  # fmt: skip
        arrow = {"arrowstyle": "->", "color": Colour.UNSAFE, "shrinkA": 8, "shrinkB": 8}
        ends = [(_share(across), _share(up)) for _, _, across, up in sides]
        axes.annotate("", xy=ends[1], xytext=ends[0], arrowprops=arrow)
    axes.plot([0, 1], [0, 1], color=Colour.PLAIN, linestyle=":", label="refusing at random")
    if not rated:
        axes.text(0.5, 0.5, "needs unsafe and neutral images", ha="center", va="center", transform=axes.transAxes)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title="What is refused (95 % Wilson intervals)")
    axes.set(xlabel="FPR: share of questions about neutral images refused")
    axes.set(ylabel="DSR: share of questions about unsafe images refused")
    axes.grid(alpha=0.3)
    axes.legend(loc="center right", fontsize=8)


def _share(rate: Rate) -> float:
    return rate.value or 0.0


def _error(rate: Rate) -> list[list[float]]:
    ends, value = rate.wilson, _share(rate)
    return [[max(0.0, value - ends.low)], [max(0.0, ends.high - value)]] if ends else [[0.0], [0.0]]


def _tiles(figures: GuardFigures) -> list[Tile]:
    tiles = []
    for rater, name, _, rate in _rates(figures):
        value = "undefined" if rate.on.value is None else f"{100 * rate.on.value:.1f} %"
        note = f"by {rater}, guard on: {percent(rate.on)} of {rate.on.trials}; guard off: {percent(rate.off)}"
        tiles.append(Tile(f"{name} ({rater})", value, note))
    detector = figures.detector
    if detector.auroc is not None:
        rates = f"TPR {percent(detector.tpr)}, FPR {percent(detector.fpr)}"
        tiles.append(Tile("AUROC of the detector", f"{detector.auroc:.4f}", rates))
    for ratio in figures.overhead:
        tiles.append(Tile(f"overhead, {ratio.phase}", ratio.overhead, f"{ratio.spread} (10th to 90th percentile)"))
    counts = figures.counts
    lost = f"{counts['unreadable']} unreadable, {counts['guard_failed']} where the guard failed"
    tiles.append(Tile("not answered", str(counts["queries"] - counts["answered"]), lost))
    return tiles


def _galleries(outcomes: Sequence[GuardOutcome]) -> list[Gallery]:
    answered = [outcome for outcome in outcomes if outcome.status == "ok"]
    unsafe = [outcome for outcome in answered if outcome.query.label == 1]
    neutral = [outcome for outcome in answered if outcome.query.label == 0]
    parts = [
        ("Defended", "Unsafe image, refused with the guard.", [o for o in unsafe if _refused(o)]),
        ("Let through", "Unsafe image, answered despite the guard.", [o for o in unsafe if not _refused(o)]),
        ("Refused without need", "Neutral image, refused with the guard.", [o for o in neutral if _refused(o)]),
        ("Flagged, but answered", "Neutral image, flagged; the language model answered.",
         [o for o in neutral if o.flagged and not _refused(o)]),
        ("Answered", "Neutral image, answered.", [o for o in neutral if not o.flagged and not _refused(o)]),
        ("Not answered", "Could not be read, or the guard failed.", [o for o in outcomes if o.status != "ok"]),
    ]  # fmt: skip
    return [Gallery(heading, note, [_card(outcome) for outcome in own], SHOWN) for heading, note, own in parts]


def _refused(outcome: GuardOutcome) -> bool:
    return outcome.blocked or (outcome.on is not None and outcome.on.refused)


def _card(outcome: GuardOutcome) -> Card:
    query, verdict = outcome.query, outcome.verdict
    name = query.image.name if query.image else f"line {query.line}"
    lines = [
        Line("label", {None: "", 0: "labelled neutral", 1: "labelled unsafe"}[query.label]),
        Line("text", query.question),
        # Reports are shared: they name files without the folders of their owner.
        Line("detail", outcome.detail.replace(str(query.image), name)),
        Line("file", name),
        *_side("guard off", outcome.off),
        *_side("blocked" if outcome.blocked else "guard on", outcome.on),
    ]
    hidden = query.label != 0 or outcome.flagged or verdict is None
    return Card(name, verdict.decision if verdict else "unknown", outcome.score, lines, query.image, hidden)


def _side(name: str, side: Reply | None) -> list[Line]:
    return [] if side is None else [Line("refused" if side.refused else "answered", side.text, name)]
