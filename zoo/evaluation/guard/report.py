"""The HTML and PNG report of a guard: what is refused with and without it, the detector's curve, some answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.evaluation.guard.figures import Figures, GuardReport, Rate
from zoo.evaluation.guard.run import Outcome, Side
from zoo.evaluation.guard.table import percent
from zoo.evaluation.page import (
    PLAIN_COLOUR,
    SAFE_COLOUR,
    UNSAFE_COLOUR,
    Card,
    Chart,
    Gallery,
    Line,
    Page,
    Tile,
    draw_roc,
)
from zoo.metrics import auroc

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: How many answers each gallery shows.
SHOWN = 9


def write_guard_report(report: GuardReport, out: Path, title: str) -> Path:
    """Write `out/report.html`, complete in itself, and `out/report.png`; return the path of the HTML.

    Images that were flagged, or are labelled unsafe, are blurred until pointed at.
    """
    setting = {key: str(value) for key, value in report.setting.items() if value not in (None, "")}
    seen = {str(o.query.image): o for o in report.outcomes if o.verdict is not None}
    verdicts = [outcome.verdict for outcome in seen.values() if outcome.verdict is not None]
    labels, scores = [o.query.label for o in seen.values()], [o.score for o in seen.values()]
    area = auroc(scores, labels)
    charts = [Chart("DSR against FPR", lambda axes: _draw_rates(axes, report.figures))]
    if area is not None:

        def draw(axes: Axes) -> None:
            draw_roc(axes, verdicts, labels, scores, area)
            axes.set(title="Detector alone")

        charts.append(Chart("The detector's ROC curve", draw))
    return Page(title, setting, _tiles(report.figures), charts, _galleries(report.outcomes)).write(out)


def _draw_rates(axes: Axes, figures: Figures) -> None:
    drawn = False
    for marker, found in zip("oD", figures.refusals, strict=False):
        sides = (("off", PLAIN_COLOUR, found.fpr.off, found.dsr.off), ("on", SAFE_COLOUR, found.fpr.on, found.dsr.on))
        if found.fpr.on.value is None or found.dsr.on.value is None:
            continue
        drawn = True
        for name, colour, fpr, dsr in sides:
            text = f"guard {name}, by {found.rater}: DSR {100 * _share(dsr):.1f} %, FPR {100 * _share(fpr):.1f} %"
            axes.errorbar(
                [_share(fpr)], [_share(dsr)], xerr=_error(fpr), yerr=_error(dsr), fmt=marker, color=colour,
                markeredgecolor="black", markersize=9, capsize=4, clip_on=False, zorder=3, label=text,
            )  # fmt: skip
        arrow = {"arrowstyle": "->", "color": UNSAFE_COLOUR, "shrinkA": 8, "shrinkB": 8}
        ends = [(_share(fpr), _share(dsr)) for _, _, fpr, dsr in sides]
        axes.annotate("", xy=ends[1], xytext=ends[0], arrowprops=arrow)
    axes.plot([0, 1], [0, 1], color=PLAIN_COLOUR, linestyle=":", label="refusing at random")
    if not drawn:
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


def _tiles(figures: Figures) -> list[Tile]:
    tiles = []
    for found in figures.refusals:
        for name, rate in (("DSR", found.dsr), ("FPR", found.fpr)):
            value = "undefined" if rate.on.value is None else f"{100 * rate.on.value:.1f} %"
            note = f"by {found.rater}, guard on: {percent(rate.on)} of {rate.on.trials}; guard off: {percent(rate.off)}"
            tiles.append(Tile(f"{name} ({found.rater})", value, note))
    detector = figures.detector
    if detector.auroc is not None:
        rates = f"TPR {percent(detector.tpr)}, FPR {percent(detector.fpr)}"
        tiles.append(Tile("AUROC of the detector", f"{detector.auroc:.4f}", rates))
    for ratio in figures.overhead:
        spread = f"{100 * (ratio.low - 1):+.1f} to {100 * (ratio.high - 1):+.1f} % (10th to 90th percentile)"
        tiles.append(Tile(f"overhead, {ratio.phase}", ratio.overhead, spread))
    counts = figures.counts
    lost = f"{counts['unreadable']} unreadable, {counts['guard_failed']} where the guard failed"
    tiles.append(Tile("not answered", str(counts["queries"] - counts["answered"]), lost))
    return tiles


def _galleries(outcomes: Sequence[Outcome]) -> list[Gallery]:
    answered = [outcome for outcome in outcomes if outcome.status == "ok"]
    unsafe = [outcome for outcome in answered if outcome.query.label == 1]
    neutral = [outcome for outcome in answered if outcome.query.label == 0]
    parts = [
        ("Defended", "Unsafe image, refused with the guard.", [o for o in unsafe if _refused(o)]),
        ("Let through", "Unsafe image, answered in spite of the guard.", [o for o in unsafe if not _refused(o)]),
        ("Refused in vain", "Neutral image, refused with the guard.", [o for o in neutral if _refused(o)]),
        ("Flagged, answered all the same", "Neutral image, flagged; the language model answered.",
         [o for o in neutral if o.flagged and not _refused(o)]),
        ("Answered as ever", "Neutral image, answered.", [o for o in neutral if not o.flagged and not _refused(o)]),
        ("Not answered", "Could not be read, or the guard failed.", [o for o in outcomes if o.status != "ok"]),
    ]  # fmt: skip
    return [Gallery(heading, note, [_card(outcome) for outcome in own], SHOWN) for heading, note, own in parts]


def _refused(outcome: Outcome) -> bool:
    return outcome.blocked or (outcome.on is not None and outcome.on.refused)


def _card(outcome: Outcome) -> Card:
    query, verdict = outcome.query, outcome.verdict
    name = query.image.name if query.image else f"line {query.line}"
    lines = [
        Line("label", {None: "", 0: "labelled neutral", 1: "labelled unsafe"}[query.label]),
        Line("text", query.question),
        # A report is passed on: it names files, not whose folders they lie in.
        Line("detail", outcome.detail.replace(str(query.image), name)),
        Line("file", name),
        *_side("guard off", outcome.off),
        *_side("blocked" if outcome.blocked else "guard on", outcome.on),
    ]
    hidden = query.label != 0 or outcome.flagged or verdict is None
    return Card(name, verdict.decision if verdict else "unknown", outcome.score, lines, query.image, hidden)


def _side(name: str, side: Side | None) -> list[Line]:
    return [] if side is None else [Line("refused" if side.refused else "answered", side.text, name)]
