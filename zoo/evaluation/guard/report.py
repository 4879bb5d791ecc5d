"""The HTML and PNG report of a guard: what is refused with and without it, the detector's curve, some answers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.evaluation.guard.figures import Figures, GuardReport, Rate
from zoo.evaluation.guard.run import Outcome, Side
from zoo.evaluation.guard.table import percent
from zoo.evaluation.page import (
    MARKS,
    MAX_TEXT,
    PLAIN_COLOUR,
    SAFE_COLOUR,
    STYLE,
    UNSAFE_COLOUR,
    data_uri,
    draw_roc,
    escape,
    gallery,
    thumbnail,
)
from zoo.metrics import auroc

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: How many answers each part of the gallery shows.
SHOWN = 9
EXTRA_STYLE = ".side { color: var(--faint); } .refused { font-weight: 600; }"


def write_guard_report(report: GuardReport, out: Path, title: str) -> Path:
    """Write `out/report.html`, complete in itself, and `out/report.png`; return the path of the HTML.

    Images that were flagged, or are labelled unsafe, are blurred until pointed at.
    """
    plot = plot_guard(report, title)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.png").write_bytes(plot)
    (out / "report.html").write_text(_page(report, plot, title), encoding="utf-8", errors="replace")
    return out / "report.html"


def plot_guard(report: GuardReport, title: str) -> bytes:
    """The figure as PNG bytes: DSR against FPR with and without the guard, and the detector's ROC curve."""
    from matplotlib.figure import Figure

    seen = {str(o.query.image): o for o in report.outcomes if o.verdict is not None}
    verdicts = [outcome.verdict for outcome in seen.values() if outcome.verdict is not None]
    labels, scores = [o.query.label for o in seen.values()], [o.score for o in seen.values()]
    area = auroc(scores, labels)
    figure = Figure(figsize=(12, 5) if area is not None else (7, 5), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=14, parse_math=False)
    if area is None:
        _draw_rates(figure.subplots(), report.figures)
    else:
        left, right = figure.subplots(1, 2)
        _draw_rates(left, report.figures)
        draw_roc(right, verdicts, labels, scores, area)
        right.set(title="Detector alone")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


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


def _page(report: GuardReport, plot: bytes, title: str) -> str:
    setting = {key: str(value) for key, value in report.setting.items() if value not in (None, "")}
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>\n" for key, value in setting.items())
    boxes = _boxes(report.figures)
    shown = "".join(f"<div>{escape(n)}<b>{escape(v)}</b><span>{escape(e)}</span></div>\n" for n, v, e in boxes)
    summary = "; ".join(f"{name} {value}" for name, value, _ in boxes)
    parts = "".join(gallery(*part, _card, SHOWN) for part in _galleries(report.outcomes))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title><style>{STYLE}{EXTRA_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<table>{rows}</table>
<h2>Key figures</h2>
<div class="figures">{shown}</div>
<img class="plot" alt="DSR against FPR, and the detector's ROC curve: {escape(summary)}" src="{data_uri(plot, "png")}">
{parts}</body></html>
"""


def _boxes(figures: Figures) -> list[tuple[str, str, str]]:
    boxes = []
    for found in figures.refusals:
        for name, rate in (("DSR", found.dsr), ("FPR", found.fpr)):
            value = "undefined" if rate.on.value is None else f"{100 * rate.on.value:.1f} %"
            note = f"by {found.rater}, guard on: {percent(rate.on)} of {rate.on.trials}; guard off: {percent(rate.off)}"
            boxes.append((f"{name} ({found.rater})", value, note))
    detector = figures.detector
    if detector.auroc is not None:
        rates = f"TPR {percent(detector.tpr)}, FPR {percent(detector.fpr)}"
        boxes.append(("AUROC of the detector", f"{detector.auroc:.4f}", rates))
    for ratio in figures.overhead:
        spread = f"{100 * (ratio.low - 1):+.1f} to {100 * (ratio.high - 1):+.1f} % (10th to 90th percentile)"
        boxes.append((f"overhead, {ratio.phase}", ratio.overhead, spread))
    counts = figures.counts
    lost = f"{counts['unreadable']} unreadable, {counts['guard_failed']} where the guard failed"
    boxes.append(("not answered", str(counts["queries"] - counts["answered"]), lost))
    return boxes


def _galleries(outcomes: Sequence[Outcome]) -> list[tuple[str, str, list[Outcome]]]:
    """(heading, explanation, outcomes) of each part."""
    answered = [outcome for outcome in outcomes if outcome.status == "ok"]
    unsafe = [outcome for outcome in answered if outcome.query.label == 1]
    neutral = [outcome for outcome in answered if outcome.query.label == 0]
    return [
        ("Defended", "Unsafe image, refused with the guard.", [o for o in unsafe if _refused(o)]),
        ("Let through", "Unsafe image, answered in spite of the guard.", [o for o in unsafe if not _refused(o)]),
        ("Refused in vain", "Neutral image, refused with the guard.", [o for o in neutral if _refused(o)]),
        ("Flagged, answered all the same", "Neutral image, flagged; the language model answered.",
         [o for o in neutral if o.flagged and not _refused(o)]),
        ("Answered as ever", "Neutral image, answered.", [o for o in neutral if not o.flagged and not _refused(o)]),
        ("Not answered", "Could not be read, or the guard failed.", [o for o in outcomes if o.status != "ok"]),
    ]  # fmt: skip


def _refused(outcome: Outcome) -> bool:
    return outcome.blocked or (outcome.on is not None and outcome.on.refused)


def _card(outcome: Outcome) -> str:
    query, verdict = outcome.query, outcome.verdict
    decision = verdict.decision if verdict else "unknown"
    hidden = query.label != 0 or outcome.flagged or verdict is None
    name = query.image.name if query.image else f"line {query.line}"
    alt = f"Thumbnail of {name}, judged {decision}" + (", blurred" if hidden else "")
    score = "" if outcome.score is None else f" {outcome.score:.3f}"
    badge = f'<span class="badge {decision}">{MARKS[decision]} {decision}</span>{score}'
    label = {None: "", 0: "labelled neutral", 1: "labelled unsafe"}[query.label]
    # A report is passed on: it names files, not whose folders they lie in.
    detail = outcome.detail.replace(str(query.image), name)
    lines = [("label", label), ("text", query.question), ("detail", detail), ("file", name)]
    body = "".join(f'<div class="{kind}"><bdi>{escape(_short(line))}</bdi></div>' for kind, line in lines if line)
    sides = _side("guard off", outcome.off) + _side("blocked" if outcome.blocked else "guard on", outcome.on)
    picture = thumbnail(query.image, alt, hidden=hidden)
    return f'<figure tabindex="0">{picture}<figcaption>{badge}{body}{sides}</figcaption></figure>\n'


def _side(name: str, side: Side | None) -> str:
    if side is None:
        return ""
    kind = "refused" if side.refused else "answered"
    return f'<div class="{kind}"><span class="side">{name}: </span><bdi>{escape(_short(side.text))}</bdi></div>'


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " …"
