"""The matrix as Markdown: a row for each model, a column for each engine and precision. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from export.bundle.manifest import COUNTED_AS
from tests.benchmarks.matrix.cell import COLUMNS, Cell, Store
from tests.benchmarks.matrix.rows import all_rows

#: What a column of an engine is called.
ENGINES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}
#: A cell is not for reading long messages: they are in its file.
LONGEST = 90


def table(store: Store) -> str:
    """All shipped models and all cells of a folder, with a line on what they mean and what they were made with.

    A cell of another architecture or policy than the registered one does not count.
    """
    cells = store.read()
    rows = all_rows([name for name, _ in cells])
    heads = [f"{ENGINES[kind]} {precision}" for kind, precision in COLUMNS]
    lines = [f"| model | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    used = []
    for row in rows:
        texts = []
        for column in COLUMNS:
            cell = cells.get((row.name, column))
            if cell is not None and row.graph in ("", cell.graph):
                used.append(cell)
                texts.append(shown(cell).replace("|", "\\|"))
            else:
                texts.append("cut off" if store.was_cut(row.name, column) else "not run")
        lines.append(f"| {row.label} | {' | '.join(texts)} |")
    return "\n".join([*lines, "", *_legend(used)])


def shown(cell: Cell) -> str:
    """What stands in a cell: how far it came, the share in the precision, flips, milliseconds; or what went wrong."""
    if cell.outcome == "refused":
        return f"no: {_short(cell.note)}"
    if cell.outcome == "failed":
        return f"FAILED: {_short(cell.note)}"
    share = f"{cell.products.get(COUNTED_AS[cell.precision], 0)}/{sum(cell.products.values())}"
    if cell.flips is None:
        plan = cell.kind == "tensorrt"
        words = {"parse": "parsed" if plan else "exported", "build": "built" if plan else "starts"}
        share = f"{words[cell.depth]} {share}"
    parts = [share]
    if cell.flips is not None:
        worst = f" (±{cell.difference:.1g})" if cell.alike and cell.difference is not None else ""
        parts.append(f"{cell.flips} of {cell.inputs} flips{worst}")
    if cell.ms is not None:
        parts.append(f"{cell.ms:.3g} ms" if cell.ms < 100 else f"{cell.ms:.0f} ms")
    missed = f"; MISSED: {_short(cell.note)}" if cell.outcome == "missed" else ""
    return ", ".join(parts) + missed


def _short(note: str) -> str:
    """The first of several reasons; of TensorRT's, the node that it does not know."""
    text = (note.partition("cannot read it: ")[2] or note).split(";")[0]
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _legend(cells: Sequence[Cell]) -> list[str]:
    if not cells:
        return ["Nothing was run yet."]
    machines = sorted({cell.machine for cell in cells if cell.machine})
    timed = f" (one thread of {'; '.join(machines)})" if machines else ""
    packages: dict[str, set[str]] = {}
    for cell in cells:
        for package, version in cell.versions.items():
            packages.setdefault(package, set()).add(version)
    made_with = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(packages.items()))
    return [
        "Random weights, unless a row says trained. `90/93`: of 93 matrix products and convolutions, 90 are in that "
        "precision, as counted in the finished graph or plan (OpenVINO fuses the attention's own, and lists them no "
        "more). Flips: verdicts that are not those of the torch model, among drawn inputs; fp32 also at the threshold, "
        "bf16 rounded after each step in float32, as no CPU has it. (±0.001): the model judges all of these inputs "
        "alike, so that few flips prove little, and this is the largest difference of a score. Milliseconds: the "
        f'median processor time of the engine for one input{timed}. What is "exported" or "starts" was not verified; '
        'TensorRT "parsed" the graph, or "built" one plan for all GPUs that it builds for, and nothing of it was run.',
        "",
        f"Made with {made_with}.",
    ]
