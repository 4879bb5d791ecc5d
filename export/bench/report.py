"""The results of a benchmark: latencies and ratios with their spread, as Markdown, JSON and a figure."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.evaluation.page import COLOURS, DASHES, MARKERS
from zoo.files.writing import write_file


@dataclass(frozen=True)
class About:
    """A side in words: the precision of its products, and for an engine of the bundle what its verification said.

    `verified` is None for a peer, and for an engine that was not verified yet; `flips` reads like "1 of 256".
    """

    name: str
    what: str
    precision: str
    peer: bool
    verified: bool | None = None
    flips: str | None = None

    @property
    def proof(self) -> str:
        """Whether its answers were verified, for a table."""
        return "-" if self.peer else {None: "not yet", True: "yes", False: "FAILED"}[self.verified]


@dataclass(frozen=True)
class Timing:
    """Latencies of one side at one batch size, in milliseconds, and images a second at the median."""

    name: str
    batch: int
    p50: float
    p90: float
    p99: float
    fastest: float
    images_per_second: float


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the first peer: its median over this side's.

    `low` and `high` are the 10th and 90th percentile of the ratios of single rounds.
    """

    name: str
    batch: int
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Benchmark:
    """All rows and ratios, with who ran and on what. `left_out` are the engines that did not run, with the reason."""

    setting: dict[str, str]
    sides: list[About]
    rows: list[Timing]
    ratios: list[Ratio]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The first peer, which the ratios are to."""
        return next(side.name for side in self.sides if side.peer)

    def add(self, times: dict[str, NDArray[np.float64]], batch: int) -> None:
        """Add the row of each side, from its milliseconds `[rounds]`, and its speed in times the reference's."""
        reference = times[self.reference]
        for name, ms in times.items():
            p50, p90, p99 = np.percentile(ms, [50, 90, 99]).tolist()
            self.rows.append(Timing(name, batch, p50, p90, p99, float(ms.min()), 1000 * batch / p50))
            if name != self.reference:
                low, high = np.percentile(reference / ms, [10, 90]).tolist()
                self.ratios.append(Ratio(name, batch, float(np.median(reference) / np.median(ms)), low, high))

    def text(self) -> str:
        """Markdown, for people and for a README."""
        lines = [f"- {key}: {value}" for key, value in self.setting.items()]
        lines += [f"- left out: {name}, {reason}" for name, reason in self.left_out.items()]
        lines += ["", "| side | precision | verified | flips | what runs |", "|---" * 5 + "|"]
        for side in self.sides:
            lines.append(f"| {side.name} | {side.precision} | {side.proof} | {side.flips or '-'} | {side.what} |")
        lines += ["", "| side | batch | p50 ms | p90 ms | p99 ms | fastest ms | images/s |", "|---" * 7 + "|"]
        for row in self.rows:
            figures = f"{row.p50:.1f} | {row.p90:.1f} | {row.p99:.1f} | {row.fastest:.1f} | {row.images_per_second:.1f}"
            lines.append(f"| {row.name} | {row.batch} | {figures} |")
        lines += ["", f"| side | batch | times as fast as {self.reference} | 10th to 90th percentile of the rounds |"]
        lines += ["|---" * 4 + "|"]
        lines += [f"| {r.name} | {r.batch} | {r.median:.2f}x | {r.low:.2f} to {r.high:.2f} |" for r in self.ratios]
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Write `bench.json`, `bench.md` and the plot `bench.png` into a folder, made if need be."""
        write_file(folder / "bench.png", plot_speed(self))
        write_file(folder / "bench.md", self.text() + "\n")
        write_file(folder / "bench.json", json.dumps(asdict(self), indent=2) + "\n")


def plot_speed(benchmark: Benchmark) -> bytes:
    """The figure as PNG bytes; up and to the left is better. Peers are dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(8, 5.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    for place, side in enumerate(benchmark.sides):
        rows = sorted((row for row in benchmark.rows if row.name == side.name), key=lambda row: row.batch)
        across, up = [row.p50 for row in rows], [row.images_per_second for row in rows]
        colour, mark = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        label = f"{side.name} (peer)" if side.peer else f"{side.name}, verified: {side.proof}"
        axes.plot(across, up, color=colour, marker=mark, linestyle=DASHES[side.peer], label=label)
        for row in rows:
            place_of = (row.p50, row.images_per_second)
            axes.annotate(str(row.batch), place_of, (4, 5), textcoords="offset points", color=colour, fontsize="small")
    axes.set(xscale="log", xlabel="median latency of a batch, ms (each mark: its batch size)", ylabel="images a second")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")  # plain numbers in place of powers of ten
    axes.xaxis.set_minor_formatter("")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{benchmark.setting['model']}\n{benchmark.setting['task']}", fontsize="medium", parse_math=False)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="best", fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
