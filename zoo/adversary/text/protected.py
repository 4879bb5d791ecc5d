"""Words whose meaning makes the label: an attack that exchanges them has written another text, and fooled nobody."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from zoo.inputs.text import clean


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
