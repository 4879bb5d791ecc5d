"""A small network that tells drawn shapes apart, trained on the spot: something to attack where there are no data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.signs import COLOURS, PLACES, SHAPES, Signs, draw

_SIDE = 32


def shapes_model(count: int, *, seed: int = 0, train: int = 1500, epochs: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, and `count` fresh pictures `[N, 3, 32, 32]` in [0, 1] with the places `[N]` of their shapes."""
    rng = np.random.default_rng(seed)
    pixels, labels = _draw(train, rng)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (_SIDE // 4) ** 2, 64),
            nn.ReLU(),
            nn.Linear(64, len(SHAPES)),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(train), 64):
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(model(pixels[rows]), labels[rows]))
                optimizer.step()
    return model.eval(), *_draw(count, rng)


def _draw(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pictures of one sign in the middle, in any colour, and the places of their shapes in `SHAPES`."""
    names, colours = list(SHAPES), list(COLOURS)
    labels = rng.integers(len(names), size=count)
    pictures = [
        draw(Signs(names[label], colours[rng.integers(len(colours))], 1, list(PLACES)[-1]), _SIDE, rng)
        for label in labels
    ]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return pixels.permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels).long()
