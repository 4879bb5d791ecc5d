"""The page of a report: key figures, charts that follow light and dark, and galleries; and how all charts look."""

from __future__ import annotations

import base64
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.contract.verdict import Verdict
from zoo.errors import BadInputError
from zoo.files.writing import new_file, write_file
from zoo.inputs import image as image_input
from zoo.metrics import auroc, rates, roc

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours differ for every kind of colour blindness; marks, dashes and hatches repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one more than colours, so that no pair comes twice soon
DASHES = ("-", "--", "-.", ":")
MARKS = {"unsafe": "▲", "review": "◆", "safe": "●", "unknown": "?"}
THUMBNAIL, MAX_TEXT = 192, 400
NOT_JUDGED = "no item was judged"


class Colour(StrEnum):
    """What a colour of a chart stands for."""

    SAFE = COLOURS[0]
    UNSAFE = COLOURS[1]
    PLAIN = "#7a7a7a"


#: What the colours of a chart are called in page.html, where they follow light and dark.
_CSS = {
    Colour.SAFE.lower(): "var(--safe)",
    Colour.UNSAFE.lower(): "var(--unsafe)",
    Colour.PLAIN.lower(): "var(--faint)",
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    "#b0b0b0": "var(--line)",  # matplotlib's grid
    "#cccccc": "var(--line)",  # and its frame of a legend
}


@dataclass(frozen=True)
class Tile:
    """One key figure: its name, its value, and an explanation."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart that `draw` draws into matplotlib's axes; `name` says what it shows."""

    name: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Line:
    """One line below a thumbnail; `kind` is its class in the page (label, text, file, ...), `name` stands before it."""

    kind: str
    text: str
    name: str = ""


@dataclass(frozen=True)
class Card:
    """One item of a gallery: the decision, the unsafe score in [0, 1], lines, and the image, blurred if `hidden`."""

    name: str
    decision: str
    score: float | None
    lines: Sequence[Line]
    image: Path | None
    hidden: bool

    @property
    def alt(self) -> str:
        """The text alternative of the image."""
        return f"Thumbnail of {self.name}, judged {self.decision}" + (", blurred" if self.hidden else "")

    def thumbnail(self) -> str:
        """A small copy of the image as an address that needs no file; empty without one that can be shown."""
        if self.image is None:
            return ""
        try:
            picture = image_input.decode(self.image, need=THUMBNAIL)
        except BadInputError:
            return ""
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=75)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


@dataclass(frozen=True)
class Gallery:
    """Items of one kind, the most telling first, of which the page shows the first few."""

    heading: str
    note: str
    cards: Sequence[Card]
    shown: int

    @property
    def count(self) -> str:
        """How many items there are, and how many of them are shown."""
        total = len(self.cards)
        return f"{total:,}" if total <= self.shown else f"{self.shown} of {total:,}"


@dataclass(frozen=True)
class Page:
    """The content of a page; `notes` are the table at its top."""

    title: str
    notes: Mapping[str, str]
    tiles: Sequence[Tile]
    charts: Sequence[Chart]
    galleries: Sequence[Gallery]

    def write(self, out: Path) -> Path:
        """Write `out/report.html`, complete in itself, and `out/report.png` with the charts; returns the former."""
        page = self.html()
        write_png(self._figure(), out / "report.png")
        # A file name may hold bytes that are not UTF-8: they are shown as "?".
        write_file(out / "report.html", page.encode(errors="replace"))
        return out / "report.html"

    def html(self) -> str:
        """The page, with the charts as SVG inside it."""
        from jinja2 import Environment, FileSystemLoader
        from markupsafe import Markup

        environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
        environment.filters["shortened"] = lambda text: text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " …"
        summary = "; ".join(f"{tile.name} {tile.value}" for tile in self.tiles)
        charts = [Markup(_svg(chart, str(Markup.escape(f"{chart.name}: {summary}")))) for chart in self.charts]
        return environment.get_template("page.html").render(page=self, charts=charts, marks=MARKS)

    def _figure(self) -> Figure:
        """The charts side by side below the title."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4 + 4 * len(self.charts), 5), dpi=130, layout="constrained")
        # Without mathematics: a title with two dollar signs in it is not a formula.
        figure.suptitle(textwrap.shorten(self.title, 90, placeholder=" …"), fontsize=15, parse_math=False)
        for axes, chart in zip(figure.subplots(1, len(self.charts), squeeze=False)[0], self.charts, strict=True):
            chart.draw(axes)
        return figure


def write_png(figure: Figure, path: Path) -> Path:
    """Write a figure of matplotlib as a PNG; returns its path."""
    with new_file(path, "wb") as stream:
        figure.savefig(stream, format="png")
    return path


def _svg(chart: Chart, label: str) -> str:
    """A chart as an SVG element: real text, colours of the page, nothing that is fetched. `label` is escaped."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # As wide as the narrowest screen, so that a letter there is as large as in the text.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.name, "legend.fontsize": 8.5, "font.size": 10}):
        figure = Figure(figsize=(4.8, 4.2), layout="constrained")
        chart.draw(figure.subplots())
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    body = re.search(r"<svg[^>]*>(.*)</svg>", buffer.getvalue(), re.DOTALL)
    assert body is not None
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body[1], flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # the parts have the same names in every chart
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    for colour, name in _CSS.items():  # a variable counts in a style alone
        svg = re.sub(rf'\b(fill|stroke)="{colour}"', rf'style="\1: {name}"', svg).replace(colour, name)
    width, height = (72 * inches for inches in figure.get_size_inches())
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">{svg.strip()}</svg>'


