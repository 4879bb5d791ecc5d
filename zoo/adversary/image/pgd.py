"""The gradient attacks on pixels: FGSM and PGD with a fixed step, APGD with one that adapts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.adversary.image.ball import Ball, Race
from zoo.adversary.image.target import ImageBatch, Objective, Target, cross_entropy, targeted_dlr
from zoo.adversary.threat import ImagePart


def fgsm(target: Target, batch: ImageBatch, threat: ImagePart, restart: int = 0) -> Tensor:
    """One step of length eps from the clean image (Goodfellow et al. 2015, arXiv 1412.6572): pixels `[B, C, H, W]`."""
    ball = Ball.around(batch.pixels, threat)
    gradient = batch.gradient  # at the clean image, where it may be known already
    if gradient is None:
        _, _, gradient = target.gradient(batch.pixels, batch, cross_entropy)
    return ball.project(ball.direction(gradient).mul_(threat.eps).add_(batch.pixels))


def pgd(target: Target, batch: ImageBatch, threat: ImagePart, restart: int = 0) -> Tensor:
    """Projected gradient ascent on the cross-entropy from a random start (Madry et al. 2018, arXiv 1706.06083).

    Returns pixels `[B, C, H, W]`: of an image that is misjudged on the way, the first such ones; else the last.
    """
    race = Race(batch, threat)
    pixels = race.ball.random(threat, "pgd", restart, batch)
    for _ in range(threat.steps):
        logits, _, gradient = target.gradient(pixels, race.batch, cross_entropy)
        left = race.drop(target.fooled(logits, race.batch), pixels)
        pixels, gradient = pixels[left], gradient[left]
        if not len(pixels):
            break
        pixels = race.ball.project(pixels.add_(race.ball.direction(gradient), alpha=threat.pgd_step))
    return race.keep(pixels)


_MOMENTUM = 0.75  # the paper's alpha
_RISING = 0.75  # the paper's rho: the share of steps since the last checkpoint that must have raised the objective


def apgd_ce(target: Target, batch: ImageBatch, threat: ImagePart, restart: int = 0) -> Tensor:
    """APGD on the cross-entropy: pixels `[B, C, H, W]`, the first misjudged ones, else those of the highest loss."""
    return _apgd(target, batch, threat, restart, cross_entropy, "apgd-ce")


def apgd_t(target: Target, batch: ImageBatch, threat: ImagePart, restart: int = 0) -> Tensor:
    """APGD towards the classes `batch.goals`, on the targeted DLR, or with two classes on the margin: as `apgd_ce`."""
    return _apgd(target, batch, threat, restart, targeted_dlr, "apgd-t")


def checkpoints(steps: int) -> list[int]:
    """The steps after which the step size is adapted (section 3 of the paper), without step 0."""
    percent = [0, 22]
    while percent[-1] < 100:
        percent.append(percent[-1] + max(percent[-1] - percent[-2] - 3, 6))
    return [math.ceil(share * steps / 100) for share in percent[1:] if share <= 100]


class _Ascent:
    """The state of the ascent of each image, row by row: pixels, gradient and objective, now and at their best."""

    def __init__(self, start: Tensor, size: float) -> None:
        lowest = torch.full((len(start),), -torch.inf, device=start.device)
        self.pixels = self.previous = self.gradient = start
        # Nothing is known to be good before the first look at the gradient, so the start is the best.
        self.best = self.best_gradient = start
        self.best_value = self.old_value = lowest  # now, and at the last checkpoint
        self.value = -lowest  # so that the start counts as no rise
        self.size = torch.full((len(start), 1, 1, 1), size, device=start.device)  # of the step
        self.rises = torch.zeros_like(lowest)  # steps since the last checkpoint that raised the objective
        self.halved = torch.zeros_like(lowest, dtype=torch.bool)  # at the last checkpoint

    def take(self, left: Tensor | slice) -> None:
        """Go on with some of the images."""
        for name, rows in vars(self).items():
            setattr(self, name, rows[left])

    def move(self, ball: Ball, momentum: float) -> None:
        """Step up along the gradient, and a part of the way that the last step went (equation 1 of the paper)."""
        ahead = ball.direction(self.gradient).mul_(self.size).add_(self.pixels)
        ahead = ball.project(ahead).sub_(self.pixels).mul_(momentum)
        ahead.add_(self.pixels).add_(self.pixels - self.previous, alpha=1 - momentum)
        self.previous, self.pixels = self.pixels, ball.project(ahead)

    def learn(self, value: Tensor, gradient: Tensor) -> None:
        """Take in the objective `[b]` and its gradient at the pixels."""
        self.rises += value > self.value
        self.value, self.gradient = value, gradient
        better = value > self.best_value
        self.best_value = torch.where(better, value, self.best_value)
        wide = better[:, None, None, None]
        self.best = torch.where(wide, self.pixels, self.best)
        self.best_gradient = torch.where(wide, gradient, self.best_gradient)

    def look_again(self, steps: int) -> None:
        """At a checkpoint, `steps` after the last: halve the step, from the best point, where the ascent is stuck."""
        stuck = self.rises < _RISING * steps
        stuck |= ~self.halved & (self.best_value <= self.old_value)
        wide = stuck[:, None, None, None]
        self.size = torch.where(wide, self.size / 2, self.size)
        self.pixels = torch.where(wide, self.best, self.pixels)
        self.previous = torch.where(wide, self.best, self.previous)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)
        self.value = torch.where(stuck, self.best_value, self.value)
        self.halved, self.old_value = stuck, self.best_value
        self.rises = torch.zeros_like(self.rises)


def _apgd(
    target: Target, batch: ImageBatch, threat: ImagePart, restart: int, objective: Objective, name: str
) -> Tensor:
    race = Race(batch, threat)
    state = _Ascent(race.ball.random(threat, name, restart, batch, edge=True), 2 * threat.eps)
    last, following = 0, checkpoints(threat.steps)
    for step in range(threat.steps + 1):
        if step > 0:
            state.move(race.ball, _MOMENTUM if step > 1 else 1.0)
        logits, value, gradient = target.gradient(state.pixels, race.batch, objective)
        state.learn(value, gradient)
        state.take(race.drop(target.fooled(logits, race.batch), state.pixels))
        if not len(state.pixels):
            break
        if step in following:
            state.look_again(step - last)
            last = step
    return race.keep(state.best)
