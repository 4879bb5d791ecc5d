"""Square: random search with squares, which needs logits only (Andriushchenko et al. 2020, arXiv 1912.00049)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.adversary.image.ball import Ball, lengths, noise
from zoo.adversary.image.target import ImageBatch, Target, margin
from zoo.adversary.threat import ImagePart

_ROUNDS = 4  # of scaling an L2 perturbation to eps and clipping it
_SHARE = 0.8  # of the image that the first squares cover; AutoAttack's choice in both norms
#: The share is halved after each of these numbers of 10,000 queries (section 3.2 of the paper).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(target: Target, batch: ImageBatch, threat: ImagePart, restart: int = 0) -> Tensor:
    """Change one random square at a time, keep what brings the image nearer to a misjudgement: pixels `[B, C, H, W]`.

    The places of the squares are one sequence for all images, set by seed and restart; the signs are each image's own.
    """
    ball = Ball.around(batch.pixels, threat)
    draw = np.random.default_rng([threat.seed, restart])
    propose = _linf_square if threat.norm == "Linf" else _l2_squares
    pixels = _stripes(ball, batch, threat, restart) if threat.norm == "Linf" else _tiles(ball, batch, threat, restart)
    signs = _Signs(threat, restart, batch)
    result = pixels.clone()
    places = torch.arange(len(batch), device=pixels.device)
    value = torch.full((len(batch),), -torch.inf, device=pixels.device)
    trial = pixels
    for query in range(threat.queries):
        if query > 0:
            trial = propose(pixels, ball, signs.at(query), _side(query, threat.queries, pixels), draw)
        logits = target.logits(trial, batch)
        new = margin(logits, batch)
        # Equal ones too: the search must cross plateaus, and elsewhere two margins are rarely equal.
        better = new >= value
        value = torch.where(better, new, value)
        pixels = torch.where(better[:, None, None, None], trial, pixels)
        fooled = target.fooled(logits, batch)
        if fooled.any():
            result[places[fooled]] = trial[fooled]
            keep = ~fooled
            pixels, value, places = pixels[keep], value[keep], places[keep]
            batch, ball = batch.take(keep), ball.take(keep)
            signs.take(keep)
            if not len(batch):
                return result
    result[places] = pixels
    return result


@dataclass
class _Signs:
    """The random signs of each image, query by query, drawn in blocks."""

    threat: ImagePart
    restart: int
    batch: ImageBatch
    _block: Tensor | None = None
    _start: int = -1

    _LENGTH = 500

    def at(self, query: int) -> Tensor:
        """Signs `[B, C, 1, 1]` of one query, -1 or 1."""
        start = query - query % self._LENGTH
        if self._block is None or start != self._start:
            shape = (self._LENGTH, self.batch.pixels.shape[1])
            uniform = noise(self.threat, f"square {start}", self.restart, self.batch.rows.tolist(), shape)
            self._block = (uniform.to(self.batch.pixels.device) < 0.5).to(self.batch.pixels) * 2 - 1
            self._start = start
        return self._block[:, query - start, :, None, None]

    def take(self, keep: Tensor) -> None:
        """Go on with some of the images."""
        self.batch = self.batch.take(keep)
        self._block = None if self._block is None else self._block[keep]


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
    uniform = noise(threat, "square start", restart, batch.rows.tolist(), (channels, 1, width)).to(batch.pixels)
    return ball.project(batch.pixels + threat.eps * ((uniform < 0.5).to(uniform) * 2 - 1))


def _linf_square(pixels: Tensor, ball: Ball, signs: Tensor, side: int, draw: np.random.Generator) -> Tensor:
    """Set a square to the clean image plus or minus eps, a sign per channel (algorithm 2 of the paper).

    If that would change nothing, the signs are inverted, so that no query repeats a known result.
    """
    assert ball.low is not None
    assert ball.high is not None
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
    uniform = noise(threat, "square start", restart, batch.rows.tolist(), (channels, rows, columns)).to(batch.pixels)
    signs = (uniform < 0.5).to(uniform) * 2 - 1
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
