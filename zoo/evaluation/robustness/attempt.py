"""What one attack did to the items at one operating point, and the best of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """What an item was turned into: its image `[3, S, S]` (float32 in [0, 1], uint8 once kept), its text, or both."""

    pixels: Tensor | None = None
    text: str | None = None


@dataclass
class Attempt:
    """One attack on N items. `attempted`, `broken` and `blind` `[N]` bool; only attempted items can be broken.

    `blind`: the model gave no gradient there, so that the attack went on without one. `refuted` counts successes
    that a fresh pass did not confirm, which break nothing. `forwards` and `backwards` count inputs that the model
    judged and was differentiated for: of a black-box attack, the queries. `found` holds what was found for the items
    that it changed, by their places; once the attack is over, of the broken ones, and only if they are to be kept.
    """

    attack: str
    attempted: Tensor
    broken: Tensor
    blind: Tensor
    why_blind: str = ""
    randomised: bool = False
    refuted: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    found: dict[int, Example] = field(default_factory=dict)
    #: The model's logits `[N, K]` of what was found, the clean ones elsewhere.
    logits: Tensor | None = None

    @classmethod
    def start(cls, attack: str, attempted: Tensor) -> Attempt:
        """An attack that has done nothing yet."""
        return cls(attack, attempted, torch.zeros_like(attempted), torch.zeros_like(attempted))


def broken_by_any(attempts: Sequence[Attempt]) -> Tensor:
    """The items `[N]` that at least one attack broke: the worst case."""
    found: Tensor = torch.stack([attempt.broken for attempt in attempts]).any(dim=0)
    return found


def towards_clean(found: Tensor, clean: Tensor) -> Tensor:
    """Round attacked pixels `[..., S, S]` in [0, 1] to grey levels, uint8, towards the clean ones (uint8).

    So no perturbation grows, and what was within a budget still is.
    """
    steps = found.double() * 255 - clean.double()
    # What float32 made of a whole step (3.99999 of 4) is that step: 1e-4 grey levels are within every tolerance.
    return (clean.double() + torch.trunc(steps + 1e-4 * steps.sign())).clamp(0, 255).to(torch.uint8)
