"""Text: cleaned as a reader sees it, control tokens only from us, truncation said, no tokenizer by mistake."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import ftfy
import numpy as np
import pytest

from zoo.contract.card import TextInput
from zoo.contract.verdict import Unseen
from zoo.errors import BadDataError, BadInputError
from zoo.inputs.text import END, MAX_CHARACTERS, MAX_MARKS, START, TextCodec, clean, train_tokenizer

BYTES = train_tokenizer([], 0)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("ｇｕｎ ﬁre ①", "gun fire 1"),
        ("g\u200bu\u200c\u200dn\ufeff", "gun"),
        ("g\u00adun", "gun"),
        ("\u202egun\u202c \u2066x\u2069", "gun x"),
        ("gu\ufe0fn \u3164\u115fx", "gun x"),
        ("cafe\u0301", "café"),
        ("cafe\u200b\u0301", "café"),
        ("&lt;b&gt; &amp;amp; &#103;un", "<b> & gun"),
        ("&amp;lt;", "<"),
        ("“quoted” and ‘it’s’", "\"quoted\" and 'it's'"),
        ("schÃ¶n", "schön"),
        ("a\tb\r\n\nc\u2028d\u00a0\u3000e  f ", "a b c d e f"),
        ("a\x00b\x1b[31m", "ab"),
        ("\ud800gun", "gun"),
        ("", ""),
    ],
)
def test_clean(given: str, seen: str) -> None:
    found = clean(given).replace("\ufffd", "")  # how a lone surrogate is replaced is ftfy's affair
    assert found == seen
    assert clean(clean(given)) == clean(given)


@pytest.mark.parametrize("code", [0xE0100, 0xE01EF, 0xE0FFF, 0xE0001, 0x180F, 0x2065, 0xFFF0, 0xFFF8, 0x3164, 0xFE0F])
def test_what_nobody_sees_splits_no_word(code: int) -> None:
    """Default-ignorable code points, assigned or not: a reader sees "dog", so the model must."""
    assert clean(f"d{chr(code)}og") == "dog"


@pytest.mark.parametrize(
    "given",
    [
        "a" + "\u0301" * 12_000 + "\u0316" * 12_000,
        "a" + "\u0301\u0316" * 12_000,
        "a" + "&#769;" * 4_000 + "&#790;" * 4_000,
        "a" + "&amp;#769;" * 2_400 + "&amp;#790;" * 2_400,
        "a" + "\u0301\u200b" * 8_000 + "\u0316" * 8_000,
        "a" + ("\u0301" * 8_000 + "\u0316" * 8_000).encode().decode("latin-1"),
    ],
    ids=["two blocks", "in turn", "entities", "entities of entities", "hidden between", "mojibake"],
)
def test_marks_that_would_be_sorted_in_quadratic_time_are_bounded(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unicode sorts the marks of a letter by insertion: n of them take n * n steps."""
    longest = []
    normalise = unicodedata.normalize

    def noted(form: Any, text: str) -> str:
        flags = "".join("m" if unicodedata.combining(c) else " " for c in text)
        longest.append(max(map(len, flags.split(" "))))
        return normalise(form, text)

    monkeypatch.setattr(unicodedata, "normalize", noted)
    seen = clean(given)
    assert len(seen) <= MAX_MARKS + 1
    assert longest
    assert max(longest) <= MAX_MARKS


def test_accents_that_people_write_stay() -> None:
    assert clean("Zu\u0308rich, " + "e\u0323\u0302" * 40) == "Z\u00fcrich, " + "\u1ec7" * 40
    assert clean("a" + "\u0301" * 29 + " b") == "\u00e1" + "\u0301" * 28 + " b"


@pytest.mark.parametrize("digits", ["9" * 48_000, "0" * 40_000 + "65", "0" * 5_000 + "9" * 5_000])
def test_an_entity_of_thousands_of_digits_is_a_character(digits: str) -> None:
    assert clean(f"a&#{digits};b") == ("aAb" if digits.endswith("65") else "a\ufffdb")


