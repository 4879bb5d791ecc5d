"""Synonym substitution: a word's nearest neighbours in the token embeddings of a language model.

As in TextFooler (Jin et al. 2020, arXiv 1907.11932), with the input embeddings of any BERT or CLIP in place of word
vectors. They are centred first: uncentred, all of them point the same way (Mu & Viswanath 2018, arXiv 1702.01417).
Neighbours are words that are used alike, so some are opposites or related words (dog, cat) and not synonyms. Only the
budget of words bounds how far that changes the meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zoo.adversary.text.tokens import Pieces
from zoo.errors import BadArgumentError, BadDataError

#: What the input embeddings are called in transformers' weights of BERT and of CLIP.
_EMBEDDINGS = ("word_embeddings.weight", "token_embedding.weight")


class Synonyms:
    """Variants of a word for `attack_texts`: at most `count` neighbours of cosine at least `least`, nearest first.

    `words` are lower-case, one for each row of `vectors` `[N, D]`. What stands around a word (blanks, punctuation)
    stays, and so does a capital at its start. A word that is not among `words` has no neighbours.
    """

    def __init__(self, words: Sequence[str], vectors: Tensor, count: int = 12, least: float = 0.35) -> None:
        if len(words) != len(vectors) or not len(words):
            raise BadArgumentError(f"synonyms need one vector per word, got {len(words)} words, {len(vectors)} vectors")
        centred = vectors.detach().float() - vectors.detach().float().mean(dim=0)
        self._vectors = torch.nn.functional.normalize(centred, dim=1)
        self._words, self._places = list(words), {word: place for place, word in enumerate(words)}
        self.count, self.least = count, least
        self._known: dict[str, list[str]] = {}

    @classmethod
    def from_embedding(cls, tokenizer_json: str, embedding: Tensor, count: int = 12, least: float = 0.35) -> Synonyms:
        """Neighbours among the whole words that a tokenizer knows, by the model's input embeddings `[V, D]`."""
        pieces = Pieces(tokenizer_json)
        places = [place for place in pieces.whole_words() if place < len(embedding)]
        return cls([pieces.surface[place] for place in places], embedding[places], count, least)

    @classmethod
    def from_directory(cls, folder: Path, count: int = 12, least: float = 0.35) -> Synonyms:
        """Neighbours by the model in a directory that transformers wrote: model.safetensors and tokenizer.json.

        Raises BadInputError when a file is missing, or holds no input embeddings.
        """
        try:
            weights = load_file(folder / "model.safetensors")
            tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
        except (OSError, SafetensorError) as problem:
            raise BadDataError(f"{folder}: synonyms need a model in this folder: {problem}") from None
        tables = [value for name, value in weights.items() if name.endswith(_EMBEDDINGS)]
        if len(tables) != 1:
            raise BadDataError(f"{folder / 'model.safetensors'}: holds {len(tables)} tables of input embeddings, not 1")
        return cls.from_embedding(tokenizer, tables[0], count, least)

    def neighbours(self, word: str) -> list[str]:
        """The neighbours of a lower-case word, nearest first; none of a word that is not known."""
        if word not in self._places:
            return []
        if word not in self._known:
            cosines = self._vectors @ self._vectors[self._places[word]]
            best = cosines.topk(min(self.count + 1, len(self._words)))
            near = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            self._known[word] = [
                self._words[place] for cosine, place in near if cosine >= self.least and self._words[place] != word
            ][: self.count]
        return self._known[word]

    def __call__(self, word: str) -> list[str]:
        """The variants of a word as it stands in a text."""
        core = word.strip().strip("\"'()[].,;:!?")
        if not core:
            return []
        before, after = word.split(core, 1)
        neighbours = self.neighbours(core.lower())
        return [before + (other.capitalize() if core[0].isupper() else other) + after for other in neighbours]
