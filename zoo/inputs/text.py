"""From any text a user may send to token ids: clean the Unicode, tokenise, report what was cut off. No torch."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import Any

import ftfy
import numpy as np
from ftfy.fixes import unescape_html
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from zoo.contract.card import TextInput
from zoo.contract.verdict import Cause, Unseen
from zoo.errors import BadArgumentError, BadDataError
from zoo.inputs.deobfuscate import deobfuscate, in_pieces
from zoo.inputs.language import other_language
from zoo.inputs.offsets import Offsets

START, END = "<|startoftext|>", "<|endoftext|>"

#: Longer texts are refused rather than cut: 77 tokens say nothing about 1 MB of text.
MAX_CHARACTERS = 100_000

#: Accents in a row that are kept, as in Unicode's stream-safe format (UAX 15): to sort n of them takes n * n steps.
MAX_MARKS = 30

#: Layers of HTML entities, as in "&amp;amp;lt;", that are taken off: ftfy would take off thousands, each in a pass.
_LAYERS = 8

#: Unicode's default-ignorable characters, apart from format controls: invisible letters and marks, reserved places.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2065\u3164\uffa0") | frozenset(
    chr(code) for code in range(0xFFF0, 0xFFF9)
)


@dataclass(frozen=True)
class Tokens:
    """`ids` and `mask` int64 `[B, T]`, mask 1 for a token, 0 for padding; of terms their weights, float32."""

    ids: NDArray[np.int64]
    mask: NDArray[Any]


@dataclass(frozen=True)
class Windows(Tokens):
    """One text in B windows of T tokens. `unseen` says what of it is in none of them, or not in the vocabulary.

    `characters` are the first and last (exclusive) of each window in the text as it was given.
    """

    characters: list[tuple[int, int]]
    unseen: dict[Cause, Unseen]


#: What cleaning leaves as it is, but for its spaces: ASCII without controls and HTML entities.
_PLAIN = re.compile(r"[ -%'-~\t\n\r]*")
#: Spaces that stand for a gap between lines, which is wider than others.
_LINE = 4


def clean(text: str, *, gaps: bool = False) -> str:
    """Return the text that a reader sees: repaired, NFKC, without invisible characters, single-spaced.

    Zero-width, bidirectional and other format and control characters split words for a tokenizer alone; of more than 30
    accents in a row the rest is left out. Entities are resolved and mojibake and
    curly quotes mended by ftfy, as CLIP's reference tokenizer does. With `gaps` there are as many spaces between words
    as there were. Raises BadInputError for what is not a text, or is longer than 100,000 characters, as it was given
    or with its ligatures written out.
    """
    if not isinstance(text, str):
        raise BadArgumentError(f"a text must be a str, got {type(text).__name__}")
    _bound(text)
    if not _PLAIN.fullmatch(text):
        text = _unescape(_unescape(_repaired(text)))
        text = _without_more_marks(text.translate(_SHOWN))
        # NFKC comes last: before, a zero-width space between a letter and its accent would keep them apart.
        text = unicodedata.normalize("NFKC", text)
        _bound(text)  # one ligature can stand for 18 letters
    if gaps:
        return re.sub(r"[^\S ]+", " " * _LINE, text).strip(" ")
    return " ".join(text.split())


def _bound(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise BadDataError(f"text of {len(text):,} characters, the limit is {MAX_CHARACTERS:,}")


def _repaired(text: str) -> str:
    """What ftfy makes of a text, but of at most `_LAYERS` layers of entities, and without its normalisation.

    That would sort any number of accents in a row.
    """
    tag = text.find("<")  # from the line of a tag on, ftfy takes entities for what they say
    begin = text.rfind("\n", 0, tag) + 1 if tag >= 0 else len(text)
    head, rest = text[:begin], text[begin:]
    for _ in range(_LAYERS):
        before = head
        head = ftfy.fix_text(unescape_html(head), normalization=None, unescape_html=False)
        if "&" not in head or head == before:
            break
    return head + ftfy.fix_text(rest, normalization=None, unescape_html=False)


class _Shown(dict[int, int | str | None]):
    """What `str.translate` makes of a character: nothing of an invisible one, a space of what separates."""

    def __missing__(self, code: int) -> int | str | None:
        shown = self._shown(code)
        if len(self) < 65_536:  # Unicode has a million places
            self[code] = shown
        return shown

    @staticmethod
    def _shown(code: int) -> int | str | None:
        character = chr(code)
        category = unicodedata.category(character)
        if category in ("Cf", "Cs") or character in _INVISIBLE:
            return None  # format controls (zero-width, bidi), lone surrogates, and the invisible letters
        if 0xFE00 <= code <= 0xFE0F or 0xE0000 <= code <= 0xE0FFF:
            return None  # variation selectors; the second block also reserves places for further invisible characters
        if character in "\t\n\r" or category in ("Zl", "Zp"):
            return "\n"
        return " " if category in ("Cc", "Zs") else code


_SHOWN = _Shown()


def _without_more_marks(text: str) -> str:
    """The text without accents that follow MAX_MARKS others."""
    if not any(map(unicodedata.combining, text)):
        return text
    kept, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= MAX_MARKS:
            kept.append(character)
    return "".join(kept)


def _unescape(text: str) -> str:
    """HTML entities as characters. Python reads no decimal number of more than 4,300 digits, and needs n * n steps."""
    return html.unescape(re.sub(r"&#0*([0-9]{8})[0-9]*", r"&#\1", text))


@contextmanager
def _typed_errors(what: str) -> Iterator[None]:
    """Raise BadDataError for what the Rust side raises: bare Exception, and for a panic not even that.

    Rust quotes the text that it could not cut: the message ends before the first quotation.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:
        reason = re.split("[`'\"]", str(problem))[0].strip()
        raise BadDataError(f"tokenizer.json {what}: {reason or type(problem).__name__}") from None


