"""What fit, score and the service cost beside an earlier commit: both run in turns, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from export.bench.compare import in_turns
from tests.benchmarks.common import add_rounds, answered, parser

ROOT = Path(__file__).parents[2]
EXPORT = ["export", "onnx", "--untrained", "--set", "layer=-1", "--set", "post_layernorm=true"]
VIT = [*EXPORT, "--model", "safeclip_vit_b32.zeroshot", "--out", "vit_b32"]
TINY = [*EXPORT, "--model", "safeclip_tiny.zeroshot", "--out", "tiny"]
FIT = ["fit", "--config", "recipes/quickstart.yaml", "--trainer.max_epochs", "1"]

#: Runs in both trees, so it calls only what both have. Answers each line that it reads with a line.
WORKER = """
import dataclasses, io, sys
import numpy as np
from PIL import Image
from export import runtime
rng = np.random.default_rng(0)
images = []
for _ in range(32):
    small = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8))
    file = io.BytesIO()
    small.resize((1024, 768), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    images.append(file.getvalue())
scorers = {name: runtime.load(name, device="cpu", engine="onnx-fp32", threads=2) for name in ("vit_b32", "tiny")}
for scorer in scorers.values():
    if hasattr(scorer.judge.policy, "unseen"):  # else a picture of this shape is judged in two views
        scorer.judge.policy = dataclasses.replace(scorer.judge.policy, unseen="allow")
service = {name: runtime.Service(scorer, max_batch=8) for name, scorer in scorers.items()}
def judge(name, road):
    if road == "one":
        return [scorers[name].verdict(image) for image in images[:8]]
    if road == "batch":
        return scorers[name].verdicts(images)
    return [future.result() for future in [service[name].submit(image) for image in images]]
print("ready", flush=True)
for line in sys.stdin:
    assert all(verdict.status == "ok" for verdict in judge(*line.split()))
    print("done", flush=True)
"""


class _Tree:
    """A checkout in a folder of its own, with a process that judges on demand."""

    def __init__(self, code: Path, folder: Path, data: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
        (folder / "runs/quickstart").mkdir(parents=True)
        for name, target in (
            ("recipes", code / "recipes"),
            ("configs", code / "configs"),
            ("runs/quickstart/data", data),
        ):
            (folder / name).symlink_to(target)

    def zoo(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "zoo", *arguments],
            cwd=self.folder,
            env=self.environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def start(self) -> None:
        self.worker = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.answer("ready")

    def judge(self, model: str, road: str) -> None:
        assert self.worker.stdin
        print(model, road, file=self.worker.stdin, flush=True)
        self.answer("done")

    def answer(self, expected: str) -> None:
        assert self.worker.stdout
        found = self.worker.stdout.readline().strip()
        if found != expected:
            raise RuntimeError(f"the process of {self.folder.name} answered {found!r}")


def bench_since(commit: str, rounds: int, fits: int) -> str:
    """A Markdown table of the time now over that of the commit: medians, and the spread over the rounds."""
    lines = ["| what | then ms | now ms | now / then | 10th to 90th percentile |", "|---" * 5 + "|"]
    with tempfile.TemporaryDirectory() as place:
        old_code, data = Path(place, "code"), Path(place, "data")
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(old_code), commit], cwd=ROOT, check=True)
        try:
            trees = {"then": _Tree(old_code, Path(place, "then"), data), "now": _Tree(ROOT, Path(place, "now"), data)}
            trees["then"].zoo("data", "signs", "--out", str(data))
            for tree in trees.values():
                tree.zoo(*VIT)
                tree.zoo(*TINY)
            if fits:
                lines.append(
                    _row("`zoo fit`, 1 epoch", {name: partial(tree.zoo, *FIT) for name, tree in trees.items()}, fits)
                )
            for tree in trees.values():
                tree.start()
            for model in ("vit_b32", "tiny"):
                for road in ("one", "batch", "service"):
                    roads = {name: partial(tree.judge, model, road) for name, tree in trees.items()}
                    lines.append(_row(f"{model}, {road}", roads, rounds))
            for tree in trees.values():
                tree.worker.kill()
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old_code)], cwd=ROOT, check=True)
    return "\n".join(lines)


def _row(what: str, roads: dict[str, partial[None]], rounds: int) -> str:
    times = in_turns(roads, rounds)
    then, now = times["then"], times["now"]
    low, high = np.percentile(now / then, [10, 90])
    print(what, f"{np.median(now / then):.3f}", file=sys.stderr, flush=True)  # the whole takes a quarter of an hour
    medians = f"{np.median(then):.1f} | {np.median(now):.1f} | {np.median(now / then):.3f}"
    return f"| {what} | {medians} | {low:.3f} to {high:.3f} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with these arguments, by default those of the command line."""
    text = (
        "Time fit, score and the service of the working tree beside those of a commit: 1024x768 JPEGs, each in the\n"
        "one view that the model's card says, float32, CPU.\n"
        "`one` judges 8 images one by one, `batch` 32 at once, `service` 32 submitted together."
    )
    options = parser("tests.benchmarks.since", text, "c937690 --rounds 20")
    options.add_argument("commit", help="any commit whose commands and runtime have today's names")
    options.add_argument("--fits", type=int, default=5, help="timed rounds of `zoo fit`, 0 for none (default: 5)")
    add_rounds(options, 20)
    given = options.parse_args(arguments)
    print(bench_since(given.commit, given.rounds, given.fits))
    return 0


if __name__ == "__main__":
    sys.exit(answered(main))
