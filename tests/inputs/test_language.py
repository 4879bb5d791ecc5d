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


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Zwei Hunde laufen über eine grüne Wiese im Park", "de"),
        ("Les enfants jouent sur la plage avec un ballon", "fr"),
        ("Los niños juegan en la playa con una pelota", "es"),
        ("Dwa psy biegną po zielonej trawie w parku", "pl"),
        (
            "two dogs run over the green grass of a park " * 8 + "Les enfants jouent sur la plage avec un ballon " * 8,
            "fr",
        ),
    ],
)
def test_other_languages_of_the_same_letters_are_unseen(text: str, language: str) -> None:
    pytest.importorskip("py3langid")
    unseen = other_language(text, ["en"])
    assert unseen is not None
    assert unseen.note == language
    assert 0.3 < unseen.share <= (0.7 if text.startswith("two") else 1)
    assert other_language(text, ["en", language]) is None


def test_short_english_prompts_are_english() -> None:
    pytest.importorskip("py3langid")
    signs = [f"a {colour} {shape} on grass" for colour in ("red", "blue") for shape in ("octagon", "triangle")]
    for text in [
        *signs,
        "two dogs",
        "a knight by Zdzisław Beksiński, oil on canvas",
        "8k, hdr, bokeh",
        "x = [i for i in range(10)]",
    ]:
        assert other_language(text, ["en"]) is None, text
