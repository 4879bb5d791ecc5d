"""What the optimizer steps on, in which groups, and by which schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from zoo.errors import BadArgumentError, close_match

#: Where a checkpoint keeps the float32 copies of weights in half precision.
MASTERS_KEY = "safety_zoo_masters"
#: Where it keeps gradients of batches that wait for others before a step.
GRADIENTS_KEY = "safety_zoo_gradients"


class Masters:
    """Float32 copies of parameters in half precision (`bf16-true`), which the optimizer steps on in their place.

    bfloat16 keeps 8 bits of a number: a step below 1/512 of a weight would be rounded away, every time. AdamW's
    averages are float32 with the copies: that of the squares could not fall in bfloat16.

    Args:
        parameters: all that are trained, by name; those in float32 are stepped on themselves.
        kept: copies by name, of the run that goes on.
    """

    def __init__(self, parameters: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        self.parameters = {name: one for name, one in parameters.items() if one.element_size() < 4}
        self.copies = {
            name: kept.get(name, one).detach().to(one.device, torch.float32, copy=True)
            for name, one in self.parameters.items()
        }

    def check(self, strategy: Strategy) -> None:
        """Raise BadArgumentError if there are copies, and the strategy shards weights or has an optimizer of its own.

        Copies of one shard would be kept in the checkpoint for all, and DeepSpeed would step on no weight.
        """
        if self.copies and not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise BadArgumentError(
                f"weights in half precision (bf16-true) are trained on one device or by ddp, not by "
                f"{type(strategy).__name__}: take the precision bf16-mixed or 32-true, or the strategy ddp"
            )

    @torch.no_grad()
    def take_gradients(self, *_: object) -> None:
        """Move the gradients to the copies. A weight that something else has changed since counts as it now is."""
        for name, parameter in self.parameters.items():
            copy = self.copies[name]
            copy.copy_(torch.where(copy.to(parameter.dtype) == parameter, copy, parameter))
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def give_weights(self, *_: object) -> None:
        """Round the copies to the parameters, and drop their gradients."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.copies[name])
            self.copies[name].grad = None


def waiting_gradients(module: lightning.LightningModule) -> dict[str, Tensor]:
    """The gradients by parameter where some batches wait for others before a step, the mean of all processes."""
    trainer = module.trainer
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    waits = done % trainer.accumulate_grad_batches > 0 and done < trainer.num_training_batches
    if trainer.state.fn != TrainerFn.FITTING or not waits:
        return {}
    known = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    return {name: trainer.strategy.reduce(one.clone(), reduce_op="mean") for name, one in known.items()}


def parameter_groups(
    named: Mapping[str, Tensor], masters: Masters, lr: float, weight_decay: float, factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Trained parameters by learning rate (the longest prefix in `factors` counts) and weight decay, on matrices only.

    Raises BadArgumentError for a prefix that none of the `named` parameters has.
    """
    for prefix in factors:
        if not any(name.startswith(prefix) for name in named):
            parts = {name.rsplit(".", depth)[0] for name in named for depth in (1, 2, 3)}
            raise BadArgumentError(f'lr_factors: no parameter begins with "{prefix}"' + close_match(prefix, parts))
    groups: dict[tuple[float, bool], list[Tensor]] = defaultdict(list)
    for name, parameter in named.items():
        if parameter.requires_grad:
            prefix = max((p for p in factors if name.startswith(p)), key=len, default="")
            groups[factors.get(prefix, 1.0), parameter.ndim >= 2].append(masters.copies.get(name, parameter))
    return [
        {"params": parameters, "lr": lr * factor, "weight_decay": weight_decay if matrix else 0.0}
        for (factor, matrix), parameters in groups.items()
    ]


def warm_cosine(warm: int, total: float) -> Callable[[int], float]:
    """The factor of the learning rate at a step: up to 1 in `warm` steps, then a cosine to 0 at `total`, if finite."""

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        if math.isinf(total):
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

    return factor
