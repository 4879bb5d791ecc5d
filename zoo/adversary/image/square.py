"""Square: random search with squares, which needs logits only (Andriushchenko et al. 2020, arXiv 1912.00049)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from zoo.adversary.image.ball import Ball, Race, lengths, noise
from zoo.adversary.image.target import ImageBatch, Target, margin
from zoo.adversary.threat import ImagePart

_ROUNDS = 4  # of scaling an L2 perturbation to eps and clipping it
_SHARE = 0.8  # of the image that the first squares cover; AutoAttack's choice in both norms
_BLOCK = 500  # for how many queries signs are drawn at once
#: The share is halved after each of these numbers of 10,000 queries (section 3.2 of the paper).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(target: Target, batch: ImageBatch, threat: ImagePart, restart: int = 0) -> Tensor:
    """Change one random square at a time, keep what brings the image nearer to a misjudgement: pixels `[B, C, H, W]`.

    The places of the squares are one sequence for all images, set by seed and restart; the signs are each image's own.
    """
    race = Race(batch, threat)
    draw = np.random.default_rng([threat.seed, restart])
    start, propose = (_stripes, _linf_square) if threat.norm == "Linf" else (_tiles, _l2_squares)
    trial = pixels = start(race.ball, batch, threat, restart)
    value = torch.full((len(batch),), -torch.inf, device=pixels.device)
    for query in range(threat.queries):
        if query % _BLOCK == 0:
            signs = _signs(threat, f"square {query}", restart, race.batch, _BLOCK, pixels.shape[1])
        if query > 0:
            own = signs[:, query % _BLOCK, :, None, None]
            trial = propose(pixels, race.ball, own, _side(query, threat.queries, pixels), draw)
        logits = target.logits(trial, race.batch)
        new = margin(logits, race.batch)
        # Equal ones too: the search must cross plateaus, and elsewhere two margins are rarely equal.
        better = new >= value
        value = torch.where(better, new, value)
        pixels = torch.where(better[:, None, None, None], trial, pixels)
        left = race.drop(target.fooled(logits, race.batch), trial)
        pixels, value, signs = pixels[left], value[left], signs[left]
        if not len(pixels):
            break
    return race.keep(pixels)


def _signs(threat: ImagePart, attack: str, restart: int, batch: ImageBatch, *shape: int) -> Tensor:
    """Random signs, -1 or 1, for each image: `[B, *shape]` in the type of its pixels."""
    uniform = noise(threat, attack, restart, batch.rows.tolist(), shape).to(batch.pixels)
    return (uniform < 0.5).to(uniform) * 2 - 1


def _side(query: int, queries: int, pixels: Tensor) -> int:
    """The side of the squares at a query, in pixels: at least 1, and it leaves room to move."""
    height, width = pixels.shape[2:]
    halvings = sum(query * 10_000 / queries > after for after in _HALVINGS)
    side = round(math.sqrt(_SHARE / 2**halvings * height * width))
    return max(1, min(side, min(height, width) - 1))


def _window(side: int, pixels: Tensor, draw: np.random.Generator) -> tuple[slice, slice, slice, slice]:
    """A random square of an image, as an index into `[B, C, H, W]`."""
    height, width = pixels.shape[2:]
    top, left = (int(draw.integers(0, room - side + 1)) for room in (height, width))
    return slice(None), slice(None), slice(top, top + side), slice(left, left + side)


def _stripes(ball: Ball, batch: ImageBatch, threat: ImagePart, restart: int) -> Tensor:
    """The start in Linf: vertical stripes of one pixel, up or down by eps at random in each channel."""
    _, channels, _, width = batch.pixels.shape
    return ball.project(batch.pixels + threat.eps * _signs(threat, "square start", restart, batch, channels, 1, width))


def _linf_square(pixels: Tensor, ball: Ball, signs: Tensor, side: int, draw: np.random.Generator) -> Tensor:
    """Set a square to the clean image plus or minus eps, a sign per channel (algorithm 2 of the paper).

    If that would change nothing, the signs are inverted, so that no query repeats a known result.
    """
    window = _window(side, pixels, draw)
    low, high, old = ball.low[window], ball.high[window], pixels[window]
    new = torch.where(signs > 0, high, low)
    same = (new == old).flatten(1).all(dim=1)[:, None, None, None]
    trial = pixels.clone()
    trial[window] = torch.where(same, torch.where(signs > 0, low, high), new)
    return trial


def _tiles(ball: Ball, batch: ImageBatch, threat: ImagePart, restart: int) -> Tensor:
    """The start in L2: a grid of about 5 x 5 bumps of random sign, together of length eps."""
    count, channels, height, width = batch.pixels.shape
    side = max(1, min(height, width) // 5)
    rows, columns = height // side, width // side
    signs = _signs(threat, "square start", restart, batch, channels, rows, columns)
    offset = torch.zeros_like(batch.pixels)
    bumps = torch.kron(signs.reshape(-1, rows, columns), _two_bumps(side, upright=True).to(signs))
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    grid = offset[:, :, top : top + rows * side, left : left + columns * side]
    grid.copy_(bumps.view(count, channels, rows * side, columns * side))
    return _spend(offset, ball)


def _spend(offset: Tensor, ball: Ball) -> Tensor:
    """The images whose perturbation in L2 has this direction and the length eps, as nearly as [0, 1] allows.

    The paper scales once and clips, which wastes a good part of the budget on images with much black or white;
    scaling again what the clipping left spends it.
    """
    for _ in range(_ROUNDS):
        offset *= ball.eps / lengths(offset, "L2").clamp_(min=1e-12)
        offset = offset.add_(ball.clean).clamp_(0, 1).sub_(ball.clean)
    return ball.project(offset.add_(ball.clean))


def _bump(height: int, width: int) -> Tensor:
    """The pattern `[height, width]` of equation 2 of the paper: highest in the middle, falling off to the border."""
    half = height // 2
    down = (torch.arange(height) - half).abs()[:, None]
    across = (torch.arange(width) - width // 2).abs()[None, :]
    rings = (half - torch.maximum(down, across)).clamp(min=0)
    terms = 1 / (half + 1 - torch.arange(half + 1, dtype=torch.float32)) ** 2
    return terms.cumsum(0)[rings]


def _two_bumps(side: int, *, upright: bool) -> Tensor:
    """Two bumps of opposite sign side by side in a square `[side, side]`, of length 1 together."""
    if side == 1:
        return torch.ones(1, 1)
    half = side // 2
    pattern = torch.cat([_bump(side, half), -_bump(side, side - half)], dim=1)
    pattern = pattern if upright else pattern.T
    return pattern / pattern.square().sum().sqrt()


def _l2_squares(pixels: Tensor, ball: Ball, signs: Tensor, side: int, draw: np.random.Generator) -> Tensor:
    """Move what one square spends of the budget, and what is not spent at all, into another (algorithm 3)."""
    side = min(max(side, 3) // 2 * 2 + 1, min(pixels.shape[2:]))  # odd, so that a bump has a middle
    gain, loss = _window(side, pixels, draw), _window(side, pixels, draw)
    offset = pixels - ball.clean
    unused = (ball.eps**2 - lengths(offset, "L2") ** 2).clamp_(min=0) / pixels.shape[1]
    bumps = signs * _two_bumps(side, upright=bool(draw.integers(2))).to(pixels)
    there = offset[gain]
    new = bumps + there / _energy(there).clamp_(min=1e-24).sqrt()
    freed = _energy(there) + _energy(offset[loss]) - _energy(offset[_overlap(gain, loss)])
    new *= ((freed + unused).clamp_(min=0) / _energy(new).clamp_(min=1e-24)).sqrt()
    offset[loss] = 0
    offset[gain] = new
    return _spend(offset, ball)


def _energy(offset: Tensor) -> Tensor:
    """The squared length `[B, C, 1, 1]` of each channel."""
    return offset.square().sum(dim=(2, 3), keepdim=True)


def _overlap(one: tuple[slice, ...], other: tuple[slice, ...]) -> tuple[slice, ...]:
    """The square that two squares share, perhaps empty, as an index into `[B, C, H, W]`."""
    shared = []
    for a, b in zip(one[2:], other[2:], strict=True):
        start = max(a.start, b.start)
        shared.append(slice(start, max(start, min(a.stop, b.stop))))
    return slice(None), slice(None), *shared