class TextCodec:
    """A release's tokenizer.json, applied to cleaned text, cut and padded to `[B, context_length]`.

    With `variable_length` to `[B, T]`, T the tokens of the longest text.

    Control tokens that a user types (`<|endoftext|>`) are encoded as ordinary characters: else they would end
    the prompt early and hide the rest of it. Raises BadInputError for a file that holds no usable tokenizer.
    """

    def __init__(self, tokenizer_json: str, spec: TextInput) -> None:
        with _typed_errors("is not a tokenizer"):
            tokenizer = Tokenizer.from_str(tokenizer_json)
        if tokenizer.get_vocab_size() < 16:
            raise BadDataError(
                f"tokenizer.json knows {tokenizer.get_vocab_size()} tokens; an empty tokenizer stands where the "
                "real file could not be fetched"
            )
        tokenizer.encode_special_tokens = True
        tokenizer.enable_truncation(spec.context_length)
        # CLIP pools at the first end token and masks the rest, so the padding id cannot matter.
        padding = tokenizer.id_to_token(0)
        if padding is None:
            raise BadDataError("tokenizer.json has no token of the id 0, which ends are filled with")
        length = None if spec.variable_length else spec.context_length
        tokenizer.enable_padding(length=length, pad_id=0, pad_token=padding)
        model = json.loads(tokenizer_json)["model"]
        unknown, number = model.get("unk_token"), model.get("unk_id")
        #: The id of what is not in the vocabulary, -1 where there is no such token.
        self._unknown = number if number is not None else -1 if unknown is None else tokenizer.token_to_id(unknown)
        #: WordPiece makes one unknown token of longer words.
        self._longest = model.get("max_input_chars_per_word")
        self._tokenizer, self.spec, self.json = tokenizer, spec, tokenizer_json

    @property
    def vocabulary_size(self) -> int:
        """How many token ids there are; ids lie in [0, vocabulary_size)."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Clean, tokenise and cut. Raises BadInputError for a text that is not a str or is far too long."""
        return self._tokens(self._encodings([self._cleaned(text) for text in texts]))

    def windows(self, text: str, count: int = 1) -> Windows:
        """The first `count` windows of a text, which overlap by a quarter and begin and end at words.

        Raises BadInputError as `encode`.
        """
        cleaned = self._cleaned(text)
        encodings = self._encodings([cleaned])
        rest = encodings[0].overflowing
        # The work is that of the windows: of what lies behind them only the number of tokens is asked.
        tokens, places, words = _content([encodings[0], *rest[: count if count > 1 else 0]])
        given = len(tokens) + sum(_length(part) for part in rest[count if count > 1 else 0 :])
        seen, spans = _length(encodings[0]), [(0, len(text))]
        if rest and count > 1:
            cuts = _cuts(words, seen, count)
            seen, ends = cuts[-1][1], [(places[first][0], places[last - 1][1]) for first, last in cuts]
            encodings = self._encodings([cleaned[first:last] for first, last in ends])
            seen -= sum(_length(part) for part in encodings[-1].overflowing)  # a word that is cut may have more tokens
            offsets = Offsets(text, cleaned, clean)
            spans = [offsets.span(first, last) for first, last in ends]
        framed = self._tokens(encodings)
        unseen: dict[Cause, Unseen] = {"tokens": Unseen(given - seen, given)} if seen < given else {}
        if unknown := {word for token, word in zip(tokens[:seen], words, strict=False) if token == self._unknown}:
            unseen["words"] = Unseen(len(unknown), len(set(_content([encodings[0], *rest])[2])))
        if language := other_language(cleaned, self.spec.languages):
            unseen["language"] = language
        return Windows(framed.ids, framed.mask, spans, unseen)

    def _cleaned(self, text: str) -> str:
        cleaned = clean(text, gaps=self.spec.deobfuscate)
        if self.spec.deobfuscate:
            cleaned = deobfuscate(cleaned)
        if self._longest and len(cleaned) > self._longest:
            cleaned = in_pieces(cleaned, self._longest)
        return cleaned.lower() if self.spec.lowercase else cleaned

    def _encodings(self, cleaned: list[str]) -> list[Encoding]:
        with _typed_errors("cannot encode"):
            return list(self._tokenizer.encode_batch(cleaned))

    def _tokens(self, encodings: list[Encoding]) -> Tokens:
        variable = self.spec.variable_length and encodings
        shape = (len(encodings), len(encodings[0].ids) if variable else self.spec.context_length)
        return Tokens(
            np.array([encoding.ids for encoding in encodings], dtype=np.int64).reshape(shape),
            np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64).reshape(shape),
        )