def roc_charts(
    name: str,
    verdicts: Sequence[Verdict],
    labels: Sequence[int | None],
    scores: Sequence[float | None],
    title: str = "ROC curve",
) -> list[Chart]:
    """The ROC curve of scores with its area, and the point that the verdicts take; nothing if a class is missing."""
    curve, area, point = roc(scores, labels), auroc(scores, labels), rates(verdicts, labels)
    if curve is None:
        return []

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=Colour.PLAIN, linestyle=":", label="chance (0.5)")
        axes.plot(curve.fpr, curve.tpr, color=Colour.SAFE, linewidth=2.5, label=f"AUROC {area:.4f}")
        if point.tpr is not None and point.fpr is not None:
            text = f"policy's decision: TPR {point.tpr:.3f}, FPR {point.fpr:.3f}"
            axes.plot([point.fpr], [point.tpr], "D", color=Colour.UNSAFE, mec="black", ms=9, clip_on=False, label=text)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), title=title)
        axes.set(xlabel="false positive rate (share of safe items flagged)")
        axes.set(ylabel="true positive rate (share of unsafe items flagged)")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")

    return [Chart(name, draw)]


def histogram_chart(
    name: str, labels: Sequence[int | None], scores: Sequence[float | None], threshold: float | None
) -> Chart:
    """How often each score in [0, 1] occurs, by label, with the threshold."""

    def draw(axes: Axes) -> None:
        axes.set(xlim=(-0.01, 1.01), title="Scores", xlabel="unsafe score (0 to 1)")
        axes.set(ylabel="items per bin (linear to 10, then logarithmic)")
        if all(score is None for score in scores):
            axes.text(0.5, 0.5, NOT_JUDGED, ha="center", va="center", transform=axes.transAxes, fontsize=14)
            axes.set_yticks([])
            return
        kinds = ((0, "labelled safe", Colour.SAFE, "//"), (1, "labelled unsafe", Colour.UNSAFE, "\\\\"))
        for label, kind, colour, hatch in (*kinds, (None, "no label", Colour.PLAIN, "..")):
            values = [score for score, own in zip(scores, labels, strict=True) if score is not None and own == label]
            if values:
                counts, edges = np.histogram(np.clip(values, 0.0, 1.0), bins=40, range=(0.0, 1.0))
                axes.stairs(counts, edges, fill=True, fc=(colour, 0.35))
                # Drawn apart: an SVG fills the pattern of a hatch with the colour behind it.
                legend = f"{kind} ({len(values):,})"
                axes.stairs(counts, edges, fill=True, fc="none", ec=colour, hatch=hatch, label=legend)
        if threshold is not None:
            legend = f"threshold {threshold:.3g}"
            axes.axvline(threshold, color="black", linestyle="--", linewidth=1.8, label=legend)
        axes.set_yscale("symlog", linthresh=10)  # a few mistakes stay visible beside thousands of right answers
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper center")

    return Chart(name, draw)
