"""`python -m tests.benchmarks.matrix`: the table of every model in every engine and precision."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from export.bundle.manifest import Kind, Precision
from tests.benchmarks.common import answered, parser
from tests.benchmarks.matrix.cell import COLUMNS, DEPTHS, Column, Store
from tests.benchmarks.matrix.rows import SHIPPED, registered_rows, release_row
from tests.benchmarks.matrix.table import table
from zoo.errors import BadArgumentError, BadDataError, MissingDependencyError

#: Between these lines `--into` puts the table.
START, END = "<!-- export-matrix -->\n", "<!-- /export-matrix -->"


def _parser() -> argparse.ArgumentParser:
    text = "Make a table: every model in every engine and precision, exported, verified and timed."
    options = parser("tests.benchmarks.matrix", text, "'safeclip_vit_b32.*' --depth verify")
    options.add_argument("pattern", nargs="?", default=SHIPPED, help="wildcard pattern (default: all but test models)")
    options.add_argument(
        "--model", action="append", default=[], metavar="RELEASE", help="a release instead, for flips that mean more"
    )
    options.add_argument(
        "--depth",
        choices=DEPTHS,
        help="parse: graphs are written and read by TensorRT; build: they start and are timed, and plans are built; "
        "verify: the answers on the CPU are compared too (default: verify up to 50 million weights, parse up to 200 "
        "million, and larger models not at all)",
    )
    options.add_argument("--engine", action="append", choices=get_args(Kind), default=[], help="only this (repeatable)")
    options.add_argument(
        "--precision", action="append", choices=get_args(Precision), default=[], help="only this (repeatable)"
    )
    options.add_argument("--images", type=Path, metavar="DIR", help="verify on these images too, beside the drawn ones")
    options.add_argument(
        "--calibrate", type=Path, metavar="PATH", help="int8_qdq: inputs to find the scales on (default: drawn ones)"
    )
    options.add_argument("--package", choices=("tensorrt", "tensorrt_rtx"), help="which TensorRT")
    options.add_argument(
        "--out",
        type=Path,
        default=Path("runs/matrix"),
        metavar="DIR",
        help="where each cell is kept as soon as it is done; the next call makes only what is missing, failed, or was "
        "made by other versions or of another graph (default: runs/matrix)",
    )
    options.add_argument("--again", action="store_true", help="make all these cells again")
    options.add_argument("--render", action="store_true", help="only print the table of results so far")
    options.add_argument(
        "--into", type=Path, metavar="FILE", help=f"put the table there, between {START.strip()} and its end"
    )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with these arguments, by default those of the command line."""
    options = _parser().parse_args(arguments)
    if options.into:
        put(options.into, None)  # before the work, not after it
    if options.images is not None and not options.images.is_dir():
        raise BadArgumentError(f"{options.images}: no such folder of images")
    if options.calibrate is not None and not options.calibrate.exists():
        raise BadArgumentError(f"{options.calibrate}: no such file or folder to find scales on")
    store = Store(options.out)
    failed = 0
    if not options.render:
        with _ended_by_sigterm():
            failed = _run(options, store)
    text = table(store)
    print(text)
    if options.into:
        put(options.into, text)
    if failed:
        print(f"{failed} cells failed; {options.out} has the errors", file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, as `timeout` sends it, ends the process in order: with gigabytes of graphs removed."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(options: argparse.Namespace, store: Store) -> int:
    """Make what is missing; how many cells failed."""
    from export.verify.report import Check
    from tests.benchmarks.matrix.make import Settings
    from tests.benchmarks.matrix.run import run_matrix

    rows = [release_row(source) for source in options.model] or registered_rows(options.pattern)
    if not rows:
        raise BadArgumentError(f'no registered model matches "{options.pattern}" (see `zoo list`)')
    settings = Settings(Check(images=options.images), options.calibrate, options.package)
    made = run_matrix(rows, _columns(options), store, settings, depth=options.depth, again=options.again)
    return sum(cell.outcome == "failed" for cell in made)


def _columns(options: argparse.Namespace) -> list[Column]:
    """The columns that were asked for; those of OpenVINO and TensorRT, unless named, only where they are installed."""
    from export.runtime.openvino import openvino
    from export.tensorrt.package import load_package

    engines = options.engine or get_args(Kind)
    found = [(kind, what) for kind, what in COLUMNS if kind in engines and what in (options.precision or [what])]
    if not found:
        raise BadArgumentError("no such cells: OpenVINO has fp32 and int8_qdq, and TensorRT all but int8 (see --help)")
    named = [*options.engine, *(["tensorrt"] if options.package else [])]
    for kind, load in (("openvino", openvino), ("tensorrt", lambda: load_package(options.package))):
        try:
            if kind in engines:
                load()
        except MissingDependencyError as problem:
            if kind in named:
                raise
            print(f"without {kind}: {problem}", file=sys.stderr)
            found = [column for column in found if column[0] != kind]
    return found


def put(file: Path, text: str | None) -> None:
    """Put a table between the two marks of a file; None only looks for them. Raises BadInputError without them."""
    page = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(f"({START}).*({END})", page, re.DOTALL)
    if found is None:
        raise BadDataError(f"{file}: has no lines {START.strip()} and {END} for the table to stand between")
    if text is not None:
        file.write_text(f"{page[: found.end(1)]}{text}\n{page[found.start(2) :]}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(answered(main))
