"""FAB-T: the smallest perturbation that reaches another class (Croce & Hein 2020, arXiv 1907.02044)."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.adversary.image.ball import Race, lengths
from zoo.adversary.image.target import ImageBatch, Target, goal_margin, misjudged
from zoo.adversary.threat import ImagePart

_BIAS = 0.1  # alpha_max of the paper: how much of the way is taken from the clean image's own projection
_OVERSHOOT = 1.05  # eta: how far beyond the linearised boundary
_BACKWARD = 0.9  # beta: what remains of a perturbation that was large enough


def fab_t(target: Target, batch: ImageBatch, threat: ImagePart, restart: int = 0) -> Tensor:
    """Walk along the linearised boundary between the label and `batch.goals`, staying near the clean image.

    The first run starts at the clean image, later ones at random in half the ball. Returns pixels `[B, C, H, W]`: the
    smallest perturbation that was misjudged, projected into the ball if it lies outside; for an image that was never
    misjudged, the last. It maximises nothing inside the ball, so its results transfer badly.
    """
    race = Race(batch, threat)
    ball, pixels = race.ball, batch.pixels
    if restart > 0:
        pixels = pixels + 0.5 * (ball.random(threat, "fab-t", restart, batch) - pixels)
    smallest = torch.full((len(batch), 1, 1, 1), torch.inf, device=pixels.device)
    for _ in range(threat.steps):
        clean = race.batch.pixels
        pixels = _step(target, pixels, race.batch, threat.norm)
        beyond = misjudged(target.logits(pixels, race.batch), race.batch.labels)[:, None, None, None]
        size = lengths(pixels - clean, threat.norm)
        smaller = beyond & (size < smallest)
        race.keep(pixels, smaller.flatten())
        smallest = torch.where(smaller, size, smallest)
        pixels = torch.where(beyond, clean.lerp(pixels, _BACKWARD), pixels)
        left = race.drop((beyond & (size <= threat.eps) & target.stop).flatten())
        pixels, smallest = pixels[left], smallest[left]
        if not len(pixels):
            break
    return ball.project(race.keep(pixels, smallest.flatten() == torch.inf))


def _step(target: Target, pixels: Tensor, batch: ImageBatch, norm: str) -> Tensor:
    """One step (equation 9 of the paper) from pixels `[B, C, H, W]`, biased towards the clean images."""
    _, value, gradient = target.gradient(pixels, batch, goal_margin)
    # On the linearised boundary z: value + <gradient, z - pixels> = 0. The same plane is seen from both points.
    missing = -value
    clean_missing = missing - ((batch.pixels - pixels) * gradient).sum(dim=(1, 2, 3))
    here = towards_plane(pixels, gradient, missing, norm)
    there = towards_plane(batch.pixels, gradient, clean_missing, norm)
    near, far = lengths(here, norm), lengths(there, norm)
    share = (near / (near + far).clamp_(min=1e-12)).clamp_(max=_BIAS)
    ahead = here.mul_(_OVERSHOOT).add_(pixels)
    return ahead.lerp_(there.mul_(_OVERSHOOT).add_(batch.pixels), share.expand_as(ahead)).clamp_(0, 1)


def towards_plane(pixels: Tensor, gradient: Tensor, missing: Tensor, norm: str, rounds: int = 40) -> Tensor:
    """The smallest `d` `[B, C, H, W]` with `<gradient, d> = missing` `[B]` and `pixels + d` in [0, 1].

    Smallest in the norm `Linf` or `L2`; where the plane misses the box, the one that comes nearest to it. Such a `d`
    moves each pixel by `min(t * s, room)`, with one `t` per image and `s` = 1 in Linf, |gradient| in L2. What that
    gains, the sum of `|gradient| min(t * s, room)`, is a concave and piecewise linear function of `t`, so that
    Newton's method climbs from t = 0 to the exact solution in a few rounds, without sorting.
    """
    upward = gradient * missing.sign()[:, None, None, None]
    room = torch.where(upward > 0, 1 - pixels, pixels).flatten(1)
    weight = upward.abs().flatten(1)
    slopes = weight.square() if norm == "L2" else weight
    wanted = missing.abs()
    reach = torch.zeros_like(wanted)
    moved = torch.zeros_like(room)
    for _ in range(rounds):
        lacking = wanted - torch.linalg.vecdot(weight, moved)
        slope = torch.where(moved < room, slopes, 0).sum(dim=1)
        open_rows = (lacking > 1e-6 * wanted) & (slope > 0)
        if not open_rows.any():
            break
        reach += torch.where(open_rows, lacking / slope.clamp(min=1e-30), 0)
        # In Linf pixels without a gradient move too; the sign at the end holds them back.
        moved = torch.minimum(reach[:, None] * weight if norm == "L2" else reach[:, None], room)
    return moved.view_as(pixels).mul_(upward.sign())
