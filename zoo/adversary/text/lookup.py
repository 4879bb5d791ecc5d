"""The gradient of a model's value in the token embeddings that it looked up on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.errors import BadArgumentError


@dataclass
class LookedUp:
    """The embeddings that a model looked up inside `watched`, each a leaf of the graph."""

    parts: list[Tensor]

    def gradient(self, value: Tensor, shape: torch.Size, others: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """Gradients of a scalar: in the embeddings `[B, T, D]`, and in `others`, from one backward pass.

        Raises BadInputError when the value does not go through the embedding.
        """
        if not self.parts:
            raise BadArgumentError(
                "the model's loss does not go through the token embedding: there are no words to attack"
            )
        found = torch.autograd.grad(value, [*self.parts, *others], allow_unused=True)
        total = torch.zeros(*shape, self.parts[0].shape[-1], device=self.parts[0].device)
        for part in found[: len(self.parts)]:
            if part is not None:  # a model may cut off padding first
                total[:, : part.shape[1]] += part.float()
        rest = zip(found[len(self.parts) :], others, strict=True)
        return total, [torch.zeros_like(other) if part is None else part for part, other in rest]


@contextmanager
def watched(embedding: nn.Embedding) -> Iterator[LookedUp]:
    """Inside, what is looked up in this table is kept, and is where gradients begin."""
    kept = LookedUp([])

    def keep(module: nn.Module, args: object, output: Tensor) -> Tensor:
        kept.parts.append(output.detach().requires_grad_())
        return kept.parts[-1]

    handle = embedding.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
