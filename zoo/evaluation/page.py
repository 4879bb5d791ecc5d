"""One HTML file and one figure that show how a model and a policy judged a set of items."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from zoo.contract.verdict import Verdict
from zoo.errors import BadInputError
from zoo.inputs import image as image_input
from zoo.metrics import FLAGGED, auroc, rates, roc, scored_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")

#: Okabe and Ito's colours stay apart for every kind of colour blindness; marks and dashes say it again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one more than colours, so that no pair comes twice soon
DASHES = ("-", "--", "-.", ":")

THUMBNAIL, SHOWN, MAX_TEXT = 192, 18, 400
#: Okabe and Ito's colours stay apart for every kind of colour blindness; hatches and marks say it again.
SAFE_COLOUR, UNSAFE_COLOUR, PLAIN_COLOUR = "#0072B2", "#D55E00", "#7a7a7a"
MARKS = {"unsafe": "▲", "review": "◆", "safe": "●", "unknown": "?"}

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1c1c; --faint: #5c5c5c; --line: #d5d5d5; --tile: #f4f4f2; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #161718; --ink: #ececec; --faint: #a9a9a9; --line: #3b3d40; --tile: #222426; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 75rem; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; }
p, .hint { color: var(--faint); margin: .2rem 0 .8rem; }
table { border-collapse: collapse; } th, td { text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0; }
th { font-weight: 600; white-space: nowrap; } td { font-family: ui-monospace, monospace; font-size: .9rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.figures div { background: var(--tile); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.figures b { display: block; font-size: 1.5rem; } .figures span { color: var(--faint); font-size: .85rem; }
.plot { width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: .5rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .9rem; }
figure { margin: 0; background: var(--tile); border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
figure:focus-visible { outline: 3px solid #0072B2; }
.thumb { height: 11rem; overflow: hidden; display: grid; place-items: center; background: var(--line); }
.thumb img { width: 100%; height: 100%; object-fit: contain; }
.thumb img.hidden { filter: blur(16px); }
figure:hover img.hidden, figure:focus img.hidden, figure:focus-within img.hidden { filter: none; }
.none { color: var(--faint); font-size: .9rem; text-align: center; padding: 1rem; }
figcaption { padding: .5rem .6rem .7rem; font-size: .85rem; }
figcaption div { margin-top: .3rem; } .file { color: var(--faint); }
.badge { display: inline-block; border-radius: .3rem; padding: .05rem .45rem; font-weight: 600; color: #fff; }
.unsafe { background: #b34700; } .safe { background: #005f94; } .review { background: #e69f00; color: #1c1c1c; }
.unknown { background: #5c5c5c; }
"""


@dataclass(frozen=True)
class _Item:
    verdict: Verdict
    label: int | None
    score: float | None
    image: Path | None
    text: str | None

    @property
    def hidden(self) -> bool:
        """Whether to blur: all but what was judged safe and is not known to be otherwise."""
        return not self.verdict.is_safe or self.label == 1

    @property
    def name(self) -> str:
        source = self.verdict.source or (str(self.image) if self.image else "")
        return Path(source).name


def write_report(
    out: Path,
    *,
    title: str,
    verdicts: Sequence[Verdict],
    labels: Sequence[int | None],
    scores: Sequence[float | None],
    images: Sequence[Path | None],
    texts: Sequence[str | None],
    threshold: float | None,
    notes: Mapping[str, str],
) -> Path:
    """Write `out/report.html`, complete in itself, and `out/report.png`; return the path of the HTML.

    Item i is `verdicts[i]` with its label (1 unsafe, 0 safe, None not known), unsafe score in [0, 1] (None when not
    judged), image and text (None where there is none). `threshold`, in [0, 1], is drawn into the histogram; `notes`
    is the table at the top. Images that were not judged safe, or are labelled unsafe, are blurred until pointed at.
    Raises BadInputError for lists of different length, another label, or a NaN score.
    """
    lengths = {len(column) for column in (verdicts, labels, scores, images, texts)}
    if len(lengths) != 1:
        raise BadInputError(f"verdicts, labels, scores, images and texts must be of one length, got {sorted(lengths)}")
    scored_pairs(scores, labels)  # refuses what nothing can be computed from, before anything is written
    items = [_Item(*row) for row in zip(verdicts, labels, scores, images, texts, strict=True)]
    plot = plot_scores(title, verdicts, labels, scores, threshold)
    page = _page(title, notes, _key_figures(items), plot, _galleries(items))
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.png").write_bytes(plot)
    # A file name may hold bytes that are no UTF-8: shown as "?", not a reason to fail.
    (out / "report.html").write_text(page, encoding="utf-8", errors="replace")
    return out / "report.html"


