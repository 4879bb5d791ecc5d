"""A model of image and text as the joint attack wants it, and the side that stands still encoded only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError
from zoo.models.clip import Encoded

#: Pixels `[B, C, H, W]` in [0, 1], ids and mask `[B, T]` int64, to logits `[B, K]`, K >= 2.
JointModel: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


class BothInputs(nn.Module):
    """A model as a function of image and text; `card` says which inputs it takes, in which order.

    Where not `present`, the images are judged as missing.

    The model is one of the zoo, or one under a policy (`zoo.adversary.image.judged.Judged`). Raises BadInputError for
    one that does not judge an image with a text.
    """

    def __init__(self, model: nn.Module, card: ModelCard, *, present: bool = True) -> None:
        super().__init__()
        if "image" not in card.input_names or not card.reads_text:
            raise BadArgumentError(f"{card.name} judges {list(card.input_names)}, not an image with a text")
        self.model = model
        self.names, self.present = card.input_names, present

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        inputs = [pixels, input_ids, attention_mask]
        if "image_present" in self.names:
            inputs.append(torch.full((len(input_ids),), self.present, device=pixels.device))
        logits: Tensor = self.model(*inputs)
        return logits


class _Remembered(nn.Module):
    """In place of a tower: what it answered, by the places `[B]` of its inputs."""

    def __init__(self, parts: list[Encoded]) -> None:
        super().__init__()
        self.encoded = Encoded(*(torch.cat(list(part)) for part in zip(*parts, strict=True)))

    def forward(self, places: Tensor, mask: Tensor | None = None) -> Encoded:
        return Encoded(*(part[places] for part in self.encoded))


@contextmanager
def fixed_images(model: JointModel, pixels: Tensor, batch_size: int) -> Iterator[JointModel]:
    """Inside, the model takes the places `[B]` int64 of images in `pixels` in place of images.

    A zoo model's image tower runs once for each image, and not for every text that is tried beside it, and the padding
    that all texts of a batch end with is cut off; of any other model the images are looked up.
    """
    owner = _owner(model, "image_tower")
    if owner is None:
        yield lambda places, ids, mask: model(pixels[places], ids, mask)
        return
    tower = owner.get_submodule("image_tower")
    with torch.no_grad():
        owner.image_tower = _Remembered([tower(part) for part in torch.split(pixels, batch_size)])
    try:
        yield lambda places, ids, mask: model(places, *_without_padding(ids, mask))
    finally:
        owner.image_tower = tower


@contextmanager
def fixed_texts(model: JointModel, ids: Tensor, mask: Tensor, batch_size: int) -> Iterator[JointModel]:
    """Inside, the model takes the places `[B]` int64 of texts in `ids` and `mask` `[N, T]` in place of ids.

    A zoo model's text tower runs once for each text, and not for every step of an attack on the image beside it.
    """
    owner = _owner(model, "text_tower")
    if owner is None:
        yield lambda pixels, places, part: model(pixels, ids[places], part)
        return
    tower = owner.get_submodule("text_tower")
    with torch.no_grad():
        pairs = zip(torch.split(ids, batch_size), torch.split(mask, batch_size), strict=True)
        owner.text_tower = _Remembered([tower(*pair) for pair in pairs])
    try:
        yield model
    finally:
        owner.text_tower = tower


def _owner(model: JointModel, name: str) -> nn.Module | None:
    """The one part of a zoo model that has a tower of this name."""
    owners = [part for part in model.modules() if hasattr(part, name)] if isinstance(model, BothInputs) else []
    return owners[0] if len(owners) == 1 else None


def _without_padding(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, T]` without the columns at the end that are padding in every row; one column at least."""
    length = max(1, int(mask.any(dim=0).nonzero().max()) + 1) if mask.any() else 1
    return ids[:, :length], mask[:, :length]
