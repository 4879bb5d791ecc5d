"""Latency against throughput as a figure: a line for each side, a mark for each batch size."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from zoo.evaluation.page import COLOURS, DASHES, MARKERS

if TYPE_CHECKING:
    from export.bench.report import Benchmark


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
