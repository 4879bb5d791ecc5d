"""Robustness against the budget of an image threat, from the smallest to the largest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from zoo.adversary.read import AnyThreat
from zoo.adversary.threat import ATTACKS, Threat
from zoo.errors import BadArgumentError, close_match
from zoo.evaluation.robustness.attacks import Campaign
from zoo.evaluation.robustness.report import Curve, CurvePoint
from zoo.metrics import Draws

#: Left out of a curve unless asked for: they cost many times what the others do.
SLOW = ("fab-t", "square")


def read_eps(text: str) -> tuple[float, ...]:
    """The budgets of `0,1/255,2/255`, sorted. Raises BadInputError for what is no number of at least 0."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            value = float(Fraction(part))
        except (ValueError, ZeroDivisionError):
            raise BadArgumentError(
                f'--eps: expected numbers or fractions such as 0,1/255,4/255, got "{part}"'
            ) from None
        if not (math.isfinite(value) and value >= 0):
            raise BadArgumentError(f"--eps: a budget is at least 0, got {part}")
        found.append(value)
    if not found:
        raise BadArgumentError("--eps names no budget; expected numbers or fractions such as 0,1/255,4/255")
    return tuple(sorted(set(found)))


def check_eps(threat: AnyThreat, eps: Sequence[float], attacks: Sequence[str]) -> None:
    """Raises BadInputError for a curve of a threat that has no such budget, or for an unknown attack."""
    if (eps or attacks) and not isinstance(threat, Threat):
        raise BadArgumentError("--eps draws the budget on pixels, so it goes with a threat on images")
    for attack in attacks:
        if attack not in ATTACKS:
            raise BadArgumentError(f'--eps-attacks: no attack is called "{attack}"' + close_match(attack, ATTACKS))
    if isinstance(threat, Threat) and threat.norm == "Linf" and max(eps, default=0) > 1:
        raise BadArgumentError(
            f"--eps is on pixels in [0, 1], got {max(eps):g}; for grey levels write {max(eps):g}/255"
        )


def robustness_curve(
    campaign: Campaign, threat: Threat, wanted: Tensor, draws: Draws, eps: Sequence[float], attacks: Sequence[str]
) -> Curve:
    """What holds at each budget. What broke at a smaller one is broken at a larger one, which holds it too."""
    names = tuple(attacks) or tuple(one for one in threat.attacks if one not in SLOW) or threat.attacks
    labels = campaign.items.labels
    correct = (campaign.point.answers(campaign.clean) == labels).numpy()
    attacked = campaign.attackable(threat, wanted).numpy()
    tells = not campaign.victim.by_label
    unsafe = (labels == 1).numpy() if tells else correct | True
    broken = torch.zeros(len(labels), dtype=torch.bool)
    points = []
    for value in sorted(eps):
        if value > 0:
            own = dataclasses.replace(threat, eps=value, attacks=names)
            broken |= campaign.sequence(own, wanted & ~broken)
        hit = broken.numpy()
        points.append(
            CurvePoint(
                value,
                draws.share(correct & ~hit),
                draws.share(correct & ~hit, unsafe) if tells else None,
                draws.share(hit, attacked & unsafe),
            )
        )
    return Curve(campaign.point.name, threat.norm, names, tuple(points))
