"""How long the commands take to start, against `import torch`, as whole processes in turns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np

from export.bench.compare import in_turns
from tests.benchmarks.common import add_rounds, answered, parser

PEER = "import torch"
COMMANDS = {
    PEER: ["-c", "import torch"],
    "zoo list": ["-m", "zoo", "list"],
    "zoo --help": ["-m", "zoo", "--help"],
    "import export.runtime": ["-c", "import export.runtime"],
}


def bench_startup(rounds: int) -> str:
    """Run each command once a round, in turn; returns a Markdown table of medians and ratios with their spread."""
    times = in_turns({name: partial(_run, arguments) for name, arguments in COMMANDS.items()}, rounds)
    peer = times[PEER]
    lines = [f"| process | median s | share of `{PEER}` | 10th to 90th percentile |", "|---|---|---|---|"]
    for name, found in times.items():
        low, high = np.percentile(found / peer, [10, 90])
        share = np.median(found) / np.median(peer)
        lines.append(f"| `{name}` | {np.median(found) / 1000:.2f} | {share:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines)


def _run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with these arguments, by default those of the command line."""
    options = parser(
        "tests.benchmarks.startup", "Time how fast the commands start, beside `import torch`.", "--rounds 10"
    )
    add_rounds(options, 20)
    print(bench_startup(options.parse_args(arguments).rounds))
    return 0


if __name__ == "__main__":
    sys.exit(answered(main))
