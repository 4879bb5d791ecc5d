"""What each head of a panel costs beside the image tower that all of them share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from export.bench.compare import check_figures, in_turns
from tests.benchmarks.common import add_rounds, add_sizes, answered, parser
from zoo.errors import BadArgumentError
from zoo.judging.judge import bind
from zoo.models.heads import Panel, ZeroShotHead
from zoo.registry import create_model, default_policy, list_models, model_entry

#: A head takes microseconds: it is timed this many times in a row.
REPEATS = 50
TOWER = "image tower"


@torch.inference_mode()
def bench_heads(name: str, batch: int, threads: int, rounds: int) -> str:
    """Time the tower and each head of a registered panel in turn, eager float32 with random weights, as Markdown.

    A head's time is that of its reading (final LayerNorm, projection) and of its own layers, with the phrases of its
    shipped policy where it is zero-shot. Raises BadInputError for what is no panel.
    """
    if model_entry(name).card.task != "panel":
        raise BadArgumentError(f"{name} is no panel; panels are {', '.join(list_models(task='panel'))}")
    check_figures([batch], threads, rounds)
    torch.set_num_threads(threads)
    panel = create_model(name)
    assert isinstance(panel, Panel)
    pixels = torch.rand(batch, 3, panel.image_size, panel.image_size)
    runs: dict[str, Callable[[], object]] = {TOWER: lambda: panel.image_tower(pixels)}
    runs |= {part: _repeated(run) for part, run in _heads(panel, name, batch).items()}
    with Progress(transient=True) as progress:
        bar = progress.add_task("Timing", total=rounds)
        found_in = in_turns(runs, rounds, lambda: progress.advance(bar))
    times = {part: found / (1 if part == TOWER else REPEATS) for part, found in found_in.items()}
    tower = times[TOWER]
    lines = [f"{name}, batch {batch}, {threads} threads, {rounds} rounds", ""]
    lines += ["| part | median ms | share of the tower | 10th to 90th percentile |", "|---|---|---|---|"]
    for part, found in times.items():
        low, high = np.percentile(found / tower, [10, 90])
        share = np.median(found) / np.median(tower)
        lines.append(f"| {part} | {np.median(found):.3f} | {share:.2%} | {low:.2%} to {high:.2%} |")
    return "\n".join(lines)


def _repeated(run: Callable[[], object]) -> Callable[[], object]:
    def repeat() -> None:
        for _ in range(REPEATS):
            run()

    return repeat


def _heads(panel: Panel, name: str, batch: int) -> dict[str, Callable[[], object]]:
    policies = bind(panel.card, default_policy(model_entry(name))).zero_shot_policies
    counts = iter([sum(len(category.descriptors) for category in policy.categories) for policy in policies])
    tower, hparams = panel.image_tower, panel.card.hparams
    cls = torch.randn(batch, hparams["vision_width"])

    def head(number: int, bank: Tensor | None) -> Callable[[], object]:
        module, reading = panel.heads[number], panel.reading_of[number]
        post_layernorm, projection = tower.readings[reading][1], tower.projections[reading]

        def run() -> object:
            embedding = projection(tower.vision_model.post_layernorm(cls) if post_layernorm else cls)
            return module(embedding) if bank is None else module(embedding, bank)

        return run

    found: dict[str, Callable[[], object]] = {}
    for number, (head_name, module) in enumerate(zip(panel.card.heads, panel.heads, strict=True)):
        bank = torch.randn(next(counts), hparams["embedding_dim"]) if isinstance(module, ZeroShotHead) else None
        found[head_name] = head(number, bank)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with these arguments, by default those of the command line."""
    text = "Time the image tower of a registered panel and each of its heads in turns, with random weights."
    options = parser("tests.benchmarks.heads", text, "clip_vit_l14.panel --batch 1")
    options.add_argument("panel", help="registered name of a panel")
    add_sizes(options)
    add_rounds(options, 20)
    given = options.parse_args(arguments)
    for batch in given.batch:
        print(bench_heads(given.panel, batch, given.threads, given.rounds) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(answered(main))
