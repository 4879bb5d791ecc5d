"""Word substitution in a training batch by one gradient: HotFlip for all texts at once.

HotFlip (Ebrahimi et al. 2018, arXiv 1712.06751) estimates to first order what the exchange of a token does to the loss.
Here all places of all texts are estimated from one backward pass, and the best are taken untried: a training step
can afford no search. Whole words are exchanged for whole words, so that every result is a text that someone could
type, and its tokens are those that the tokenizer would give it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from zoo.adversary.text.budget import TextBudget
from zoo.adversary.text.edits import KINDS, character_edits, drawing, perturb
from zoo.adversary.text.tokens import Pieces
from zoo.contract import schema
from zoo.errors import BadDataError


@dataclass(frozen=True, config=schema.STRICT)
class TextHardening(schema.PlainData):
    """What training does to texts: a `share` of them gets character edits of some `kinds` within `budget`.

    The others get up to `hotflip_words` words exchanged against the model. `protected` words carry the label (a prompt
    for a dog without "dog" is another prompt): none of them is exchanged, and none is brought in. Character edits may
    disguise them; in a share `aimed` of the edited texts these words are edited first, as an attacker would. Of
    `worst_of` edits of a text the model gets the one that it judges worst: of forty typos in "dog" one is "dig", which
    a search finds and a draw seldom does.
    """

    _where = "text"

    share: float = 0.0
    kinds: tuple[str, ...] = tuple(KINDS)
    budget: TextBudget = TextBudget()
    hotflip_words: int = 0
    protected: tuple[str, ...] = ()
    aimed: float = 0.0
    worst_of: int = 1

    def __post_init__(self) -> None:
        for name in ("share", "aimed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} lies in [0, 1], got {getattr(self, name)}")
        if self.aimed and not self.protected:
            raise ValueError("aimed edits the protected words first: name them in protected")
        if self.hotflip_words < 0:
            raise ValueError(f"hotflip_words must not be negative, got {self.hotflip_words}")
        if self.worst_of < 1:
            raise ValueError(f"worst_of is 1 or more, got {self.worst_of}")
        character_edits(self.kinds)  # refuses an unknown kind by name
        if not self.share and not self.hotflip_words:
            raise ValueError("text asks for nothing: give share above 0, or hotflip_words")

    def edited(self, text: str, seed: int) -> str:
        """One random character edit of a text that spends the budget, of one kind drawn at random."""
        rng = drawing(seed, text)
        kind, aim = rng.choice(self.kinds), rng.random() < self.aimed
        return perturb(text, KINDS[kind], self.budget, seed, self.protected if aim else ())


class WordSwaps:
    """Exchanges whole words in token ids, for the tokenizer and the embedding table of one model.

    Raises BadInputError when the vocabulary has no whole words to bring in.
    """

    def __init__(self, tokenizer_json: str, embedding: nn.Embedding, protected: Sequence[str] = ()) -> None:
        pieces = Pieces(tokenizer_json)
        size = min(len(pieces.surface), embedding.num_embeddings)
        kept = {word.casefold() for word in protected}
        free = np.array([surface.casefold() not in kept for surface in pieces.surface], dtype=np.bool_)
        words = [token for token in pieces.whole_words() if free[token] and token < size]
        if not words:
            raise BadDataError("the tokenizer knows no whole words to exchange: train it on texts first")
        self.embedding = embedding
        #: The tokens `[W]` that may be brought in.
        self.words = torch.tensor(words)
        whole = pieces.kind == pieces.kind[words[0]]
        letters = np.array([surface.isalnum() for surface in pieces.surface], dtype=np.bool_)
        ends = (pieces.kind & 2) > 0
        by_end = bool(ends[words[0]])  # CLIP marks where a word ends, others where it begins or goes on
        #: `[V]` each: a word on its own if the neighbours allow; goes on from the token before; goes on in the next.
        self._word = torch.from_numpy(whole & pieces.readable & free)
        self._goes_on = torch.from_numpy(~whole & letters & (not by_end))
        self._unended = torch.from_numpy(~ends & letters & by_end)

    def open_places(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Where `[B, T]` a whole word stands that may go: no padding, control token, protected word or piece of one."""
        known = ids.cpu().clamp(max=len(self._word) - 1)
        left = torch.nn.functional.pad(self._unended[known][:, :-1], (1, 0))
        right = torch.nn.functional.pad(self._goes_on[known][:, 1:], (0, 1))
        alone = self._word[known] & ~left & ~right
        return alone.to(ids.device) & (mask > 0) & (ids < len(self._word))

    def best(self, ids: Tensor, mask: Tensor, gradient: Tensor, count: int) -> Tensor:
        """Ids `[B, T]` with up to `count` words of each text exchanged: those that raise the loss most, to first order.

        `gradient` `[B, T, D]` is that of the loss in the looked-up embeddings. Exchanging `e` for `e'` adds
        `(e' - e) . gradient`; places add up. A place where nothing helps is left as it is.
        """
        places = self.open_places(ids, mask).nonzero()
        if not count or not len(places):
            return ids
        rows, columns = places.unbind(1)
        weight = self.embedding.weight.detach().float()
        slope = gradient[rows, columns].float().nan_to_num(0.0, 0.0, 0.0)
        own = ids[rows, columns]
        words = self.words.to(ids.device)
        table = slope @ weight[words].T
        table.masked_fill_(words == own[:, None], -torch.inf)
        value, which = table.max(dim=1)
        gain = value - (slope * weight[own]).sum(dim=1)
        gains = torch.zeros(ids.shape, device=ids.device).index_put_((rows, columns), gain)
        swapped = ids.index_put((rows, columns), words[which])
        top, place = gains.topk(min(count, ids.shape[1]), dim=1)
        chosen = torch.zeros_like(gains, dtype=torch.bool).scatter_(1, place, top > 0)
        return torch.where(chosen, swapped, ids)