def _content(parts: Sequence[Encoding]) -> tuple[list[int], list[tuple[int, int]], list[int | None]]:
    """The tokens of a text without those that frame it; the characters of each, and its word."""
    tokens: list[int] = []
    places: list[tuple[int, int]] = []
    words: list[int | None] = []
    for part in parts:
        inside = [not frame for frame in part.special_tokens_mask]
        tokens += compress(part.ids, inside)
        places += compress(part.offsets, inside)
        words += compress(part.word_ids, inside)
    return tokens, places, words


def _length(part: Encoding) -> int:
    """The number of tokens without those that frame them."""
    return len(part.special_tokens_mask) - sum(part.special_tokens_mask)


def _cuts(words: Sequence[int | None], room: int, count: int) -> list[tuple[int, int]]:
    """The first and last (exclusive) tokens of at most `count` windows of `room` tokens, at the beginning of words."""
    begins = [place for place in range(len(words)) if not place or words[place] != words[place - 1]]
    cuts: list[tuple[int, int]] = []
    first = 0
    while len(cuts) < count:
        last = first + room
        if last >= len(words):
            return [*cuts, (first, len(words))]
        at = begins[bisect_right(begins, last) - 1]
        last = at if at > first else last  # a word longer than a window is cut
        cuts.append((first, last))
        back = begins[min(bisect_left(begins, last - room // 4), len(begins) - 1)]
        if back >= last and at > first:
            back = begins[bisect_left(begins, last) - 1]  # the last word, which is long
        # Within a word that is cut, what a sign is made of may stand at the cut.
        first = back if first < back < last else last - room // 4 if at <= first else last
    return cuts


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> str:
    """Train a byte-level BPE on cleaned texts and return its tokenizer.json, with CLIP's start and end tokens.

    With no texts this is the plain byte tokenizer of untrained models: 256 bytes and the two control tokens.
    """
    lowered = (clean(text).lower() for text in texts)
    return train_bpe(lowered, vocabulary_size, [START, END], f"{START} $A {END}", like_clip=True)


def train_bpe(texts: Iterable[str], size: int, controls: list[str], template: str, *, like_clip: bool) -> str:
    """Train a byte-level BPE of `size` tokens and return its tokenizer.json. Bytes are its alphabet: it knows any text.

    The control tokens come first in the vocabulary; `template` says where they stand around a text, `$A`. `like_clip`
    encodes texts in lower case, and their beginning as after a blank.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    if like_clip:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=like_clip)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=controls, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in controls if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return str(tokenizer.to_str())
