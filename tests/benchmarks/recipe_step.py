"""What a recipe's training step costs against a plain step of the same model on the same batch, in turns."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch

from tests.benchmarks.common import answered, parser
from zoo.assets import find_asset
from zoo.errors import BadArgumentError
from zoo.training import Adversarial, RobustTower
from zoo.training.cli import ZooCLI, run

#: Steps that are run and not counted: the first ones pay for what is set up once.
WARM_UP = 2


@dataclass(frozen=True)
class StepCost:
    """Seconds of each step of a recipe, and of the plain step that was run right after it."""

    steps: tuple[float, ...]
    plain: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Step over plain step, pair by pair, from the smallest."""
        return sorted(step / plain for step, plain in zip(self.steps, self.plain, strict=True))

    def __str__(self) -> str:
        low, middle, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        own, plain = (1e3 * statistics.median(values) for values in (self.steps, self.plain))
        return (
            f"a step costs {middle:.2f} plain steps (quartiles {low:.2f} to {high:.2f}; "
            f"{own:.1f} ms against {plain:.1f} ms, medians of {len(self.steps)} pairs, in turns)"
        )


class _Stopwatch(lightning.Callback):
    """Times the forward and backward pass of each training step, then those of a plain one on the same batch."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.plain: list[float] = []
        self._begun = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._begun = _now()

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        self.steps.append(_now() - self._begun)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        begun = _now()
        with trainer.precision_plugin.train_step_context():
            loss = _plain_loss(module, batch)
        loss.backward()
        self.plain.append(_now() - begun)
        module.zero_grad()


def measure(recipe: Path, steps: int, changes: Sequence[str] = ()) -> StepCost:
    """Train a recipe for some steps, on its own data, and time them. `changes` are `key=value`, as on the command line.

    Nothing is logged or kept. Raises BadInputError for wrong arguments; exits with status 1 for a recipe that trains
    without an attack, or cannot run.
    """
    if steps < 2:
        raise BadArgumentError(f"steps must be at least 2, got {steps}")
    for change in changes:
        if "=" not in change:
            raise BadArgumentError(f'--set takes key=value, got "{change}"')
    watch = _Stopwatch()

    class Bench(ZooCLI):
        def before_instantiate_classes(self) -> None:
            super().before_instantiate_classes()
            self.save_config_callback = None
            trainer = self.config[self.subcommand].trainer
            trainer.max_steps, trainer.max_epochs, trainer.limit_val_batches = WARM_UP + steps, -1, 0
            trainer.logger, trainer.enable_checkpointing, trainer.enable_progress_bar = False, False, False
            trainer.callbacks = None

        def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
            return super().instantiate_trainer(**kwargs | {"callbacks": [watch]})

        def _run_subcommand(self, subcommand: str) -> None:
            if not isinstance(self.model, (Adversarial, RobustTower)):
                name = type(self.model).__name__
                raise BadArgumentError(f"{recipe}: {name} attacks nothing in training, so there is nothing to compare")
            super()._run_subcommand(subcommand)

    run(["fit", "--config", str(recipe), *(f"--{change}" for change in changes)], Bench)
    return StepCost(tuple(watch.steps[WARM_UP:]), tuple(watch.plain[WARM_UP:]))


def _plain_loss(module: Adversarial | RobustTower, batch: Any) -> Any:
    """The loss of a step on the same rows, without the attack."""
    if isinstance(module, RobustTower):
        pixels = module.pixels(batch)
        return module._loss_of(pixels, batch)(pixels)
    return module.criterion(module.model(*module._inputs(batch, drop=True)), module._target(batch))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with these arguments, by default those of the command line."""
    text = (
        "Time the training step of an adversarial recipe (attack, forward, backward) and a plain step of the same\n"
        "model on the same batch, in turns. It needs the data of the recipe."
    )
    example = "recipes/cifar10_pgd.yaml --set model.init_args.threat.steps=10"
    options = parser("tests.benchmarks.recipe_step", text, example)
    options.add_argument("recipe", help="recipe file of an adversarial training")
    options.add_argument("--steps", type=int, default=10, help="pairs of steps to time (default: 10)")
    options.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe; repeatable"
    )
    given = options.parse_args(arguments)
    recipe = find_asset(given.recipe, "recipe")
    print(f"{recipe}: {measure(recipe, given.steps, given.set)}")
    return 0


if __name__ == "__main__":
    sys.exit(answered(main))
