"""The gradient attacks with a fixed step: FGSM and PGD."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.adversary.image.ball import Ball
from zoo.adversary.image.loss import cross_entropy
from zoo.adversary.image.target import Batch, Target
from zoo.adversary.threat import ImagePart


def fgsm(target: Target, batch: Batch, threat: ImagePart, restart: int = 0) -> Tensor:
    """One step of length eps from the clean image (Goodfellow et al. 2015, arXiv 1412.6572): pixels `[B, C, H, W]`."""
    ball = Ball.around(batch.pixels, threat)
    gradient = batch.gradient  # at the clean image, where it may be known already
    if gradient is None:
        _, _, gradient = target.gradient(batch.pixels, batch, cross_entropy)
    return ball.project(ball.direction(gradient).mul_(threat.eps).add_(batch.pixels))


def pgd(target: Target, batch: Batch, threat: ImagePart, restart: int = 0) -> Tensor:
    """Projected gradient ascent on the cross-entropy from a random start (Madry et al. 2018, arXiv 1706.06083).

    Returns pixels `[B, C, H, W]`: of an image that is misjudged on the way, the first such ones; else the last.
    """
    ball = Ball.around(batch.pixels, threat)
    pixels = ball.random(threat, "pgd", restart, batch)
    found = pixels.clone()
    places = torch.arange(len(batch), device=pixels.device)
    for _ in range(threat.steps):
        logits, _, gradient = target.gradient(pixels, batch, cross_entropy)
        fooled = target.fooled(logits, batch)
        if fooled.any():
            found[places[fooled]] = pixels[fooled]
            keep = ~fooled
            pixels, gradient, places = pixels[keep], gradient[keep], places[keep]
            batch, ball = batch.take(keep), ball.take(keep)
            if not len(batch):
                return found
        pixels = ball.project(pixels.add_(ball.direction(gradient), alpha=threat.pgd_step))
    found[places] = pixels
    return found
