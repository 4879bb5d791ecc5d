"""Random views of a batch, on the batch's own device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import BadArgumentError


class RandomView(nn.Module):
    """`[B, 3, S, S]` to the same shape: a random crop of at least `min_crop` of the area, and a mirror image.

    Each image gets its own crop; the crop keeps the aspect ratio within 3:4 and 4:3. With `min_crop` 1 and no
    `flip` the batch is returned as it is.
    """

    def __init__(self, *, flip: bool = False, min_crop: float = 1.0) -> None:
        super().__init__()
        if not 0 < min_crop <= 1:
            raise BadArgumentError(f"min_crop is a share of the area in (0, 1], got {min_crop}")
        self.flip, self.min_crop = flip, min_crop

    def forward(self, pixels: Tensor) -> Tensor:
        """Draw one view of each image."""
        if self.min_crop == 1 and not self.flip:
            return pixels
        count, device = len(pixels), pixels.device
        if self.min_crop == 1:
            mirrored = torch.rand(count, device=device) < 0.5
            return torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        area = torch.empty(count, device=device).uniform_(self.min_crop, 1.0)
        ratio = torch.empty(count, device=device).uniform_(-0.2877, 0.2877).exp()  # log(4 / 3)
        width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
        left, top = (torch.rand(count, device=device) * 2 - 1 for _ in range(2))
        sign = torch.ones(count, device=device)
        if self.flip:
            sign = torch.where(torch.rand(count, device=device) < 0.5, -sign, sign)
        theta = torch.zeros(count, 2, 3, device=device)
        theta[:, 0, 0], theta[:, 1, 1] = width * sign, height
        theta[:, 0, 2], theta[:, 1, 2] = left * (1 - width), top * (1 - height)
        grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
