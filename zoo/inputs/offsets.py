"""Where the characters of a cleaned text stand in the text as it was given. No torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

Clean: TypeAlias = Callable[[str], str]
#: Characters of the cleaned text without its spaces, and the first and last (exclusive) that they were made of.
Piece: TypeAlias = tuple[str, int, int]

#: What cleaning leaves as it is: ASCII without controls and without the beginning of an HTML entity.
_PLAIN = re.compile(r"[!-%'-~]*")


class Offsets:
    """The places in `given` of a text that was read from it.

    `read` is what `clean` made of it, but for spaces, case and single characters in the place of single ones. Where
    cleaning a word by itself gives something else than cleaning all of the text, a place is that of the line, or the
    whole text.

    >>> offsets = Offsets("Caf&eacute;  d\\u00e9j\\u00e0", "caf\\u00e9 d\\u00e9 j\\u00e0", clean)
    >>> offsets.span(5, 7)
    (13, 15)
    """

    def __init__(self, given: str, read: str, clean: Clean) -> None:
        count = len(_solid(read))
        pieces = _pieces(given, clean)
        if sum(len(form) for form, _, _ in pieces) != count:  # a capital whose small letter is two characters
            pieces = [(form.lower(), first, last) for form, first, last in pieces]
        if sum(len(form) for form, _, _ in pieces) != count:
            pieces = [("x" * count, 0, len(given))]
        lengths = [len(form) for form, _, _ in pieces]
        self._first = np.repeat([first for _, first, _ in pieces], lengths)
        self._last = np.repeat([last for _, _, last in pieces], lengths)
        #: How many characters other than spaces stand before each place of the text that was read.
        self._before = np.cumsum([0, *(character != " " for character in read)])

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The first and last (exclusive) characters, in the given text, of these in the text that was read."""
        begin, end = self._before[first], self._before[last]
        return (int(self._first[begin]), int(self._last[end - 1])) if begin < end else (0, 0)


def _solid(text: str) -> str:
    return text.replace(" ", "")


def _made(pieces: list[Piece]) -> str:
    return "".join(form for form, _, _ in pieces)


def _pieces(given: str, clean: Clean) -> list[Piece]:
    """The pieces of a text, as small as cleaning them one by one gives what cleaning the text gives."""
    whole = _solid(clean(given))
    pieces = list(_of_words(given, 0, clean))
    if _made(pieces) != whole:
        pieces = [piece for line in re.finditer(r".+", given) for piece in _of_line(line[0], line.start(), clean)]
    return pieces if _made(pieces) == whole else [(whole, 0, len(given))]


def _of_line(line: str, start: int, clean: Clean) -> list[Piece]:
    whole = _solid(clean(line))
    pieces = list(_of_words(line, start, clean))
    return pieces if _made(pieces) == whole else [(whole, start, start + len(line))]


def _of_words(text: str, start: int, clean: Clean) -> Iterator[Piece]:
    known: dict[str, str] = {}  # cleaning takes long for what it takes: some microseconds a call

    def form(part: str) -> str:
        if part not in known:
            known[part] = _solid(clean(part))
        return known[part]

    for word in re.finditer(r"\S+", text):
        place = start + word.start()
        if _PLAIN.fullmatch(word[0]):
            yield from ((character, place + i, place + i + 1) for i, character in enumerate(word[0]))
            continue
        pieces = [(form(part), place + first, place + last) for part, first, last in _with_marks(word[0])]
        whole = form(word[0])
        yield from pieces if _made(pieces) == whole else [(whole, place, place + len(word[0]))]


def _with_marks(word: str) -> Iterator[Piece]:
    """The characters of a word, each with the accents that follow it."""
    first = 0
    for place in range(1, len(word) + 1):
        if place == len(word) or not unicodedata.combining(word[place]):
            yield word[first:place], first, place
            first = place
