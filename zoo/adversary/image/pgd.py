"""The gradient attacks on pixels: FGSM and PGD with a fixed step, APGD with one that adapts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from zoo.adversary.image.ball import Ball
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
    ball = Ball.around(batch.pixels, threat)
    pixels = ball.random(threat, "pgd", restart, batch)
    result = pixels.clone()
    places = torch.arange(len(batch), device=pixels.device)
    for _ in range(threat.steps):
        logits, _, gradient = target.gradient(pixels, batch, cross_entropy)
        fooled = target.fooled(logits, batch)
        if fooled.any():
            result[places[fooled]] = pixels[fooled]
            keep = ~fooled
            pixels, gradient, places = pixels[keep], gradient[keep], places[keep]
            batch, ball = batch.take(keep), ball.take(keep)
            if not len(batch):
                return result
        pixels = ball.project(pixels.add_(ball.direction(gradient), alpha=threat.pgd_step))
    result[places] = pixels
    return result


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


@dataclass
class _Ascent:
    """The state of the ascent of each image, row by row; `place` is its row in the given batch."""

    place: Tensor
    pixels: Tensor
    previous: Tensor
    gradient: Tensor
    value: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    size: Tensor  # of the step
    rises: Tensor  # steps since the last checkpoint that raised the objective
    old_value: Tensor  # the best at the last checkpoint
    halved: Tensor  # at the last checkpoint

    def take(self, keep: Tensor) -> _Ascent:
        return _Ascent(*(getattr(self, field.name)[keep] for field in fields(self)))

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
    ball = Ball.around(batch.pixels, threat)
    state = _begin(ball.random(threat, name, restart, batch, edge=True), 2 * threat.eps)
    result = torch.empty_like(batch.pixels)
    last, following = 0, checkpoints(threat.steps)
    for step in range(threat.steps + 1):
        if step > 0:
            state.move(ball, _MOMENTUM if step > 1 else 1.0)
        logits, value, gradient = target.gradient(state.pixels, batch, objective)
        state.learn(value, gradient)
        fooled = target.fooled(logits, batch)
        if fooled.any():
            result[state.place[fooled]] = state.pixels[fooled]
            keep = ~fooled
            state, batch, ball = state.take(keep), batch.take(keep), ball.take(keep)
            if not len(batch):
                return result
        if step in following:
            state.look_again(step - last)
            last = step
    result[state.place] = state.best
    return result


def _begin(start: Tensor, size: float) -> _Ascent:
    """The state before the first look at the gradient: nothing is known to be good, so the start is the best."""
    lowest = torch.full((len(start),), -torch.inf, device=start.device)
    return _Ascent(
        place=torch.arange(len(start), device=start.device),
        pixels=start,
        previous=start,
        gradient=start,
        value=-lowest,  # so that the start counts as no rise
        best=start,
        best_gradient=start,
        best_value=lowest,
        size=torch.full((len(start), 1, 1, 1), size, device=start.device),
        rises=torch.zeros_like(lowest),
        old_value=lowest,
        halved=torch.zeros_like(lowest, dtype=torch.bool),
    )
