"""Whether a text is in a language that a model was not made for. Where that is in doubt, it is not said. No torch."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from zoo.contract.verdict import Unseen

#: The scripts of languages that are not written in Latin letters, by the first word of their characters' names.
_SCRIPTS = {
    **dict.fromkeys(("ru", "uk", "bg", "be", "mk", "kk", "ky", "mn"), ("CYRILLIC",)),
    **dict.fromkeys(("ar", "fa", "ur", "ps", "ug"), ("ARABIC",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("DEVANAGARI",)),
    "sr": ("CYRILLIC", "LATIN"), "el": ("GREEK",), "he": ("HEBREW",), "zh": ("CJK",), "ko": ("HANGUL", "CJK"),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"), "th": ("THAI",), "bn": ("BENGALI",), "ta": ("TAMIL",), "te": ("TELUGU",),
    "ml": ("MALAYALAM",), "kn": ("KANNADA",), "gu": ("GUJARATI",), "pa": ("GURMUKHI", "ARABIC"), "ka": ("GEORGIAN",),
    "hy": ("ARMENIAN",), "am": ("ETHIOPIC",), "km": ("KHMER",), "lo": ("LAO",), "my": ("MYANMAR",), "si": ("SINHALA",),
}  # fmt: skip
#: Names of characters that begin so are of no script, or of any.
_ANY = (
    "MODIFIER",
    "FEMININE",
    "MASCULINE",
    "MICRO",
    "OHM",
    "KELVIN",
    "ANGSTROM",
    "DOUBLE-STRUCK",
    "SCRIPT",
    "BLACK-LETTER",
)
#: A character of these scripts says as much as some letters of others.
_SYLLABLES = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "YI")
_WEIGHT = 3
#: Letters of other scripts that are evidence: so many, where they are a fifth of the text, or more: names are not.
_FEW, _FIFTH, _MANY = 4, 0.2, 24

_WORD = re.compile(r"[^\W\d_]+")

#: Words of one language in Latin letters that are evidence, how likely the detector must find it, and the model's own
#: not; and how likely its own may be at most without words with accents.
#: So none of 5,000 captions is taken for another language, and one of 2,375 prompts of image generators (a name).
_WORDS, _LIKELY, _UNLIKELY, _NAMES = 3, 0.9, 0.05, 0.3
#: A long text is looked at in parts of at most so many words: one may be in another language.
_PART = 40
_LONG_WORD = re.compile(r"[^\W\d_]{2,}")


def other_language(text: str, languages: Sequence[str]) -> Unseen | None:
    """The share of a cleaned text that is in none of these languages, of which it names one; None without evidence.

    `languages` are codes of ISO 639-1, none for a model of all languages. Languages in the same letters are told apart
    where the extra `language` (py3langid) is installed. A short name or a sign of another script is
    no evidence, nor is an alphabetic character that stands alone.

    >>> other_language("Собака бежит", ["en"])
    Unseen(amount=1.0, total=1, tolerated=False, note='Cyrillic')
    """
    if not languages:
        return None
    return (None if text.isascii() else _by_letters(text, languages)) or _by_words(text, languages)


def _by_letters(text: str, languages: Sequence[str]) -> Unseen | None:
    own = {script for language in languages for script in _SCRIPTS.get(language, ("LATIN",))}
    weights: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    for word in _WORD.findall(text):
        for script, count in Counter(map(_script, word)).items():
            if script in _SYLLABLES:
                weights[script] += _WEIGHT * count
            else:
                (weights if count > 1 or script in own else alone)[script] += count
    if not any(script in own for script in weights):
        weights += alone
    del weights[""]
    foreign = Counter({script: weight for script, weight in weights.items() if script not in own})
    share = foreign.total() / max(weights.total(), 1)
    if foreign.total() < (_FEW if share >= _FIFTH else _MANY):
        return None
    name = foreign.most_common(1)[0][0]
    return Unseen(share, 1, note=name if name == "CJK" else name.title())


def _by_words(text: str, languages: Sequence[str]) -> Unseen | None:
    rank = _detector()
    words = list(_LONG_WORD.finditer(text)) if rank else []
    if rank is None or len(words) < _WORDS:
        return None
    count = -(-len(words) // _PART)
    ends = [len(words) * part // count for part in range(count + 1)]
    found: Counter[str] = Counter()
    for first, last in pairwise(ends):
        likely = dict(rank(text[words[first].start() : words[last - 1].end()]))
        best = max(likely, key=likely.__getitem__)
        if best in languages or likely[best] < _LIKELY or _share(likely, languages) > _UNLIKELY:
            continue
        # Names with accents say more of their language than the words around them.
        plain = " ".join(word[0] for word in words[first:last] if word[0].isascii())
        if not plain or _share(dict(rank(plain)), languages) < _NAMES:
            found[best] += last - first
    return Unseen(found.total() / len(words), 1, note=found.most_common(1)[0][0]) if found else None


def _share(likely: dict[str, float], languages: Sequence[str]) -> float:
    return max(likely.get(language, 0.0) for language in languages)


@lru_cache(maxsize=1)
def _detector() -> Callable[[str], Iterable[tuple[str, float]]] | None:
    """What gives the languages of a text, each with its probability; None where the extra is not installed."""
    try:
        from py3langid import langid
    except ImportError:
        return None
    ranker: Any = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    return ranker.rank  # type: ignore[no-any-return]


@lru_cache(maxsize=65_536)
def _script(letter: str) -> str:
    """The script of a letter; "" where it belongs to none."""
    script = unicodedata.name(letter, "").partition(" ")[0]
    return "" if script in _ANY else script
