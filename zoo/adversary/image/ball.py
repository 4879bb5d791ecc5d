"""The set of allowed images: at most eps away from the clean one in Linf or L2, and inside [0, 1]."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from zoo.adversary.image.target import ImageBatch
from zoo.adversary.threat import ImagePart


def lengths(offsets: Tensor, norm: str) -> Tensor:
    """The norm `[B, 1, 1, 1]` of each offset `[B, C, H, W]`."""
    if norm == "Linf":
        return offsets.abs().amax(dim=(1, 2, 3), keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(offsets, dim=(1, 2, 3), keepdim=True)
    return norms


def noise(threat: ImagePart, attack: str, restart: int, rows: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Uniform numbers in [0, 1), `[len(rows), *shape]` float32.

    Each image has a stream of its own, by seed, attack, restart and its row in the whole set: how the set is split into
    batches, and which other images are still in the race, changes nothing.
    """
    name = zlib.crc32(attack.encode())
    streams = [np.random.default_rng([threat.seed, name, restart, row]).random(shape, np.float32) for row in rows]
    return torch.from_numpy(np.stack(streams))


@dataclass(frozen=True)
class Ball:
    """The allowed images around `clean` `[B, C, H, W]`."""

    clean: Tensor
    norm: str
    eps: float

    @classmethod
    def around(cls, clean: Tensor, threat: ImagePart) -> Ball:
        """The ball of a threat model around clean images in [0, 1]."""
        return cls(clean, threat.norm, threat.eps)

    @cached_property
    def low(self) -> Tensor:
        """The lower bound of each pixel in Linf, `[B, C, H, W]`."""
        return (self.clean - self.eps).clamp_(min=0)

    @cached_property
    def high(self) -> Tensor:
        """The upper bound of each pixel in Linf, `[B, C, H, W]`."""
        return (self.clean + self.eps).clamp_(max=1)

    def take(self, keep: Tensor) -> Ball:
        """The balls around some of the images."""
        return replace(self, clean=self.clean[keep])

    def project(self, pixels: Tensor) -> Tensor:
        """Bring images `[B, C, H, W]` back into the ball and into [0, 1]; overwrites them.

        In L2 first onto the sphere, then into the box: not the nearest point, but an allowed one, since the clean
        image is in the box and clamping brings every pixel nearer to it.
        """
        if self.norm == "Linf":
            return torch.clamp(pixels, self.low, self.high, out=pixels)
        offset = pixels.sub_(self.clean)
        offset *= (self.eps / lengths(offset, "L2").clamp_(min=1e-12)).clamp_(max=1)
        return offset.add_(self.clean).clamp_(0, 1)

    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest ascent of length 1 in this norm, as a new tensor: the sign, or the unit vector."""
        if self.norm == "Linf":
            return gradient.sign()
        return gradient / lengths(gradient, "L2").clamp_(min=1e-12)

    def random(self, threat: ImagePart, attack: str, restart: int, batch: ImageBatch, *, edge: bool = False) -> Tensor:
        """A random allowed image for each of the batch: uniform in Linf; in L2 of uniform direction and length.

        With `edge` the length is eps in L2, the start of the reference implementation of APGD.
        """
        shape = batch.pixels.shape[1:]
        if self.norm == "Linf":
            offsets = noise(threat, attack, restart, batch.rows.tolist(), shape) * 2 - 1
        else:
            uniform = noise(threat, attack, restart, batch.rows.tolist(), (shape.numel() + 1,))
            # Normal by the inverse distribution function; the ends would be infinite.
            normal = torch.special.ndtri(uniform[:, 1:].clamp(1e-6, 1 - 1e-6)).view(-1, *shape)
            offsets = normal / lengths(normal, "L2").clamp(min=1e-12)
            if not edge:
                offsets *= uniform[:, 0].view(-1, 1, 1, 1)
        return self.project(self.clean + self.eps * offsets.to(self.clean))


class Race:
    """The images of a batch that one attack still works on, the balls around them, and what it found for each.

    Row by row, an attack drops the images that are done with, so that they cost it no further pass.
    """

    def __init__(self, batch: ImageBatch, threat: ImagePart) -> None:
        self.batch, self.ball = batch, Ball.around(batch.pixels, threat)
        #: For each image of the batch as it began, `[B, C, H, W]`, what was kept last.
        self.found = torch.empty_like(batch.pixels)
        self._places = torch.arange(len(batch), device=batch.pixels.device)

    def keep(self, images: Tensor, which: Tensor | slice = slice(None)) -> Tensor:
        """Keep images of those that run, all or those that a mask picks; returns what was found so far for all."""
        self.found[self._places[which]] = images[which]
        return self.found

    def drop(self, done: Tensor, images: Tensor | None = None) -> Tensor | slice:
        """Go on without the images that a mask picks; the index of the others, for what an attack holds of each.

        Of the dropped ones `images` are kept, unless that has been done.
        """
        if not done.any():
            return slice(None)
        if images is not None:
            self.keep(images, done)
        left = ~done
        self._places, self.batch, self.ball = self._places[left], self.batch.take(left), self.ball.take(left)
        return left
