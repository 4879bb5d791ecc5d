"""From texts to the terms of a vocabulary and their TF-IDF weights, and the codec of any card. No torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, FiniteFloat
from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.contract.card import TextInput
from zoo.contract.verdict import Cause, Unseen
from zoo.errors import BadCardError, BadDataError
from zoo.inputs.language import other_language
from zoo.inputs.text import TextCodec, Tokens, Windows


@dataclass(frozen=True, config=schema.STRICT)
class Terms(schema.PlainData):
    """The tokenizer.json of a model of TF-IDF features.

    A word is two letters, digits or underscores in a row, or more; letters of other alphabets separate words where
    `ascii_words`. A term is a word, or with `pairs` two words and a blank between them; its id is its place among the
    `terms`, its weight its number in the text times its `idf`, and the weights of a text have the length 1. Words that
    are `left_out` say nothing, and are known all the same.
    """

    _where = "tokenizer.json"
    _reads = (1,)

    terms: tuple[str, ...]
    idf: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    pairs: bool
    ascii_words: bool
    left_out: tuple[str, ...] = ()
    kind: Literal["tfidf"] = "tfidf"
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        if not self.terms or len(self.terms) != len(self.idf):
            raise ValueError(f"there must be an idf for each term, got {len(self.terms)} terms and {len(self.idf)}")
        if len(set(self.terms)) < len(self.terms):
            raise ValueError("a term stands there twice")


_WORDS = re.compile(r"\w+")


class TermCodec(TextCodec):
    """The terms of cleaned texts and their weights, `[B, T]`, T the largest number of terms; the whole text is read.

    Raises BadDataError for a tokenizer.json of another kind.

    >>> codec = TermCodec(content, TextInput(2, features="tfidf", variable_length=True))
    >>> codec.encode(["a dog"]).mask
    array([[1.]], dtype=float32)
    """

    def __init__(self, tokenizer_json: str, spec: TextInput) -> None:
        try:
            terms = Terms.from_dict(json.loads(tokenizer_json))
        except BadCardError as problem:
            raise BadDataError(str(problem)) from None
        except (ValueError, RecursionError):
            raise BadDataError("tokenizer.json is not JSON, and should hold the terms of a vocabulary") from None
        if len(terms.terms) > spec.context_length:
            raise BadDataError(f"tokenizer.json knows {len(terms.terms)} terms, the card only {spec.context_length}")
        self.spec, self.json, self._pairs = spec, tokenizer_json, terms.pairs
        self._words = re.compile(r"\b\w\w+\b", re.ASCII if terms.ascii_words else 0)
        self._idf = dict(zip(terms.terms, enumerate(terms.idf), strict=True))
        self._known = self._idf.keys() | set(terms.left_out)
        self._longest = None

    @property
    def vocabulary_size(self) -> int:
        """How many terms there are; ids lie in [0, vocabulary_size)."""
        return len(self._idf)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Clean texts, and count their terms. Raises BadInputError for a text that is not a str or is far too long."""
        return self._weighed([self._cleaned(text) for text in texts])

    def windows(self, text: str, count: int = 1) -> Windows:
        """The one window of a text. `unseen` counts the words that are no term and not left out. Raises as `encode`."""
        cleaned = self._cleaned(text)
        tokens = self._weighed([cleaned])
        unseen: dict[Cause, Unseen] = {}
        words = set(_WORDS.findall(cleaned if self.spec.lowercase else cleaned.lower()))
        if unknown := len(words - self._known):
            unseen["words"] = Unseen(unknown, len(words))
        # A text of words of the vocabulary is in its language, and a detector takes longer than the model.
        if 4 * unknown > len(words) and (language := other_language(cleaned, self.spec.languages)):
            unseen["language"] = language
        return Windows(tokens.ids, tokens.mask, [(0, len(text))], unseen)

    def _weighed(self, cleaned: Sequence[str]) -> Tokens:
        rows = [self._terms(text) for text in cleaned]
        length = max(map(len, rows), default=1) or 1
        ids = np.zeros((len(rows), length), dtype=np.int64)
        weights = np.zeros((len(rows), length))
        for row, terms in enumerate(rows):
            if terms:
                ids[row, : len(terms)], weights[row, : len(terms)] = zip(*terms, strict=True)
        norms = np.sqrt((weights * weights).sum(axis=1, keepdims=True))
        return Tokens(ids, (weights / np.where(norms > 0, norms, 1)).astype(np.float32))

    def _terms(self, text: str) -> list[tuple[int, float]]:
        """The ids of a text's terms, each with its number times its idf."""
        words = self._words.findall(text)
        found = Counter(chain(words, map(" ".join, pairwise(words))) if self._pairs else words)
        known = self._idf
        return [(known[term][0], count * known[term][1]) for term, count in found.items() if term in known]


def codec_of(tokenizer_json: str, spec: TextInput) -> TextCodec:
    """The codec of the features that a card names. Raises BadDataError for a tokenizer.json of another kind."""
    return (TermCodec if spec.features == "tfidf" else TextCodec)(tokenizer_json, spec)
