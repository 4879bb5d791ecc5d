"""The set of allowed images: at most eps away from the clean one in Linf or L2, and inside [0, 1]."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

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
    """The allowed images around `clean` `[B, C, H, W]`; `low` and `high` are the bounds of each pixel in Linf."""

    clean: Tensor
    norm: str
    eps: float
    low: Tensor | None = None
    high: Tensor | None = None

    @classmethod
    def around(cls, clean: Tensor, threat: ImagePart) -> Ball:
        """The ball of a threat model around clean images in [0, 1]."""
        if threat.norm == "L2":
            return cls(clean, "L2", threat.eps)
        return cls(clean, "Linf", threat.eps, (clean - threat.eps).clamp_(min=0), (clean + threat.eps).clamp_(max=1))

    def take(self, keep: Tensor) -> Ball:
        """The balls around some of the images."""
        if self.low is None or self.high is None:
            return Ball(self.clean[keep], self.norm, self.eps)
        return Ball(self.clean[keep], self.norm, self.eps, self.low[keep], self.high[keep])

    def project(self, pixels: Tensor) -> Tensor:
        """Bring images `[B, C, H, W]` back into the ball and into [0, 1]; overwrites them.

        In L2 first onto the sphere, then into the box: not the nearest point, but an allowed one, since the clean
        image is in the box and clamping brings every pixel nearer to it.
        """
        if self.low is not None:
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