@pytest.mark.parametrize("layer", ["amp;", "#38;", "AMP;", "ａｍｐ；", "ａｍｐ；".encode().decode("latin-1")])
def test_entities_within_each_other_take_few_passes(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass for each of n layers takes n * n steps."""
    passes = []
    once = ftfy.fixes.unescape_html

    def noted(text: str) -> str:
        passes.append(text)
        return once(text)

    monkeypatch.setattr("zoo.inputs.text.unescape_html", noted)
    monkeypatch.setattr(ftfy.fixes, "unescape_html", noted)
    assert clean("&" + layer * 5_000 + "lt;").count(";") > 4_900
    assert 1 < len(passes) < 12
    assert clean("&" + layer * 4 + "lt; &Atilde;&copy;") == "< é"


def test_ligatures_that_stand_for_many_letters_are_bounded() -> None:
    assert len(clean("\ufdfa" * 5_000).replace(" ", "")) == 75_000
    with pytest.raises(BadDataError, match="text of 288,000 characters, the limit is 100,000"):
        clean("\ufdfa" * 16_000)


def test_a_tokenizer_without_the_id_of_padding_is_refused() -> None:
    content = json.loads(BYTES)
    vocabulary = content["model"]["vocab"]
    (first,) = [token for token, number in vocabulary.items() if number == 0]
    vocabulary[first] = 1_000
    content["added_tokens"] = [one for one in content["added_tokens"] if one["id"]]
    content["post_processor"] = None
    with pytest.raises(BadDataError, match="has no token of the id 0"):
        TextCodec(json.dumps(content), TextInput(24))


def _codec(length: int = 24, **options: Any) -> TextCodec:
    return TextCodec(BYTES, TextInput(length, **options))


def test_ids_lie_in_the_vocabulary_between_start_and_end() -> None:
    codec = _codec()
    tokens = codec.encode(["a red car", ""])
    assert tokens.ids.shape == tokens.mask.shape == (2, 24)
    assert [array.dtype.name for array in (tokens.ids, tokens.mask)] == ["int64", "int64"]
    assert tokens.ids.max() < codec.vocabulary_size == 258
    length = int(tokens.mask[0].sum())
    assert (tokens.ids[0, 0], tokens.ids[0, length - 1]) == (0, 1)
    assert tokens.mask[0].tolist() == [1] * length + [0] * (24 - length)
    assert tokens.mask[1].sum() == 2  # an empty text is start and end, no NaN later


def test_case_counts_only_where_the_card_says_so() -> None:
    upper, lower = (_codec().encode([text]).ids for text in ("GUN", "gun"))
    assert np.array_equal(upper, lower)


@pytest.mark.parametrize("control", [START, END, END.upper(), f"a{END}b", "<|end\u200boftext|>", "&lt;|endoftext|&gt;"])
def test_control_tokens_that_a_user_types_stay_text(control: str) -> None:
    for codec in (_codec(60), TextCodec(_published_kind(), TextInput(60))):
        start, *_ = codec.encode(["a"]).ids[0]
        row = codec.encode([f"{control} gun"])
        ids = row.ids[0][row.mask[0] == 1].tolist()
        last = ids[-1]
        assert (ids.count(start), ids.count(last)) == (1, 1)
        assert len(ids) > len(control) - 4  # its characters are all there
        longer = codec.encode([f"{control} gun and more"])
        assert longer.mask.sum() > row.mask.sum()  # nothing is hidden behind it


def _published_kind() -> str:
    """A tokenizer whose control tokens stand last, are padded with the end token and normalised, as OpenAI's."""
    data = json.loads(BYTES)
    vocabulary = data["model"]["vocab"]
    shift = {token: number - 2 for token, number in vocabulary.items() if number > 1}
    data["model"]["vocab"] = shift | {START: 256, END: 257}
    for added in data["added_tokens"]:
        added["id"] = 256 if added["content"] == START else 257
    for token, entry in data["post_processor"]["special_tokens"].items():
        entry["ids"] = [256 if token == START else 257]
    return json.dumps(data)


def test_truncation_is_said_and_keeps_the_end_token() -> None:
    whole, cut, long = (_codec(8).windows(text) for text in ("abc", "abcdef", "a" * 50))
    assert [one.unseen for one in (whole, cut, long)] == [{}, {"tokens": Unseen(1, 7)}, {"tokens": Unseen(45, 51)}]
    assert long.ids[0, -1] == 1


def test_neighbours_in_a_batch_do_not_matter() -> None:
    texts = ["a", "two dogs on a sofa", "x" * 90]
    together = _codec().encode(texts)
    assert np.array_equal(together.ids, np.concatenate([_codec().encode([text]).ids for text in texts]))


@pytest.mark.parametrize(
    ("text", "named"),
    [("x" * 1_000_000, "1,000,000 characters, the limit is 100,000"), (b"gun", "got bytes"), (None, "got NoneType")],
)
def test_what_is_no_usable_text_is_refused(text: Any, named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        _codec().encode([text])
    assert clean("x" * MAX_CHARACTERS) == "x" * MAX_CHARACTERS


def _emptied() -> str:
    data = json.loads(BYTES)
    data["model"]["vocab"] = {START: 0, END: 1}
    return json.dumps(data)


@pytest.mark.parametrize(
    ("content", "named"),
    [(_emptied(), "knows 2 tokens; an empty tokenizer stands"), ("{}", "is not a tokenizer"), ("", "not a tokenizer")],
)
def test_a_file_that_is_no_tokenizer_is_refused(content: str, named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        TextCodec(content, TextInput(24))


def test_training_makes_words_of_what_is_frequent() -> None:
    text = "a red octagon on a pole"
    trained = TextCodec(train_tokenizer([text] * 50, 300), TextInput(40))
    assert trained.vocabulary_size <= 300
    assert trained.encode([text]).mask.sum() < _codec(40).encode([text]).mask.sum()


def test_a_tokenizer_that_panics_while_it_encodes_is_refused() -> None:
    """Its template names a token that it does not define; Rust's panic is not even an Exception."""
    broken = json.loads(train_tokenizer(["a photo of a dog"] * 20, 300))
    broken["post_processor"]["special_tokens"] = {}
    with pytest.raises(BadDataError, match=r"tokenizer\.json (cannot encode|is not a tokenizer)"):
        TextCodec(json.dumps(broken), TextInput(8)).encode(["a dog"])
