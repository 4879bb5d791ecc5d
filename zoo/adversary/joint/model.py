"""A model of image and text as the joint attack wants it, and its images encoded once while only texts change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from zoo.card import ModelCard
from zoo.errors import BadInputError
from zoo.models.towers import Encoded

#: Pixels `[B, C, H, W]` in [0, 1], ids and mask `[B, T]` int64, to logits `[B, K]`, K >= 2.
JointModel: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


class BothInputs(nn.Module):
    """A model as a function of image and text, both present; `card` says which inputs it takes, in which order.

    The model is one of the zoo, or one under a policy (`zoo.adversary.image.judged.Judged`). Raises BadInputError for
    one that does not judge an image with a text.
    """

    def __init__(self, model: nn.Module, card: ModelCard) -> None:
        super().__init__()
        if "image" not in card.input_names or not card.reads_text:
            raise BadInputError(f"{card.name} judges {list(card.input_names)}, not an image with a text")
        self.model = model
        self.names = card.input_names

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        inputs = [pixels, input_ids, attention_mask]
        if "image_present" in self.names:
            inputs.append(torch.ones(len(pixels), dtype=torch.bool, device=pixels.device))
        logits: Tensor = self.model(*inputs)
        return logits


class _Remembered(nn.Module):
    """In place of an image tower: what it answered, by the places `[B]` of the images."""

    def __init__(self, encoded: Encoded) -> None:
        super().__init__()
        self.encoded = encoded

    def forward(self, places: Tensor) -> Encoded:
        return Encoded(*(part[places] for part in self.encoded))


@contextmanager
def fixed_images(model: JointModel, pixels: Tensor, batch_size: int) -> Iterator[JointModel]:
    """Inside, the model takes the places `[B]` int64 of images in `pixels` in place of images.

    A zoo model's image tower runs once for each image, and not for every text that is tried beside it; of any other
    model the images are looked up.
    """
    owners = [part for part in model.modules() if hasattr(part, "image_tower")] if isinstance(model, BothInputs) else []
    if len(owners) != 1:
        yield lambda places, ids, mask: model(pixels[places], ids, mask)
        return
    owner = owners[0]
    tower = owner.get_submodule("image_tower")
    with torch.no_grad():
        parts = [tower(part) for part in torch.split(pixels, batch_size)]
    owner.image_tower = _Remembered(Encoded(*(torch.cat(list(part)) for part in zip(*parts, strict=True))))
    try:
        yield model
    finally:
        owner.image_tower = tower
