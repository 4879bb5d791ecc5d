"""The worst inputs of a training batch: words exchanged by the first backward pass, pixels moved by every one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from zoo.adversary.image.ball import Ball
from zoo.adversary.inner.pixels import ascend, climb, random_start
from zoo.adversary.inner.words import WordSwaps
from zoo.adversary.text.model import watched
from zoo.adversary.threat import ImagePart

#: A model's inputs by name (`image`, `input_ids`, `attention_mask`, ...), `[B, ...]` each.
Inputs: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Words:
    """Up to `count` exchanges of words in the texts of the `rows` `[B]` bool."""

    swaps: WordSwaps
    count: int
    rows: Tensor


def worst_inputs(
    objective: Callable[[Inputs], Tensor],
    inputs: Inputs,
    threat: ImagePart | None,
    words: Words | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The inputs with images attacked (where there is a `threat`) and words exchanged (where there are `words`).

    `objective` is a scalar to which each row contributes a summand of its own. With both, the first pass takes the
    gradient in pixels and in words at once, and the other passes attack the image beside the changed text: as many
    passes as PGD alone. As with `zoo.adversary.inner.pixels.perturb`, the model is the caller's to put in evaluation
    mode.
    """
    found = dict(inputs)
    if threat is None:
        if words is not None:
            _exchange(objective, found, words, [])
        return found
    ball = Ball.around(inputs["image"], threat)
    found["image"], steps = random_start(ball, generator), threat.steps
    if words is not None:
        (slope,) = _exchange(objective, found, words, ["image"])
        found["image"], steps = ascend(found["image"], slope, ball, threat), steps - 1
    found["image"] = climb(lambda pixels: objective(found | {"image": pixels}), found["image"], ball, threat, steps)
    return found


def _exchange(
    objective: Callable[[Inputs], Tensor], found: dict[str, Tensor], words: Words, others: list[str]
) -> list[Tensor]:
    """Exchange words in `found`; returns the gradients in the other inputs, which are as they were."""
    leaves = {name: found[name].detach().requires_grad_() for name in others}
    ids, mask = found["input_ids"], found["attention_mask"]
    with torch.enable_grad(), watched(words.swaps.embedding) as looked_up:
        slope, rest = looked_up.gradient(objective(found | leaves), ids.shape, list(leaves.values()))
    swapped = words.swaps.best(ids, mask, slope, words.count)
    found["input_ids"] = torch.where(words.rows[:, None], swapped, ids)
    return rest
