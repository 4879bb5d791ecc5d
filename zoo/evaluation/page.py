"""The page of a report: key figures, charts that follow light and dark, and galleries; and how all charts look."""

from __future__ import annotations

import base64
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.contract.verdict import Verdict
from zoo.errors import BadInputError
from zoo.files import write_file
from zoo.inputs import image as image_input
from zoo.metrics import rates, roc

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe and Ito's colours differ for every kind of colour blindness; marks, dashes and hatches repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one more than colours, so that no pair comes twice soon
DASHES = ("-", "--", "-.", ":")
SAFE_COLOUR, UNSAFE_COLOUR, PLAIN_COLOUR = COLOURS[0], COLOURS[1], "#7a7a7a"
MARKS = {"unsafe": "▲", "review": "◆", "safe": "●", "unknown": "?"}
THUMBNAIL, MAX_TEXT = 192, 400

#: What the colours of a chart are called in page.html, where they follow light and dark.
_CSS = {
    SAFE_COLOUR.lower(): "var(--safe)",
    UNSAFE_COLOUR.lower(): "var(--unsafe)",
    PLAIN_COLOUR: "var(--faint)",
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
            picture = image_input.decode(self.image)
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
        page, picture = self.html(), self.png()
        write_file(out / "report.png", picture)
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

    def png(self) -> bytes:
        """The charts side by side below the title, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4 + 4 * len(self.charts), 5), dpi=130, layout="constrained")
        # Without mathematics: a title with two dollar signs in it is not a formula.
        figure.suptitle(textwrap.shorten(self.title, 90, placeholder=" …"), fontsize=15, parse_math=False)
        for axes, chart in zip(figure.subplots(1, len(self.charts), squeeze=False)[0], self.charts, strict=True):
            chart.draw(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


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


def draw_roc(
    axes: Axes, verdicts: Sequence[Verdict], labels: Sequence[int | None], scores: Sequence[float | None], area: float
) -> None:
    """Draw the ROC curve of scores with its area, and the point that the verdicts take; both classes must be there."""
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
