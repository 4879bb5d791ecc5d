"""Make what is missing of the matrix, cell by cell: cut off at any time, a run goes on from there when called again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.benchmarks.matrix.cell import DEPTHS, Cell, Column, Depth, Store, reach
from tests.benchmarks.matrix.make import Settings, make_row
from tests.benchmarks.matrix.rows import Row, usual_depth
from tests.benchmarks.matrix.table import shown


@dataclass(frozen=True)
class Plan:
    """The cells of one row that are to be made, and how far each is taken; `last` because one did not end before."""

    row: Row
    wanted: dict[Column, Depth]
    last: bool


def run_matrix(
    rows: Sequence[Row],
    columns: Sequence[Column],
    store: Store,
    settings: Settings,
    *,
    depth: Depth | None = None,
    again: bool = False,
) -> list[Cell]:
    """Make the missing cells of these rows and columns, and return them; each is written as soon as it is done.

    Missing is what is not there, failed, was not taken as far as is wanted (`depth`, or `usual_depth` of the row), or
    was made by other versions or of another graph. With `again` all are made. Models whose cells failed or were cut off
    before come last, so that one that kills the process keeps no other from its turn. Raises MissingDependencyError
    where the engine of a column is not installed.
    """
    plans = _plans(rows, columns, store, settings, depth, again)
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    made = []
    with Progress(*bar, transient=True) as progress:
        task = progress.add_task("", total=sum(len(plan.wanted) for plan in plans))

        @contextmanager
        def paused() -> Iterator[None]:
            if progress.console.is_terminal:  # elsewhere there is no bar, and stopping it would print an empty line
                progress.stop()
            yield
            if progress.console.is_terminal:
                progress.start()

        for plan in plans:
            name = plan.row.name

            def begin(column: Column, name: str = name) -> None:
                store.begin(name, column)
                progress.update(task, description=f"{name} {'-'.join(column)}")

            for cell in make_row(plan.row, plan.wanted, settings, begin, paused):
                store.write(cell)
                made.append(cell)
                progress.advance(task)
                progress.console.print(f"{name} {'-'.join(cell.column)}: {shown(cell)}", markup=False, soft_wrap=True)
    return made


def _plans(
    rows: Sequence[Row],
    columns: Sequence[Column],
    store: Store,
    settings: Settings,
    depth: Depth | None,
    again: bool,
) -> list[Plan]:
    cells = store.read()
    versions = {kind: settings.versions(kind) for kind, _ in columns}
    plans = []
    for row in rows:
        far = depth or usual_depth(row)
        if far is None:
            continue
        wanted: dict[Column, Depth] = {}
        last = False
        for column in columns:
            cell, least = cells.get((row.name, column)), reach(column[0], far)
            last |= store.was_cut(row.name, column) or (cell is not None and cell.outcome == "failed")
            if cell is not None and not again and cell.outcome != "failed":
                made = (cell.graph, cell.setting, cell.versions)
                same = made == (row.graph, settings.text(column[1]), versions[column[0]])
                if same and DEPTHS.index(cell.depth) >= DEPTHS.index(least):
                    continue
            wanted[column] = least
        if wanted:
            plans.append(Plan(row, wanted, last))
    return sorted(plans, key=lambda plan: plan.last)
