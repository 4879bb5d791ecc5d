"""Undo disguises that hide a word from a tokenizer but not from a reader: look-alikes, leetspeak, spaced letters.

This is not part of `clean`, which loses nothing that a reader sees. It guesses: "mp3" becomes "mpe". A model that was
trained on such texts asks for it in its card (`TextInput.deobfuscate`).
"""

from __future__ import annotations

import re
import unicodedata

#: Latin letter to characters that look like it in most fonts and have no NFKC form that says so: Cyrillic, Greek,
#: Armenian and Cherokee letters, small capitals, letters with a stroke (after Unicode Technical Standard 39).
_LOOKALIKES = {
    "a": "аαɑᴀ", "b": "Ьʙɓƅ", "c": "сϲᴄ", "d": "ԁɗđᴅ", "e": "еєҽᴇɇ", "f": "ƒꜰẝ", "g": "ɡցɢǥ", "h": "һհʜħ",
    "i": "іιıɩɪ",
    "j": "јϳյᴊ", "k": "кκᴋƙ", "l": "ӏւʟłƚ", "m": "мᴍ", "n": "ոռɴη", "o": "оοօσᴏø", "p": "рρᴘƿ", "q": "ԛզɋ", "r": "гʀɍ",
    "s": "ѕꜱʂ", "t": "тτᴛŧ", "u": "υսᴜʋ", "v": "ѵνᴠ", "w": "ԝωᴡա", "x": "хχ×", "y": "уүγʏ", "z": "ᴢʐƶ",
    "A": "АΑᎪ", "B": "ВΒᏴ", "C": "СϹᏟ", "D": "ᎠĐ", "E": "ЕΕᎬ", "F": "Ϝ", "G": "ԌᏀ", "H": "НΗᎻ", "I": "ІΙӀ", "J": "ЈᎫ",
    "K": "КΚᏦ", "L": "ᏞŁ", "M": "МΜᎷ", "N": "Ν", "O": "ОΟՕØ", "P": "РΡᏢ", "R": "Ꭱ", "S": "ЅՏᏚ", "T": "ТΤᎢ", "U": "Ս",
    "V": "ѴᏙ", "W": "ԜᎳ", "X": "ХΧ", "Y": "УΥҮ", "Z": "ΖᏃ",
}  # fmt: skip

#: Character to the Latin letter that it passes for. NFKC leaves the emoji letters (circled, squared, of flags) alone.
CONFUSABLES = {look: letter for letter, looks in _LOOKALIKES.items() for look in looks} | {
    chr(first + place): chr(ord("a") + place) for first in (0x1F150, 0x1F170, 0x1F1E6) for place in range(26)
}

_LEET = dict(zip("4@8391!05$72", "aabegiiosstz", strict=True))
_FOLD = str.maketrans(CONFUSABLES)
_UNLEET = str.maketrans(_LEET)

#: Numbers with an ordinal's ending or a unit, and dates. They are not leetspeak.
_NUMBER = re.compile(
    r"[#$]?\d[\d.,:/-]*(?:st|nd|rd|th|s|k|d|m|am|pm|cm|mm|km|ft|in|kg|g|lb|lbs|oz|p|x|fps|hz|ghz|kb|mb|gb|tb|v|w|mph|yo|yr|yrs)?"
)
#: A run that may be leetspeak: letters, digits and the signs that replace letters. At its ends ! is punctuation.
_RUN = re.compile(r"[\w$@](?:[\w$@!]*[\w$@])?")
#: Three or more single letters, spaces between each two.
_SPACED = re.compile(r"(?<!\S)[^\W\d_](?: +[^\W\d_]){2,}(?!\S)")
#: The most letters of a word that is put together: WordPiece makes one unknown token of longer ones.
_LONGEST = 100


def deobfuscate(text: str) -> str:
    """A cleaned text with its words as a reader reads them: "the d0ɡ", "ᴛhe d o g" and "the dog" become one.

    Look-alikes are folded to Latin letters in words that mix them with Latin ones, and everywhere in a text none of
    whose letters is of another script beyond look-alikes: Russian or Greek stays what it is. Digits and signs within a
    word are read as the letters they resemble, in lower case, except numbers with a unit ("2nd", "80s", "5pm").
    Between spaced letters, wider gaps are those between words; elsewhere several spaces are one.
    """
    if not text.isascii():
        foreign = any(c.isalpha() and not c.isascii() and c not in CONFUSABLES for c in text)
        text = " ".join(_folded(word, foreign) for word in text.split(" "))
    text = _SPACED.sub(lambda run: _joined(run[0]), " ".join(map(_unleet, text.split(" "))))
    return " ".join(text.split())


def in_pieces(text: str, longest: int) -> str:
    """The text with spaces within words of more characters than `longest`, accents counted apart."""

    def cut(word: str) -> str:
        if len(unicodedata.normalize("NFD", word)) <= longest:
            return word
        step = longest if word.isascii() else longest // 4
        return " ".join(word[start : start + step] for start in range(0, len(word), step))

    return re.sub(rf"[^\s!-/:-@\[-`{{-~]{{{longest // 4 + 1},}}", lambda word: cut(word[0]), text)


def _folded(word: str, foreign: bool) -> str:
    latin = any("a" <= c <= "z" or "A" <= c <= "Z" for c in word)
    return word.translate(_FOLD) if latin or not foreign else word


def _joined(spaced: str) -> str:
    """The words of spaced letters: a gap is between two words where it is wider than the narrowest."""
    narrow = min(map(len, re.findall(" +", spaced)))
    return " ".join(_word(word.replace(" ", "")) for word in re.split(f" {{{narrow + 1},}}", spaced))


def _word(letters: str) -> str:
    if len(letters) > 3 and letters[0] in "aAI":  # more likely "a dog" and "I run" than a word that begins so
        letters = letters[0] + " " + letters[1:]
    return in_pieces(letters, _LONGEST)


def _unleet(word: str) -> str:
    if word.isalpha():
        return word
    return _RUN.sub(lambda run: _read(run[0]), word)


def _read(run: str) -> str:
    mention = "@" if run.startswith("@") else ""  # a name, not an a
    core = run.removeprefix("@")
    if not any(c.isalpha() for c in core) or not any(c in _LEET for c in core) or _NUMBER.fullmatch(core.lower()):
        return run
    return mention + core.replace("11", "ll").translate(_UNLEET)
