"""Windows of long texts: what they hold, where they stand in the text as it was given, and what is not known."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from zoo.contract.card import TextInput
from zoo.contract.verdict import Unseen
from zoo.inputs.offsets import Offsets
from zoo.inputs.text import TextCodec, clean, train_tokenizer

BYTES = train_tokenizer([], 258)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _word_pieces(unknown: int = 0) -> str:
    """The tokenizer of a BERT that knows the letters, at any place of a word."""
    names = ["[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS), ".", ","]
    names.insert(unknown, "[UNK]")
    tokenizer = Tokenizer(models.WordPiece({name: n for n, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, names.index(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return str(tokenizer.to_str())


def _codec(length: int = 12, *, deobfuscate: bool = False, unknown: int | None = None) -> TextCodec:
    content = BYTES if unknown is None else _word_pieces(unknown)
    return TextCodec(content, TextInput(length, deobfuscate=deobfuscate))


@pytest.mark.parametrize("unknown", [0, 2])
@pytest.mark.parametrize("deobfuscate", [False, True])
@pytest.mark.parametrize(
    "text", ["d" * 1000, "d " * 1000, "d " * 50 + " " + "o " * 300, "d\u0323\u0301" * 300, "d.d" * 300, "D" * 101]
)
def test_what_can_be_read_is_no_unknown_word(text: str, deobfuscate: bool, unknown: int) -> None:
    assert _codec(4000, deobfuscate=deobfuscate, unknown=unknown).windows(text).unseen == {}


@pytest.mark.parametrize("unknown", [0, 2])
def test_what_is_not_in_the_vocabulary_is_counted_by_words(unknown: int) -> None:
    codec = _codec(unknown=unknown)
    assert codec.windows("two 😀 dog").unseen == {"words": Unseen(1, 3)}
    assert codec.windows("😀 " * 3 + "d " * 27).unseen == {"tokens": Unseen(20, 30), "words": Unseen(3, 30)}
    assert codec.windows("😀 " * 3 + "d " * 27, 99).unseen == {"words": Unseen(3, 30)}


GIVEN = {
    "plain": "so the dog  runs, ",
    "invisible": "s\u200bo the d\u200do\ufe0fg\u00ad runs ",
    "wide": "so ｔｈｅ  \u3000ｄｏｇ runs\u2028",
    "entities": "caf&eacute; &amp; the d&#111;g runs &lt;b&gt; ",
    "accents": "de\u0301ja\u0300 vu the dog runs, Å\u0323 ﬁne ",
    "mojibake": "cafÃ© the dog runs âœ” ",
    "emoji": "😀😀 the dog 👩\u200d🚀 runs ",
    "capital": "İİİ THE DOG RUNS ",
}


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("deobfuscate", [False, True])
def test_a_window_stands_where_it_was_given(name: str, deobfuscate: bool) -> None:
    codec = _codec(24, deobfuscate=deobfuscate)
    text = GIVEN[name] * 9 + "zebra " + GIVEN[name] * 4
    windows = codec.windows(text, 500)
    assert windows.unseen == {}
    zebra = codec.encode(["zebra"]).ids[0, 1:7].tolist()
    found = [
        span
        for ids, span in zip(windows.ids.tolist(), windows.characters, strict=True)
        if any(ids[place : place + 6] == zebra for place in range(18))
    ]
    assert found
    assert all("zebra" in text[first:last] and last - first < 80 for first, last in found)
    covered = {place for first, last in windows.characters for place in range(first, last)}
    shown = [place for place, character in enumerate(text) if character.isascii() and character.isalpha()]
    assert covered.issuperset(shown)


@pytest.mark.parametrize(
    ("disguised", "sign"), [("t h e  ԁ о ɡ  r u n s ", "ԁ о ɡ"), ("the ԁоɡ runs ", "ԁоɡ"), ("the d0g runs ", "d0g")]
)
def test_offsets_are_those_of_disguised_words(disguised: str, sign: str) -> None:
    codec = _codec(16, deobfuscate=True)
    text = "so " * 30 + disguised
    windows = codec.windows(text, 99)
    dog = codec.encode(["dog"]).ids[0, 1:5].tolist()
    spans = [
        span for ids, span in zip(windows.ids.tolist(), windows.characters, strict=True) if str(dog)[1:-1] in str(ids)
    ]
    assert spans
    assert all(sign in text[first:last] for first, last in spans)


def test_offsets_of_what_was_mended_across_words_are_those_of_the_line() -> None:
    given = "one\nSÃ£o Paulo e MaceiÃ³, voilÃ\xa0 le travail\nthree"
    read = clean(given)
    offsets = Offsets(given, read, clean)
    assert offsets.span(0, 3) == (0, 3)
    first, last = offsets.span(read.index("voil"), read.index("voil") + 4)
    assert "voil" in given[first:last]
    assert offsets.span(len(read) - 5, len(read)) == (len(given) - 5, len(given))


def test_a_sign_at_the_cut_of_a_word_without_end_is_in_one_window() -> None:
    codec = _codec(24)
    sign = codec.encode(["xyz"]).ids[0, 2:5].tolist()
    for before in range(16, 60):
        windows = codec.windows("d" * before + "xyz" + "d" * 40, 99)
        assert any(str(sign)[1:-1] in str(ids) for ids in windows.ids.tolist()), before