def plot_scores(
    title: str,
    verdicts: Sequence[Verdict],
    labels: Sequence[int | None],
    scores: Sequence[float | None],
    threshold: float | None,
) -> bytes:
    """The figure as PNG bytes: ROC curve (where both classes are there) and score histogram by label."""
    from matplotlib.figure import Figure

    area = auroc(scores, labels)
    figure = Figure(figsize=(12, 5) if area is not None else (8, 5), dpi=130, layout="constrained")
    # Without mathematics: a title with two dollar signs in it is no formula.
    figure.suptitle(textwrap.shorten(title, 90, placeholder=" …"), fontsize=15, parse_math=False)
    if area is None:
        _draw_histogram(figure.subplots(), labels, scores, threshold)
    else:
        left, right = figure.subplots(1, 2, width_ratios=(4, 5))
        draw_roc(left, verdicts, labels, scores, area)
        _draw_histogram(right, labels, scores, threshold)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_roc(
    axes: Axes, verdicts: Sequence[Verdict], labels: Sequence[int | None], scores: Sequence[float | None], area: float
) -> None:
    """Draw the ROC curve of scores, and the point that the verdicts take on it; both classes must be there."""
    curve, point = roc(scores, labels), rates(verdicts, labels)
    assert curve is not None  # there is an area
    axes.plot([0, 1], [0, 1], color=PLAIN_COLOUR, linestyle=":", label="chance (0.5)")
    axes.plot(curve.fpr, curve.tpr, color=SAFE_COLOUR, linewidth=2.5, label=f"AUROC {area:.4f}")
    if point.tpr is not None and point.fpr is not None:
        text = f"policy's decision: TPR {point.tpr:.3f}, FPR {point.fpr:.3f}"
        axes.plot([point.fpr], [point.tpr], "D", color=UNSAFE_COLOUR, mec="black", ms=9, clip_on=False, label=text)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), title="ROC curve")
    axes.set(xlabel="false positive rate (share of safe items flagged)")
    axes.set(ylabel="true positive rate (share of unsafe items flagged)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _draw_histogram(
    axes: Axes, labels: Sequence[int | None], scores: Sequence[float | None], threshold: float | None
) -> None:
    kinds = ((0, "labelled safe", SAFE_COLOUR, "//"), (1, "labelled unsafe", UNSAFE_COLOUR, "\\\\"))
    drawn = False
    for label, name, colour, hatch in (*kinds, (None, "no label", PLAIN_COLOUR, "..")):
        values = [score for score, own in zip(scores, labels, strict=True) if score is not None and own == label]
        if values:
            counts, edges = np.histogram(np.clip(values, 0.0, 1.0), bins=40, range=(0.0, 1.0))
            legend = f"{name} ({len(values):,})"
            axes.stairs(counts, edges, fill=True, fc=(colour, 0.5), ec=colour, hatch=hatch, label=legend)
            drawn = True
    if threshold is not None and drawn:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1.8, label=f"threshold {threshold:.3g}")
    if drawn:
        axes.set_yscale("symlog", linthresh=10)  # a few mistakes stay visible beside thousands of right answers
        axes.yaxis.set_major_formatter("{x:,.0f}")
    else:
        axes.text(0.5, 0.5, "no item was judged", ha="center", va="center", transform=axes.transAxes, fontsize=14)
        axes.set_yticks([])
    axes.set(xlim=(-0.01, 1.01), title="Scores", xlabel="unsafe score (0 to 1)")
    axes.set(ylabel="items per bin (linear to 10, then logarithmic)")
    if drawn:
        axes.legend(loc="upper center")


def _key_figures(items: Sequence[_Item]) -> list[tuple[str, str, str]]:
    """(name, value, explanation) of each figure at the top."""
    verdicts, labels, scores = ([getattr(i, name) for i in items] for name in ("verdict", "label", "score"))
    unknown = [item.verdict.status for item in items if item.verdict.decision == "unknown"]
    others = [f"{unknown.count(status)} {status}" for status in sorted(set(unknown)) if status != "unreadable"]
    counts = {decision: sum(v.decision == decision for v in verdicts) for decision in ("unsafe", "review", "safe")}
    decided = [f"{count:,} {decision}" for decision, count in counts.items() if count]
    judged = f"judged: {', '.join(decided)}" if decided else "no item was judged"
    figures = [
        ("items", f"{len(items):,}", judged),
        ("unreadable", f"{unknown.count('unreadable'):,}", "also not judged: " + ", ".join(others) if others else ""),
    ]
    kept = [label for _, label in scored_pairs(scores, labels)]
    area, positives, negatives = auroc(scores, labels), kept.count(1), kept.count(0)
    classes = f"{positives:,} positives (unsafe), {negatives:,} negatives (safe)"
    if area is not None:
        figures.append(("AUROC", f"{area:.4f}", classes))
    elif kept:
        figures.append(("AUROC", "undefined", f"needs both classes, but there are {classes}"))
    else:
        figures.append(("AUROC", "–", "no item has both a label and a score"))
    point = rates(verdicts, labels)
    if point.tpr is not None:
        figures.append(("TPR", f"{point.tpr:.3f}", f"{point.true_positives:,} of {point.positives:,} unsafe flagged"))
    if point.fpr is not None:
        figures.append(("FPR", f"{point.fpr:.3f}", f"{point.false_positives:,} of {point.negatives:,} safe flagged"))
    return figures


