"""Pillow's antialiased resize as two matrix products: differentiable, and exported without a Resize node.

TensorRT has no antialiased Resize, and a resize that differs between training and deployment is the top
complaint about every exporter. The weights are computed from the input's shape inside the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.contract.card import ImageInput


class Resize(nn.Module):
    """`[B, 3, H, W]` in [0, 1], any H and W, to `[B, 3, size, size]` in [0, 1], as `spec` says."""

    def __init__(self, spec: ImageInput) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, pixels: Tensor) -> Tensor:
        """Resize a batch. Bicubic overshoot is clamped."""
        rows = torch.arange(pixels.shape[2], device=pixels.device)
        columns = torch.arange(pixels.shape[3], device=pixels.device)
        # Lengths as tensors, not Python numbers: they stay symbolic in the exported graph.
        height, width = rows[-1] + 1, columns[-1] + 1
        short = torch.minimum(height, width) if self.spec.resize == "shortest_edge_crop" else None
        down = self._weights(rows, height, short).to(pixels.dtype)
        across = self._weights(columns, width, short).to(pixels.dtype)
        # Across first, and clamped in between: Pillow keeps 8 bits between its two passes.
        narrow = torch.matmul(pixels, across.transpose(0, 1)).clamp(0.0, 1.0)
        return torch.matmul(down, narrow).clamp(0.0, 1.0)

    def _weights(self, positions: Tensor, length: Tensor, short: Tensor | None) -> Tensor:
        """The `[size, length]` matrix of one axis; each row sums to 1 (Pillow's `precompute_coeffs`)."""
        size = self.spec.size
        targets = torch.arange(size, device=positions.device)
        if self.spec.interpolation == "bilinear_align_corners":
            centres = targets.float() * ((length - 1).float() / max(size - 1, 1))
            return (1.0 - (positions.float()[None, :] - centres[:, None]).abs()).clamp(min=0.0)
        # `shortest_edge_crop`: the long side becomes size * long // short, and the centre `size` of it is kept.
        full = torch.full_like(length, size) if short is None else (length * size) // short
        offset = (full - size) // 2
        scale = length.float() / full.float()
        centres = (targets + offset).float().add(0.5) * scale
        stretch = scale.clamp(min=1.0)  # antialias: the kernel widens when shrinking, never narrows
        distance = ((positions.float()[None, :] + 0.5 - centres[:, None]) / stretch).abs()
        weights = _cubic(distance) if self.spec.interpolation == "bicubic" else (1.0 - distance).clamp(min=0.0)
        return weights / weights.sum(dim=1, keepdim=True)


class Normalise(nn.Module):
    """Per-channel (pixels - mean) / std on `[B, 3, H, W]` in [0, 1]. Part of the model, so eps means pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ImageInput) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise a batch, in its own dtype."""
        return (pixels - self.mean.to(pixels.dtype)) / self.std.to(pixels.dtype)


def _cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic kernel with a = -0.5 (Pillow's and CLIP's; OpenCV and non-antialiased torch take -0.75)."""
    near = ((a + 2.0) * distance - (a + 3.0)) * distance * distance + 1.0
    far = (((distance - 5.0) * distance + 8.0) * distance - 4.0) * a
    inner = distance < 1.0
    outer = distance < 2.0
    return torch.where(inner, near, torch.where(outer, far, torch.zeros_like(distance)))
