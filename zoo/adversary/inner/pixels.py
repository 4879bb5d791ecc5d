"""PGD on the images of a training batch: a fixed number of passes and nothing checked on the way.

Madry et al. 2018 (arXiv 1706.06083) train on what this finds. The attacks that measure are those of
`zoo.adversary.image`: they let go of what is broken, count, and check every success again; here that would cost time
and change no gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from zoo.adversary.image.ball import Ball
from zoo.adversary.threat import ImagePart
from zoo.errors import BadArgumentError, close_match

#: Pixels `[B, C, H, W]` to what the attack raises: a scalar, to which each image contributes a summand of its own.
Objective: TypeAlias = Callable[[Tensor], Tensor]

#: What a training threat may say: an attacker in training is always PGD, with one start.
FIELDS = ("norm", "eps", "steps", "step_size")


def training_threat(fields: Mapping[str, Any], *, single_step: bool = False) -> ImagePart:
    """The threat of `{norm: Linf, eps: 4/255, steps: 10, step_size: 1/255}`; steps are 10 unless given.

    `single_step` is FGSM from a random start with a step of 1.25 eps (Wong et al. 2020, arXiv 2001.03994). Raises
    BadInputError for a field that training does not use, BadCardError for a wrong value.
    """
    given = dict(fields)
    if given.get("attacks") in (["pgd"], ("pgd",)):
        del given["attacks"]
    for name in given:
        if name not in FIELDS:
            raise BadArgumentError(f'threat: training attacks by PGD and knows no "{name}"' + close_match(name, FIELDS))
    if single_step and given.get("steps", 1) != 1:
        raise BadArgumentError(f"threat: a single-step method takes 1 step, got {given['steps']}")
    given = {"steps": 1 if single_step else 10, **given}
    threat = ImagePart.from_dict({"attacks": ["pgd"], **given}, "threat")
    if single_step and threat.step_size is None:
        threat = dataclasses.replace(threat, step_size=1.25 * threat.eps)
    return threat


def scaled(threat: ImagePart, share: float) -> ImagePart:
    """The threat with a share in (0, 1] of its eps, and of its step."""
    if share >= 1:
        return threat
    step = None if threat.step_size is None else share * threat.step_size
    return dataclasses.replace(threat, eps=share * threat.eps, step_size=step)


def random_start(ball: Ball, generator: torch.Generator | None = None) -> Tensor:
    """A random allowed image for each clean one, from torch's own stream: of uniform offsets (Linf) or length (L2)."""
    clean = ball.clean.detach()
    offsets = torch.empty_like(clean)
    if ball.norm == "Linf":
        offsets.uniform_(-ball.eps, ball.eps, generator=generator)
    else:
        offsets.normal_(generator=generator)
        length = torch.rand(len(clean), 1, 1, 1, device=clean.device, generator=generator) * ball.eps
        offsets = ball.direction(offsets) * length
    return ball.project(offsets.add_(clean))


def ascend(pixels: Tensor, gradient: Tensor, ball: Ball, threat: ImagePart) -> Tensor:
    """One step of PGD, projected; a gradient that is no number moves nothing."""
    return ball.project(pixels.add(ball.direction(gradient.nan_to_num_(0.0, 0.0, 0.0)), alpha=threat.pgd_step))


def climb(objective: Objective, pixels: Tensor, ball: Ball, threat: ImagePart, steps: int) -> Tensor:
    """Some steps of PGD from images `[B, C, H, W]` in the ball. Raises as `pixel_gradient`."""
    for _ in range(steps):
        pixels = ascend(pixels, pixel_gradient(objective, pixels), ball, threat)
    return pixels


def perturb(
    objective: Objective, pixels: Tensor, threat: ImagePart, generator: torch.Generator | None = None
) -> Tensor:
    """PGD from a random start: images `[B, C, H, W]` float32 at most eps from `pixels` and in [0, 1].

    Put the model in evaluation mode with frozen parameters first (`zoo.adversary.image.target.evaluation_mode`):
    else dropout fools the attack, batch statistics leak between the images, and gradients of weights are computed
    for nothing. Raises BadInputError when the objective does not depend on the pixels.
    """
    ball = Ball.around(pixels, threat)
    return climb(objective, random_start(ball, generator), ball, threat, threat.steps)


def pixel_gradient(objective: Objective, pixels: Tensor) -> Tensor:
    """The gradient `[B, C, H, W]` float32 of an objective; BadInputError when it does not depend on the pixels."""
    with torch.enable_grad():
        leaf = pixels.detach().requires_grad_()
        value = objective(leaf)
        if not value.requires_grad:
            raise BadArgumentError("the model's loss has no gradient in the pixels: there is nothing to train against")
        (gradient,) = torch.autograd.grad(value, leaf)
    return gradient
