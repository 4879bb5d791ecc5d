"""Character attacks that leave a word readable: look-alikes, invisible characters, leetspeak, spacing, case, typos.

Each takes a word, maybe with punctuation and blanks around it, and returns readable variants of it: every single
edit, and for some the edit of all characters at once. The typos are those of Belinkov & Bisk 2018 (arXiv 1711.02173)
and Pruthi et al. 2019 (arXiv 1905.11268), who keep the first letter, as readers recognise words by it.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence

from zoo.adversary.text.budget import TextBudget, split_words
from zoo.errors import BadArgumentError, close_match

#: What stands around a word in a text and is no part of it.
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
    found = [word[:i] + " " + word[i:] for i in places]
    found.append("".join(" " + c if i in places else c for i, c in enumerate(word)))
    return _other(word, [*found, word.strip()])


def casing(word: str) -> list[str]:
    """Change the case of one letter, of every second, or of all."""
    found = [word[:i] + c.swapcase() + word[i + 1 :] for i, c in enumerate(word)]
    found.append("".join(c.upper() if i % 2 else c.lower() for i, c in enumerate(word)))
    return _other(word, [*found, word.upper(), word.swapcase()])


def misspelling(word: str) -> list[str]:
    """Swap, drop or double a letter or hit a neighbouring key, once, and never at the word's first letter."""
    letters = [i for i, c in enumerate(word) if c.isalpha()][1:]
    found = []
    for i in letters:
        before, letter, after = word[:i], word[i], word[i + 1 :]
        if after[:1].isalpha():
            found.append(before + after[0] + letter + after[1:])
        found += [before + after, before + 2 * letter + after]
        keys = KEYBOARD.get(letter.lower(), "")
        found += [before + (key.upper() if letter.isupper() else key) + after for key in keys]
    return _other(word, found)


#: The character attacks by name.
KINDS: dict[str, Variants] = {
    "homoglyphs": homoglyphs,
    "zero_width": zero_width,
    "leetspeak": leetspeak,
    "spacing": spacing,
    "casing": casing,
    "misspelling": misspelling,
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
    """One random change of a text that spends its budget (10 % of the characters, unless given) as far as it goes.

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
    """Random numbers by a seed and a text, whatever other texts there are; a text may hold lone surrogates."""
    return random.Random(f"{seed} {text}".encode("utf-8", "surrogatepass"))


def _replaced(word: str, table: Mapping[str, str]) -> list[str]:
    """Every replacement of one character by the table, then of all characters by their first entry."""
    found = [word[:i] + look + word[i + 1 :] for i, c in enumerate(word) for look in table.get(c, "")]
    return _other(word, [*found, "".join(table[c][0] if c in table else c for c in word)])


def _inside(word: str) -> list[int]:
    """The places between two letters or digits."""
    return [i for i in range(1, len(word)) if word[i - 1].isalnum() and word[i].isalnum()]


def _other(word: str, found: Sequence[str]) -> list[str]:
    return [variant for variant in dict.fromkeys(found) if variant != word]
