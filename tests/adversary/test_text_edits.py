"""Character attacks: readable variants, random ones within the budget, and what the cleaning of texts undoes."""

from __future__ import annotations

import random

import pytest

from zoo.adversary.text.edits import HOMOGLYPHS, KINDS, ZERO_WIDTH, TextBudget, character_edits, perturb, split_words
from zoo.errors import BadInputError
from zoo.inputs.text import clean

ALPHABET = "abcdefgo ABC,.'19éßдя漢\u200b\u0301\U0001f415\n\t"


def _random_texts(count: int) -> list[str]:
    rng = random.Random(4)
    return ["".join(rng.choices(ALPHABET, k=rng.randrange(70))) for _ in range(count)]


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("homoglyphs", "dоg"),
        ("zero_width", "d\u200bog"),
        ("leetspeak", "d0g"),
        ("spacing", "d og"),
        ("casing", "dOg"),
        ("misspelling", "dgo"),
        ("misspelling", "dg"),
        ("misspelling", "doog"),
        ("misspelling", "dig"),
    ],
)
def test_what_becomes_of_a_word(kind: str, some: str) -> None:
    found = KINDS[kind]("dog")
    assert some in found
    assert "dog" not in found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("kind", KINDS)
def test_any_word_has_sound_variants(kind: str) -> None:
    for text in _random_texts(100):
        for word in split_words(text):
            assert all(variant != word and isinstance(variant, str) for variant in KINDS[kind](word))


def test_look_alikes_are_other_characters_of_one_code_point() -> None:
    assert all(len(look) == 1 and look != letter and not look.isascii() for letter, look in HOMOGLYPHS.items())


def test_a_misspelt_word_keeps_its_first_letter() -> None:
    assert {variant[:1] for variant in KINDS["misspelling"]("dogs")} == {"d"}


def test_an_unknown_kind_is_refused_with_the_close_match() -> None:
    with pytest.raises(BadInputError, match='did you mean "leetspeak"'):
        character_edits(["leetspeek"])


@pytest.mark.parametrize(
    "budget", [TextBudget(), TextBudget(share=0.3), TextBudget("words", count=3), TextBudget("words")]
)
@pytest.mark.parametrize("kind", [*KINDS, None])
def test_random_changes_keep_to_their_budget(kind: str | None, budget: TextBudget) -> None:
    variants = KINDS[kind] if kind else character_edits()
    changed = 0
    for text in _random_texts(60):
        found = perturb(text, variants, budget, seed=3)
        assert budget.permits(text, found), (text, found)
        changed += found != text
    assert changed > (0 if kind == "spacing" else 20)  # to cut a word in two are two edits of words
    assert perturb("  ", variants, budget) == "  "


def test_equal_seeds_give_equal_changes_and_others_others() -> None:
    text = "a dog runs over the grass and another one sleeps in the sun beside it"
    found = [perturb(text, character_edits(), seed=seed) for seed in range(8)]
    assert found == [perturb(text, character_edits(), seed=seed) for seed in range(8)]
    assert len(set(found)) > 4


@pytest.mark.parametrize(
    ("kind", "undone"),
    [
        ("zero_width", True),
        ("casing", True),  # by the lower case that most tokenizers want
        ("homoglyphs", False),
        ("leetspeak", False),
        ("spacing", False),
        ("misspelling", False),
    ],
)
def test_what_cleaning_undoes(kind: str, undone: bool) -> None:
    assert {clean(variant).lower() == "dog" for variant in KINDS[kind]("dog")} == {undone}


@pytest.mark.parametrize("code", [*map(ord, ZERO_WIDTH), 0x180F, 0x2065, 0xFFF0, 0xFFF8, 0xE0100, 0xE01EF, 0xE0FFF])
def test_cleaning_removes_what_nobody_sees(code: int) -> None:
    assert clean(f"d{chr(code)}og") == "dog"