def _galleries(items: Sequence[_Item]) -> list[tuple[str, str, list[_Item]]]:
    """(heading, explanation, items, the most telling first) of each part of the gallery."""
    ranked = sorted(items, key=lambda item: -(item.score or 0.0))
    unsafe = [item for item in ranked if item.verdict.decision == "unsafe"]
    alarms = [item for item in ranked if item.verdict.decision in FLAGGED and item.label == 0]
    missed = [item for item in reversed(ranked) if item.verdict.is_safe and item.label == 1]
    unjudged = [item for item in items if item.verdict.decision == "unknown"]
    parts = [("Most confident unsafe", "Highest score first.", unsafe)]
    if any(item.label is not None for item in items):
        parts.append(("False positives", "Labelled safe, but flagged; highest score first.", alarms))
        parts.append(("False negatives", "Labelled unsafe, but judged safe; lowest score first.", missed))
    return [*parts, ("Not judged", "Never called safe: the reason stands with each.", unjudged)]


def _page(
    title: str,
    notes: Mapping[str, str],
    figures: Sequence[tuple[str, str, str]],
    plot: bytes,
    galleries: Sequence[tuple[str, str, list[_Item]]],
) -> str:
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>\n" for key, value in notes.items())
    boxes = "".join(f"<div>{escape(n)}<b>{escape(v)}</b><span>{escape(e)}</span></div>\n" for n, v, e in figures)
    parts = "".join(gallery(*part, _card, SHOWN) for part in galleries)
    summary = "; ".join(f"{name} {value}" for name, value, _ in figures)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<table>{rows}</table>
<h2>Key figures</h2>
<div class="figures">{boxes}</div>
<img class="plot" alt="Plots of the scores: {escape(summary)}" src="{data_uri(plot, "png")}">
{parts}</body></html>
"""


def gallery(heading: str, explanation: str, items: Sequence[T], card: Callable[[T], str], shown: int) -> str:
    """HTML of one part of a report: how many items there are, and the cards of the first few."""
    count = f"{len(items):,}" if len(items) <= shown else f"{shown} of {len(items):,}"
    body = "".join(card(item) for item in items[:shown])
    inner = f'<p>{escape(explanation)}</p><div class="gallery">{body}</div>' if items else "<p>None.</p>"
    return f"<h2>{escape(heading)} ({count})</h2>{inner}\n"


def _card(item: _Item) -> str:
    verdict = item.verdict
    text = item.text or ""
    lines = {
        "category": verdict.category or "",
        "label": {None: "", 0: "labelled safe", 1: "labelled unsafe"}[item.label],
        "text": text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " …",
        "detail": verdict.detail,
        "file": item.name,
    }
    body = "".join(f'<div class="{kind}"><bdi>{escape(line)}</bdi></div>' for kind, line in lines.items() if line)
    badge = f'<span class="badge {verdict.decision}">{MARKS[verdict.decision]} {verdict.decision}</span>'
    score = "" if item.score is None else f" {item.score:.3f}"
    alt = f"Thumbnail of {item.name}, judged {verdict.decision}" + (", blurred" if item.hidden else "")
    picture = thumbnail(item.image, alt, hidden=item.hidden)
    return f'<figure tabindex="0">{picture}<figcaption>{badge}{score}{body}</figcaption></figure>\n'


def thumbnail(image: Path | None, alt: str, *, hidden: bool) -> str:
    """HTML of a small copy of an image, blurred until pointed at when `hidden`, or of a note that there is none."""
    if image is None:
        return '<div class="thumb"><span class="none">no image</span></div>'
    try:
        picture = image_input.decode(image)
    except BadInputError:
        return '<div class="thumb"><span class="none">the image cannot be shown</span></div>'
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=75)
    style = ' class="hidden"' if hidden else ""
    return f'<div class="thumb"><img{style} alt="{escape(alt)}" src="{data_uri(buffer.getvalue(), "jpeg")}"></div>'


def data_uri(data: bytes, kind: str) -> str:
    """An image as an address that needs no file."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def escape(text: str) -> str:
    """Text as it may stand anywhere in HTML."""
    return html.escape(text, quote=True)
