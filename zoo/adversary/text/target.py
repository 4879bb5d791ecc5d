"""The model as an attack on texts sees it (token ids, embedding, scores), and what such an attack answers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from zoo.adversary.text.edits import count_banned
from zoo.adversary.threat import TextPart
from zoo.errors import BadArgumentError, BadDataError
from zoo.inputs.text import TextCodec
from zoo.models.base import token_tensors
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
            raise BadArgumentError("the score does not go through the embedding named, so no words can be attacked")
        gradients = torch.autograd.grad(value, [*self.parts, *others], allow_unused=True)
        total = torch.zeros(*shape, self.parts[0].shape[-1], device=self.parts[0].device)
        for part in gradients[: len(self.parts)]:
            if part is not None:  # a model may cut off padding first
                total[:, : part.shape[1]] += part.float()
        rest = zip(gradients[len(self.parts) :], others, strict=True)
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
        device = self.embedding.weight.device
        places = torch.arange(len(texts)) if items is None else torch.tensor(list(items), dtype=torch.int64)
        with torch.no_grad():
            return self.token_score(*token_tensors(self.codec, texts, device), places.to(device))

    def token_gradient(self, ids: Tensor, mask: Tensor, item: int) -> Tensor:
        """The gradient `[T, D]` of one text's score in its token embeddings; zero where missing or not finite.

        Raises BadInputError when the score never looks the ids up in `embedding`.
        """
        with watched(self.embedding) as looked_up, torch.enable_grad():
            device = self.embedding.weight.device
            places = torch.tensor([item], device=device)
            score = self.token_score(ids[None].to(device), mask[None].to(device), places)
        if looked_up.parts and not score.requires_grad:
            return torch.zeros(len(ids), self.embedding.embedding_dim, device=device)
        gradient, _ = looked_up.gradient(score.sum(), ids[None].shape)
        return gradient[0].nan_to_num(0.0, 0.0, 0.0)


def imitation(model: PhraseEncoder, wanted: Sequence[str]) -> TextModel:
    """The objective of MMA-Diffusion (Yang et al. 2024, arXiv 2311.17516): texts that are embedded as others are.

    The score of item n is 1 - cosine with `wanted[n]`, in [0, 2]. Attack any start, such as 20 random words, with the
    words of the wanted text banned. The result means the same to the text tower, and a word filter does not see it.
    """
    targets = model.embed_phrases(tuple(wanted))

    def score(ids: Tensor, mask: Tensor, items: Tensor) -> Tensor:
        return 1 - (model.encode_text(ids, mask) * targets[items]).sum(dim=1)

    return TextModel(score, model.codec(), input_embedding(model.text_tower), (model,))


def input_embedding(module: nn.Module) -> nn.Embedding:
    """The token embedding of the one transformers model in a module. Raises BadInputError for none or several."""
    embeddings: dict[int, nn.Embedding] = {}
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            try:
                embedding = part.get_input_embeddings()
            except NotImplementedError:  # of a model without one, such as a ResNet
                continue
            if isinstance(embedding, nn.Embedding):
                embeddings[id(embedding)] = embedding
    if len(embeddings) != 1:
        count = len(embeddings)
        raise BadDataError(f"{type(module).__name__} holds {count} language models of transformers, expected 1")
    return next(iter(embeddings.values()))


#: Texts, and the place of each one's item in the attacked set, to one number each, `[B]`: how sure the model is of what
#: the attacker wants to hide.
Score: TypeAlias = Callable[[list[str], list[int]], Any]

#: `missed`: below the threshold before the attack. `broken`: by the attack, confirmed. `held`: the attack failed.
#: `refuted`: the attack claimed a success that a fresh pass did not confirm; it counts as no success.
Outcome = Literal["missed", "broken", "held", "refuted"]


@dataclass(frozen=True)
class TextResult:
    """One attacked text: the result, the model's scores before and after, and the cost.

    `text` is the best attempt, even if it did not succeed. `edits` counts by the budget, `queries` the texts that the
    model scored, `unrealisable` the token sequences that were discarded because no text is encoded as them.
    `obfuscated`: the gradient was zero everywhere, so the attack went on without one. `exchanged`: found by an attack
    that exchanges words, which must leave the protected ones, and not by one on characters.
    """

    original: str
    text: str
    outcome: Outcome
    score_before: float
    score_after: float
    edits: int
    queries: int
    unrealisable: int = 0
    obfuscated: bool = False
    exchanged: bool = False


def checked_scores(scores: Any, count: int) -> NDArray[np.float64]:
    """The scores as an array `[count]`. Raises BadInputError for another shape or a score that is not finite."""
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu().float()
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (count,):
        raise BadArgumentError(f"the attacked model must give one score per text, [{count}], got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise BadDataError("the attacked model gave a score that is NaN or infinite: nothing was judged")
    return values


@dataclass(frozen=True)
class Goal:
    """What attacks on texts want: scores at `threshold` or below and no banned word, within the threat."""

    score: Score
    threat: TextPart
    threshold: float
    batch_size: int

    def reached(self, banned: int, score: float) -> bool:
        """Whether a text with so many banned words and this score is no longer flagged."""
        return banned == 0 and score <= self.threshold

    def scores(self, texts: Sequence[str], items: Sequence[int]) -> NDArray[np.float64]:
        """Scores `[N]` of texts, asked for in batches."""
        parts = [np.zeros(0)]
        for start in range(0, len(texts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            parts.append(checked_scores(self.score(list(texts[rows]), list(items[rows])), len(texts[rows])))
        return np.concatenate(parts)

    def confirmed(self, results: Sequence[TextResult], items: Sequence[int]) -> list[TextResult]:
        """Score every found text again, count its edits from the original, and refute the claims that do not hold."""
        checked = []
        for result, after in zip(results, self.scores([result.text for result in results], items), strict=True):
            permitted = self.threat.permits(result.original, result.text, exchanged=result.exchanged)
            reached = self.reached(count_banned(result.text, self.threat.banned), after)
            refuted = result.outcome == "broken" and not (permitted and reached)
            edits = self.threat.budget.edits(result.original, result.text)
            outcome = "refuted" if refuted else result.outcome
            checked.append(dataclasses.replace(result, outcome=outcome, score_after=float(after), edits=edits))
        return checked


def success_rate(results: Sequence[TextResult]) -> float | None:
    """The share broken among the texts that the model judged correctly before; None if it judged none correctly."""
    attacked = [result for result in results if result.outcome != "missed"]
    return sum(result.outcome == "broken" for result in attacked) / len(attacked) if attacked else None


def summary(results: Sequence[TextResult]) -> dict[str, Any]:
    """The figures of an attack as plain data: outcomes, success rate, means over the broken texts, costs."""
    broken = [result for result in results if result.outcome == "broken"]
    counts = Counter(result.outcome for result in results)
    return {
        "texts": len(results),
        **{outcome: counts[outcome] for outcome in get_args(Outcome)},
        "success_rate": success_rate(results),
        "mean_edits": sum(result.edits for result in broken) / len(broken) if broken else None,
        "queries": sum(result.queries for result in results),
        "unrealisable": sum(result.unrealisable for result in results),
        "obfuscated": any(result.obfuscated for result in results),
    }
