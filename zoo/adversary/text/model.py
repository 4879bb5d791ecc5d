"""The model under a gradient attack on its text: token ids to scores, with the embedding that the ids go through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zoo.errors import BadArgumentError, BadDataError
from zoo.inputs.text import TextCodec
from zoo.models.clip import PhraseEncoder


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


#: Ids and mask `[N, T]` int64, and the place `[N]` of each text's item in the attacked set, to scores `[N]`: how sure
#: the model is of what the attacker wants to hide.
TokenScore: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TextModel:
    """A model of texts whose gradient can be taken. `modules` are those that `token_score` calls.

    `embedding` is the table that the ids go through (see `input_embedding`).
    """

    token_score: TokenScore
    codec: TextCodec
    embedding: nn.Embedding
    modules: tuple[nn.Module, ...] = ()

    def score(self, texts: list[str], items: Sequence[int] | None = None) -> Tensor:
        """Scores `[N]` of texts, without a graph; `items` default to the place in the list."""
        tokens = self.codec.encode(texts)
        device = self.embedding.weight.device
        places = torch.arange(len(texts)) if items is None else torch.tensor(list(items), dtype=torch.int64)
        with torch.no_grad():
            ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
            return self.token_score(ids.to(device), mask.to(device), places.to(device))

    def token_gradient(self, ids: Tensor, mask: Tensor, item: int) -> Tensor:
        """The gradient `[T, D]` of one text's score in its token embeddings; zero where there is none, or no number.

        Raises BadInputError when the score never looks the ids up in `embedding`.
        """
        with watched(self.embedding) as looked_up, torch.enable_grad():
            device = self.embedding.weight.device
            places = torch.tensor([item], device=device)
            score = self.token_score(ids[None].to(device), mask[None].to(device), places)
        if not looked_up.parts:
            raise BadArgumentError("the model's score does not go through the embedding that was named")
        if not score.requires_grad:
            return torch.zeros(len(ids), self.embedding.embedding_dim, device=device)
        gradient, _ = looked_up.gradient(score.sum(), ids[None].shape)
        return gradient[0].nan_to_num(0.0, 0.0, 0.0)


def imitation(model: PhraseEncoder, wanted: Sequence[str]) -> TextModel:
    """The objective of MMA-Diffusion (Yang et al. 2024, arXiv 2311.17516): texts that are embedded as others are.

    The score of item n is 1 - cosine with `wanted[n]`, in [0, 2]: attack any start (20 random words, say) with the
    words of the wanted text banned, and what is found means the same to the text tower, and nothing to a word filter.
    """
    targets = model.embed_phrases(tuple(wanted))

    def score(ids: Tensor, mask: Tensor, items: Tensor) -> Tensor:
        return 1 - (model.encode_text(ids, mask) * targets[items]).sum(dim=1)

    return TextModel(score, model.codec(), input_embedding(model.text_tower), (model,))


def input_embedding(module: nn.Module) -> nn.Embedding:
    """The token embedding of the one language model of transformers in a module; BadInputError for none or several."""
    found: dict[int, nn.Embedding] = {}
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            try:
                embedding = part.get_input_embeddings()
            except NotImplementedError:  # of a model without one, such as a ResNet
                continue
            if isinstance(embedding, nn.Embedding):
                found[id(embedding)] = embedding
    if len(found) != 1:
        raise BadDataError(f"{type(module).__name__} holds {len(found)} language models of transformers, expected 1")
    return next(iter(found.values()))
