"""What every model of the zoo shares: it knows its card, and it carries its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, nn

from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError
from zoo.inputs.text import TextCodec, train_tokenizer


def weights_sha256(model: ZooModel, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The sha256 of a model's tokenizer and of named tensors of its, in this order: what they answer hangs on both."""
    digest = hashlib.sha256((model.tokenizer_json or "").encode())
    for name, value in tensors:
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class ZooModel(nn.Module):
    """A module with a card. Images come as `[B, 3, size, size]` float32 RGB in [0, 1]; logits go out.

    `tokenizer_json` is the tokenizer.json that its texts are encoded with; None where the model reads no text.
    `stays_in_eval` names modules that `train()` leaves in evaluation mode, whoever calls it: frozen ones.
    """

    stays_in_eval: frozenset[str] = frozenset()

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.card = card
        self.tokenizer_json: str | None = train_tokenizer([], 0) if card.text is not None else None

    def train(self, mode: bool = True) -> Self:
        """Switch modes as `nn.Module.train` does, but for the modules in `stays_in_eval`."""
        super().train(mode)
        for name in self.stays_in_eval:
            self.get_submodule(name).training = False
        return self

    def answer(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and scores, both float32 `[B, N]`: what `forward` gives, and the score function of the card."""
        logits: Tensor = self(*inputs).float()
        return logits, logits.softmax(dim=-1) if self.card.score == "softmax" else logits.sigmoid()

    def codec(self) -> TextCodec:
        """The text codec of this model. Raises BadInputError when it reads no text."""
        if self.card.text is None or self.tokenizer_json is None:
            raise BadArgumentError(f"{self.card.name} reads no text")
        codec = TextCodec(self.tokenizer_json, self.card.text)
        room = self.card.hparams.get("vocabulary_size")
        if isinstance(room, int) and codec.vocabulary_size > room:
            raise BadArgumentError(
                f"{self.card.name}: the tokenizer knows {codec.vocabulary_size} tokens, the model only {room}"
            )
        return codec

    @property
    def image_size(self) -> int:
        """Side of the square image in pixels. Raises BadInputError when the model reads no image."""
        if self.card.image is None:
            raise BadArgumentError(f"{self.card.name} reads no image")
        return self.card.image.size
