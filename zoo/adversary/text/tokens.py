"""Tokens as pieces of a text: which token stands for which characters, and what the text is when one is exchanged.

Token ids are an attack on a text only if some text is encoded as those ids. So tokens are exchanged in the text itself,
and the text is encoded again to see whether it gives the intended ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders

from zoo.inputs.text import TextCodec, clean


class Pieces:
    """The vocabulary of a tokenizer.json (WordPiece or byte-level BPE) as pieces of text.

    `surface[id]` is a token's text without blanks and markers; `kind[id]` `[V]` tells apart the tokens that stand at
    different places of a word (after a blank, inside, at its end); `readable[id]` `[V]` are those of ASCII letters and
    digits alone.
    """

    def __init__(self, tokenizer_json: str) -> None:
        model = json.loads(tokenizer_json)["model"]
        prefix = model.get("continuing_subword_prefix") or ""
        suffix = model.get("end_of_word_suffix") or ""
        tokenizer = Tokenizer.from_str(tokenizer_json)
        tokens = [tokenizer.id_to_token(place) or "" for place in range(tokenizer.get_vocab_size())]
        byte_level = model.get("type") == "BPE"
        decoder = decoders.ByteLevel()
        self.surface, kinds = [], []
        for token in tokens:
            inside = bool(prefix) and token.startswith(prefix)
            ends = bool(suffix) and token.endswith(suffix)
            bare = token[len(prefix) if inside else 0 : len(token) - len(suffix) if ends else len(token)]
            text = decoder.decode([bare]) if byte_level else bare
            kinds.append(4 * inside + 2 * ends + text.startswith(" "))
            self.surface.append(text.strip())
        self.kind: NDArray[np.int64] = np.array(kinds)
        self.readable = np.array([text.isascii() and text.isalnum() for text in self.surface], dtype=np.bool_)
        # What a whole word looks like: a token of its own after a blank.
        self._whole = 2 if suffix else 0 if prefix else 1

    def whole_words(self) -> list[int]:
        """The tokens that are whole lower-case words of at least three ASCII letters."""
        tokens = np.flatnonzero(self.readable & (self.kind == self._whole))
        words = [self.surface[place] for place in tokens]
        return [
            int(place)
            for place, word in zip(tokens, words, strict=True)
            if len(word) > 2 and word.isalpha() and word.islower()
        ]


@dataclass(frozen=True)
class TokenText:
    """A cleaned text with its token `ids` `[T]` (padded) and `mask` `[T]`, and the characters of each token.

    `places` are the tokens that stand for characters of the text: neither control tokens nor padding.
    """

    text: str
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    spans: tuple[tuple[int, int], ...]
    places: tuple[int, ...]


class TokenEditor:
    """Exchanges tokens in texts, for the tokenizer of a codec."""

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec
        self.pieces = Pieces(codec.json)
        self._tokenizer = Tokenizer.from_str(codec.json)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        lower = np.array([text == text.lower() for text in self.pieces.surface], dtype=np.bool_)
        #: The tokens `[V]` that an exchange may bring in: readable, and lower-case where the codec lowers all.
        self.usable = self.pieces.readable & (lower if codec.spec.lowercase else True)
        self._tokenizer.enable_truncation(codec.spec.context_length)

    def read(self, text: str) -> TokenText:
        """Clean and tokenise a text, and find the characters of each token that the model sees."""
        shown = clean(text)
        lowered = shown.lower() if self.codec.spec.lowercase else shown
        if len(lowered) != len(shown):
            shown = lowered  # a letter that is longer in lower case would shift the rest
        encoding = self._tokenizer.encode(lowered)
        control = encoding.special_tokens_mask
        places = tuple(
            place for place, (start, end) in enumerate(encoding.offsets) if end > start and not control[place]
        )
        tokens = self.codec.encode([text])
        return TokenText(shown, tokens.ids[0], tokens.mask[0], tuple(encoding.offsets), places)

    def exchange(self, text: TokenText, place: int, token: int) -> str:
        """The text with another token at one place, without checking that it is encoded so."""
        return self.exchange_text(text, place, self.pieces.surface[token])

    def exchange_text(self, text: TokenText, place: int, piece: str) -> str:
        """The text with other characters in place of one token; the blank before it stays."""
        start, end = text.spans[place]
        old = text.text[start:end]
        return text.text[:start] + old[: len(old) - len(old.lstrip())] + piece + text.text[end:]

    def realisable(self, text: TokenText, swaps: Sequence[tuple[int, int]], texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which texts `[N]` are encoded as the ids of `text` with just that swap (place, token)."""
        if not swaps:
            return np.zeros(0, dtype=np.bool_)
        wanted = np.repeat(text.ids[None], len(swaps), axis=0)
        wanted[np.arange(len(swaps)), [place for place, _ in swaps]] = [token for _, token in swaps]
        encoded = self.codec.encode(list(texts))
        same: NDArray[np.bool_] = (encoded.ids == wanted).all(axis=1) & (encoded.mask == text.mask).all(axis=1)
        return same
