"""How far a text may be changed: as plain data, and as the edit distance that every success is checked with."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.inputs.text import clean

_WORD = re.compile(r"\s*\S+\s*")


@dataclass(frozen=True, config=schema.STRICT)
class TextBudget:
    """How many edits leave a text readable: a `share` of its characters or words, or a `count` of them.

    An edit inserts, deletes or replaces one character (or one word between blanks), or swaps two neighbours: the
    optimal string alignment distance. Everything counts, also what no reader sees: case, zero-width characters,
    blanks. A share is rounded down, but one edit is always allowed unless it is 0: else no short text could be
    attacked. The default, 10 % of the characters, is about one letter in every second word.
    """

    unit: Literal["characters", "words"] = "characters"
    share: float = 0.1
    count: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share lies in [0, 1], got {self.share}")
        if self.count is not None and self.count < 0:
            raise ValueError(f"count must be at least 0, got {self.count}")

    def allowed(self, original: str) -> int:
        """The number of edits that this text may undergo; 0 for an empty one."""
        if self.count is not None:
            return self.count
        size = len(self._units(original))
        if size == 0 or self.share == 0:
            return 0
        return max(1, math.floor(self.share * size + 1e-9))  # 0.29 * 100 is 28.999...

    def edits(self, original: str, changed: str) -> int:
        """The number of edits between the two texts, at most one more than is allowed."""
        limit = self.allowed(original)
        return edit_distance(self._units(original), self._units(changed), limit)

    def permits(self, original: str, changed: str) -> bool:
        """Whether the change keeps within the budget."""
        return self.edits(original, changed) <= self.allowed(original)

    def spent(self, words: Sequence[str], changed: Sequence[str]) -> int:
        """What `edits` counts, from the parts of `split_words` before and after: never less, and much faster."""
        if self.unit == "words":  # a blank that is gone joins two words, so the parts alone do not tell
            before, after = "".join(words).split(), "".join(changed).split()
            return edit_distance(before, after, len(before) + len(after))
        pairs = zip(words, changed, strict=True)
        return sum(_word_distance(before, after) for before, after in pairs if before != after)

    def _units(self, text: str) -> Sequence[str]:
        return text.split() if self.unit == "words" else text


def split_words(text: str) -> list[str]:
    """Cut a text into words, each with the blanks around it; joined, they are the text again (none if it is blank)."""
    return _WORD.findall(text)


def edit_distance(a: Sequence[str], b: Sequence[str], limit: int) -> int:
    """Optimal string alignment distance, or `limit + 1` where it is larger.

    Insertion, deletion, replacement and the swap of two neighbours cost 1 each, and nothing is edited twice
    (Damerau 1964). Costs O(min(len) * limit), after the common beginning and end.
    """
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    a, b = a[start:], b[start:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    beyond = limit + 1
    before, previous = [beyond] * (len(b) + 1), list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [beyond] * (len(b) + 1)
        row[0] = min(i, beyond)
        for j in range(max(1, i - limit), min(len(b), i + limit) + 1):  # elsewhere the distance exceeds the limit
            y = b[j - 1]
            cost = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            row[j] = cost
        if min(row) > limit:
            return beyond
        before, previous = previous, row
    return min(previous[len(b)], beyond)


@lru_cache(maxsize=65536)
def _word_distance(a: str, b: str) -> int:
    return edit_distance(a, b, len(a) + len(b))


def count_banned(text: str, banned: Sequence[str]) -> int:
    """How often banned words occur in a text as a word filter finds them: cleaned, any case, also inside others."""
    if not banned:
        return 0
    plain = clean(text).casefold()
    return sum(plain.count(word.casefold()) for word in banned)


def keeps_protected(original: str, changed: str, protected: Sequence[str], *, exchanged: bool) -> bool:
    """Whether a changed text still means what the protected words (whole, in any case) say.

    Where words were `exchanged`, the same protected words stand in both texts, each as often: one that is gone takes
    the label away, a new one may bring it. Where only characters were changed, protected words may be disguised (a
    reader still reads them), but there are no more of them than there were.
    """
    if not protected:
        return True
    before, after = (_occurrences(text, tuple(protected)) for text in (original, changed))
    return after == before if exchanged else after.total() <= before.total()


@lru_cache(maxsize=65536)
def _occurrences(text: str, protected: tuple[str, ...]) -> Counter[str]:
    """How often each protected word stands in a text, by the word in lower case."""
    return Counter(_pattern(protected).findall(clean(text).casefold()))


@lru_cache(maxsize=64)
def _pattern(protected: tuple[str, ...]) -> re.Pattern[str]:
    words = sorted({word.casefold() for word in protected}, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)")
