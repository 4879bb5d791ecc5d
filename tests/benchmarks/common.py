"""What the benchmarks of maintainers share: a parser that shows an example, and refusals in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from zoo.errors import ZooError


def parser(module: str, text: str, example: str) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`, run from the root of a clone."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=text,
        epilog=f"example: python -m {module} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_rounds(options: argparse.ArgumentParser, rounds: int) -> None:
    """Add `--rounds`."""
    options.add_argument("--rounds", type=int, default=rounds, help=f"timed rounds (default: {rounds})")


def add_sizes(options: argparse.ArgumentParser) -> None:
    """Add `--batch` and `--threads`."""
    options.add_argument("--batch", type=batches, default=[1, 8, 32], help="batch sizes (default: 1,8,32)")
    options.add_argument("--threads", type=int, default=2, help="threads of torch or the engine (default: 2)")


def batches(text: str) -> list[int]:
    """Batch sizes such as `1,8,32`."""
    return [int(size) for size in text.split(",")]


def answered(run: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark; what the zoo refuses ends in one line on standard error and status 1."""
    try:
        return run(arguments)
    except ZooError as problem:
        print(problem, file=sys.stderr)
        return 1
