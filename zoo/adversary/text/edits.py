"""How far a text may be edited, and edits of characters that leave a word readable: look-alikes, typos and so on.

Each takes a word, maybe with punctuation and blanks around it, and returns readable variants of it: every single
edit, and for some the edit of all characters at once. The typos are those of Belinkov & Bisk 2018 (arXiv 1711.02173)
and Pruthi et al. 2019 (arXiv 1905.11268), who keep the first letter, as readers recognise words by it.
"""

from __future__ import annotations

import math
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.errors import BadArgumentError, close_match
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
        """As `edits`, from the parts of `split_words` before and after: never a smaller number, and much faster."""
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
    """Whether a changed text keeps the meaning of its protected words (whole, in any case).

    Where words were `exchanged`, the same protected words stand in both texts, each as often: one that is gone takes
    the label away, a new one may bring it. Where only characters were changed, protected words may be disguised (a
    reader still reads them), but their number must not grow.
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


#: Characters around a word in a text that do not belong to it.
_EDGE = string.whitespace + string.punctuation

#: A word to readable variants of it, without the word itself.
Variants = Callable[[str], Sequence[str]]

#: Letters of other scripts that look the same in most fonts (Unicode Technical Standard 39, confusables).
HOMOGLYPHS = dict(zip("acdeghijlnopqsuvwxyzABCEHIJKMNOPSTXYZ", "асԁеɡһіјӏոорԛѕսѵԝхуᴢАВСЕНІЈКМΝОРЅТХΥΖ", strict=True))

#: Characters without width: zero-width space, non-joiner, joiner, word joiner, soft hyphen, variation selector 17.
ZERO_WIDTH = "\u200b\u200c\u200d\u2060\u00ad\U000e0100"

LEETSPEAK = {
    "a": "4@", "b": "8", "e": "3", "g": "9", "i": "1!", "l": "1", "o": "0", "s": "5$", "t": "7", "z": "2",
}  # fmt: skip

#: Neighbours on a QWERTY keyboard, in the same row and the rows beside it.
KEYBOARD = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok", "o": "ipl",
    "p": "ol",
    "a": "qsz", "s": "adwx", "d": "sfec", "f": "dgrv", "g": "fhtb", "h": "gjyn", "j": "hkum", "k": "jlim", "l": "kop",
    "z": "xas", "x": "zcsd", "c": "xvdf", "v": "cbfg", "b": "vngh", "n": "bmhj", "m": "njk",
}  # fmt: skip


def homoglyphs(word: str) -> list[str]:
    """Replace letters by ones of another script that look the same: one by one, and all."""
    return _replaced(word, HOMOGLYPHS)


def zero_width(word: str) -> list[str]:
    """Insert one invisible character between two letters or digits, each kind at each place."""
    return [word[:i] + mark + word[i:] for i in _inside(word) for mark in ZERO_WIDTH]


def leetspeak(word: str) -> list[str]:
    """Replace letters by digits and signs of a similar shape: one by one, and all."""
    return _replaced(word, LEETSPEAK | {letter.upper(): signs for letter, signs in LEETSPEAK.items()})


def spacing(word: str) -> list[str]:
    """Insert a space at one place or at all, or take the blanks around the word away."""
    places = _inside(word)
    variants = [word[:i] + " " + word[i:] for i in places]
    variants.append("".join(" " + c if i in places else c for i, c in enumerate(word)))
    return _other(word, [*variants, word.strip()])


def casing(word: str) -> list[str]:
    """Change the case of one letter, of every second, or of all."""
    variants = [word[:i] + c.swapcase() + word[i + 1 :] for i, c in enumerate(word)]
    variants.append("".join(c.upper() if i % 2 else c.lower() for i, c in enumerate(word)))
    return _other(word, [*variants, word.upper(), word.swapcase()])


def misspelling(word: str) -> list[str]:
    """Swap, drop or double a letter or hit a neighbouring key, once, and never at the word's first letter."""
    letters = [i for i, c in enumerate(word) if c.isalpha()][1:]
    variants = []
    for i in letters:
        before, letter, after = word[:i], word[i], word[i + 1 :]
        if after[:1].isalpha():
            variants.append(before + after[0] + letter + after[1:])
        variants += [before + after, before + 2 * letter + after]
        keys = KEYBOARD.get(letter.lower(), "")
        variants += [before + (key.upper() if letter.isupper() else key) + after for key in keys]
    return _other(word, variants)


#: The character attacks by name.
KINDS: dict[str, Variants] = {
    edit.__name__: edit for edit in (homoglyphs, zero_width, leetspeak, spacing, casing, misspelling)
}


def character_edits(kinds: Sequence[str] = tuple(KINDS)) -> Variants:
    """All variants of these kinds as one function. Raises BadInputError for an unknown kind, with the close match."""
    for kind in kinds:
        if kind not in KINDS:
            raise BadArgumentError(f'no character attack is named "{kind}"' + close_match(kind, KINDS))
    return lambda word: _other(word, [variant for kind in kinds for variant in KINDS[kind](word)])


def perturb(
    text: str, variants: Variants, budget: TextBudget | None = None, seed: int = 0, first: Sequence[str] = ()
) -> str:
    """One random change of a text that spends as much of its budget (10 % of the characters by default) as it can.

    Words are drawn without repetition, those of `first` before the others, and each gets one variant; the same seed and
    text give the same result. For augmentation, and as the attack that knows nothing of the model.
    """
    budget = budget or TextBudget()
    rng = drawing(seed, text)
    words = split_words(text)
    changed, allowed = list(words), budget.allowed(text)
    order = rng.sample(range(len(words)), len(words))
    aims = {word.casefold() for word in first}
    if aims:
        order.sort(key=lambda index: words[index].strip(_EDGE).casefold() not in aims)
    for index in order:
        options = list(variants(words[index]))
        rng.shuffle(options)
        for option in options:
            trial = [*changed[:index], option, *changed[index + 1 :]]
            if budget.spent(words, trial) <= allowed:
                changed = trial
                break
        if budget.spent(words, changed) >= allowed:
            break
    return "".join(changed) if words else text


def drawing(seed: int, text: str) -> random.Random:
    """Random numbers by a seed and a text, independent of other texts; a text may hold lone surrogates."""
    return random.Random(f"{seed} {text}".encode("utf-8", "surrogatepass"))


def _replaced(word: str, table: Mapping[str, str]) -> list[str]:
    """Every replacement of one character by the table, then of all characters by their first entry."""
    variants = [word[:i] + look + word[i + 1 :] for i, c in enumerate(word) for look in table.get(c, "")]
    return _other(word, [*variants, "".join(table[c][0] if c in table else c for c in word)])


def _inside(word: str) -> list[int]:
    """The places between two letters or digits."""
    return [i for i in range(1, len(word)) if word[i - 1].isalnum() and word[i].isalnum()]


def _other(word: str, variants: Sequence[str]) -> list[str]:
    return [variant for variant in dict.fromkeys(variants) if variant != word]
