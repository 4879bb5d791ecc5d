"""Texts in other languages than the model's are said to be unseen; English is not, however short or odd."""

from __future__ import annotations

import pytest

from zoo.contract.card import TextInput
from zoo.inputs.language import other_language
from zoo.inputs.text import TextCodec, train_tokenizer

CODEC = TextCodec(train_tokenizer([], 258), TextInput(77))


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Собака бежит по траве", "Cyrillic"),
        ("собака", "Cyrillic"),
        ("с о б а к а", "Cyrillic"),
        ("Ο σκύλος τρέχει", "Greek"),
        ("الكلب يجري", "Arabic"),
        ("שני כלבים", "Hebrew"),
        ("कुत्ता दौड़ता है", "Devanagari"),
        ("两只狗", "CJK"),
        ("犬が走る", "CJK"),
        ("개가 달린다", "Hangul"),
        ("สุนัขวิ่ง", "Thai"),
        ("a dog, and then " * 40 + "собака бежит по зелёной траве в парке", "Cyrillic"),
    ],
)
def test_other_scripts_are_unseen(text: str, script: str) -> None:
    unseen = CODEC.windows(text, 9).unseen["language"]
    assert unseen.note == script
    assert unseen.share == pytest.approx(1) if text[0] != "a" else unseen.share < 0.1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "two dogs run",
        "masterpiece, best quality, 8k, ultra-detailed, cinematic lighting",
        "a café in São Paulo, crème brûlée, naïve façade, Dvořák, Łódź",
        "the sum α + β of angles, 5 μm, Δx, λ",
        "¯\\_(ツ)_/¯ ಠ_ಠ ʕ•ᴥ•ʔ ☆★ 😀😀",
        "Dostoevsky (Достоевский) wrote novels, and this one is about a man who walks a long way for some bread",
        "for i in range(10): print(x[i] ** 2)",
        "a dоg wіth a stick",  # two look-alikes
    ],
)
def test_english_is_never_another_language(text: str) -> None:
    assert "language" not in CODEC.windows(text).unseen


def test_disguised_english_is_english_where_disguises_are_undone() -> None:
    codec = TextCodec(train_tokenizer([], 258), TextInput(77, deobfuscate=True))
    assert codec.windows("тһе ԁоɡ").unseen == {}
    assert "language" in codec.windows("собака бежит").unseen


def test_the_card_says_which_languages_the_model_knows() -> None:
    assert other_language("Собака бежит", []) is None
    assert other_language("Собака бежит", ["ru"]) is None
    assert other_language("犬が走る", ["ja"]) is None
    greek = other_language("Собака бежит Ο σκύλος τρέχει", ["ru"])
    assert greek is not None
    assert (greek.note, str(greek)) == ("Greek", "0.52 (Greek)")
