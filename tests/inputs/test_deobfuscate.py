"""Disguised words are read as what they resemble; what is no disguise stays as it is."""

from __future__ import annotations

import unicodedata

import pytest

from zoo.adversary.text.edits import HOMOGLYPHS, LEETSPEAK, homoglyphs, leetspeak
from zoo.contract.card import TextInput
from zoo.inputs.deobfuscate import CONFUSABLES, deobfuscate
from zoo.inputs.text import TextCodec, clean, train_tokenizer


@pytest.mark.parametrize(
    ("disguised", "meant"),
    [
        ("a d0ɡ", "a dog"),
        ("the ԁоɡ", "the dog"),  # no letter of the word is Latin, none of the text is beyond look-alikes
        ("🅳🅾🅶", "dog"),
        ("(d0g)", "(dog)"),
        ("pu99ies, $tupid k!ller", "puggies, stupid killer"),
        ("he11o b@d d09.", "hello bad dog."),
        ("two d o g s run", "two dogs run"),
        ("a d o g", "a dog"),
        ("I r u n", "I run"),
        ("#d0g @us3r", "#dog @user"),
        ("t w o  d o g s  r u n", "two dogs run"),
        ("a  d  o  g", "a dog"),
        ("t w o\nd o g s\trun", "two dogs run"),
        ("two  dogs", "two dogs"),
    ],
)
def test_reads_what_is_meant(disguised: str, meant: str) -> None:
    assert deobfuscate(clean(disguised, gaps=True)) == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "two dogs run!",
        "in 2005, on 12/24, at 5pm, for $5 or 3.5kg",
        "the 80s, the 2nd, 4k",
        "stop!!! @name #tag",
        "Собака бежит по траве, и он рад",
        "Ο σκύλος τρέχει στο γρασίδι",
        "שני כלבים רצים 犬が走る",
        "b.a.d don't x y",
    ],
)
def test_leaves_what_is_no_disguise(text: str) -> None:
    assert deobfuscate(text) == text


def test_a_word_that_is_put_together_has_no_more_letters_than_a_tokenizer_takes() -> None:
    assert deobfuscate("x " * 250).split() == ["x" * 100, "x" * 100, "x" * 50]


def test_a_mixed_word_is_folded_in_a_foreign_text_too() -> None:
    assert deobfuscate("Это dоɡ рос") == "Это dog рос"


def test_every_look_alike_and_every_leet_sign_of_the_attacks_is_undone() -> None:
    for letter, look in HOMOGLYPHS.items():
        assert deobfuscate(f"the {look}xq").lower() == f"the {letter}xq".lower(), look
    for letter, signs in LEETSPEAK.items():
        for sign in signs:
            read = deobfuscate(f"wx{sign}xw")
            assert read == f"wx{letter}xw" or (sign == "1" and read == "wxixw"), sign  # 1 is i or l
    for word in ("puppy", "dog", "horses"):
        for variant in homoglyphs(word):
            assert deobfuscate(f"the {variant} runs") == f"the {word} runs"
        for variant in leetspeak(word):
            assert deobfuscate(f"the {variant} runs") == f"the {word} runs"


def test_the_table_holds_no_latin_letter_and_nothing_that_cleaning_already_folds() -> None:
    for look, letter in CONFUSABLES.items():
        assert letter.isascii()
        assert letter.isalpha()
        assert not look.isascii()
        assert clean(f"x{look}x") != f"x{letter}x", unicodedata.name(look)


def test_reading_twice_changes_nothing_more() -> None:
    for text in ("a d0ɡ", "two d o g s", "c0vid19 mp3 11 b2b", "@us3r $$$ !1!", "ѕο ԁ о ɡ"):
        once = deobfuscate(text)
        assert deobfuscate(once) == once


def test_a_card_asks_for_it() -> None:
    tokenizer = train_tokenizer(["the dog runs"] * 20, 300)
    plain, reading = TextCodec(tokenizer, TextInput(24)), TextCodec(tokenizer, TextInput(24, deobfuscate=True))
    wanted = plain.encode(["the dog runs"]).ids.tolist()
    assert reading.encode(["The d\u200b0ɡ runs"]).ids.tolist() == wanted
    assert plain.encode(["The d\u200b0ɡ runs"]).ids.tolist() != wanted
