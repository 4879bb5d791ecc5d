"""How long the commands take to start, against `import torch`, as whole processes in turns.

The last two rows are a verdict on a photo from cold, and what nobody can leave out: the two imports and the network.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from export.bench.compare import in_turns
from tests.benchmarks.common import add_rounds, answered, parser
from zoo.registry import DEFAULT_MODEL
from zoo.release.pull import BUNDLE, pull

PEER = "import torch"
PHOTO = Path(__file__).resolve().parents[2] / ".github" / "cat.jpg"
#: Its arguments are the folder of a bundle and a photo.
NETWORK = """
import sys, numpy, onnxruntime, PIL.Image
session = onnxruntime.InferenceSession(sys.argv[1] + "/onnx-fp32.onnx", providers=["CPUExecutionProvider"])
photo = PIL.Image.open(sys.argv[2]).convert("RGB").resize((224, 224))
session.run(["scores"], {"image": numpy.asarray(photo)[None]})
"""
COMMANDS = {
    PEER: ["-c", "import torch"],
    "zoo list": ["-m", "zoo", "list"],
    "zoo --help": ["-m", "zoo", "--help"],
    "import export.runtime": ["-c", "import export.runtime"],
}


def bench_startup(rounds: int) -> str:
    """Run each command once a round, in turn; returns a Markdown table of medians and ratios with their spread."""
    times = in_turns({name: partial(_run, arguments) for name, arguments in commands().items()}, rounds)
    peer = times[PEER]
    lines = [f"| process | median s | share of `{PEER}` | 10th to 90th percentile |", "|---|---|---|---|"]
    for name, found in times.items():
        low, high = np.percentile(found / peer, [10, 90])
        share = np.median(found) / np.median(peer)
        lines.append(f"| `{name}` | {np.median(found) / 1000:.2f} | {share:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines)


def commands() -> dict[str, list[str]]:
    """All commands, with those of the default model, which is fetched where it is not in the cache."""
    bundle = str(pull(DEFAULT_MODEL) / BUNDLE)
    score = {f"zoo score {PHOTO.name}": ["-m", "zoo", "score", str(PHOTO)]}
    return COMMANDS | score | {"imports and network of it": ["-c", NETWORK, bundle, str(PHOTO)]}


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
