"""Budgets of edits: the distance against a plain implementation, shares and counts, banned words."""

from __future__ import annotations

import random

import pytest

from zoo.adversary.text.edits import TextBudget, count_banned, edit_distance, split_words
from zoo.adversary.threat import TextPart
from zoo.errors import BadCardError


def _plain_distance(a: str, b: str) -> int:
    """Optimal string alignment over the whole table, as in the textbook."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if not i or not j:
                table[i][j] = i + j
                continue
            best = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                best = min(best, table[i - 2][j - 2] + 1)
            table[i][j] = best
    return table[-1][-1]


def test_the_distance_is_the_plain_one_up_to_its_limit() -> None:
    rng = random.Random(0)
    for _ in range(600):
        a = "".join(rng.choices("abc ", k=rng.randrange(9)))
        b = "".join(rng.choices("abc ", k=rng.randrange(9)))
        for limit in (0, 1, 2, 3, 9):
            assert edit_distance(a, b, limit) == min(_plain_distance(a, b), limit + 1), (a, b, limit)


@pytest.mark.parametrize(
    ("before", "after", "edits"),
    [
        ("dog", "dgo", 1),
        ("dog", "d o g", 2),
        ("dog", "d\u200bog", 1),
        ("dog", "Dog", 1),
        ("a dog", "adog", 1),
        ("dog", "dog", 0),
        ("dog", "", 2),  # more than the budget of one edit
    ],
)
def test_what_counts_as_an_edit_of_a_character(before: str, after: str, edits: int) -> None:
    assert TextBudget(count=2 if edits == 2 and after else 1).edits(before, after) == edits


@pytest.mark.parametrize(
    ("before", "after", "edits"),
    [
        ("a brown dog", "a brown cat", 1),
        ("a brown dog", "a dog", 1),
        ("a brown dog", "a  brown\tdog ", 0),
        ("a brown dog", "abrown dog", 2),
        ("a brown dog", "a br own dog", 2),
        ("a brown dog", "a dog brown", 1),
    ],
)
def test_what_counts_as_an_edit_of_a_word(before: str, after: str, edits: int) -> None:
    assert TextBudget("words", count=3).edits(before, after) == edits


@pytest.mark.parametrize(
    ("text", "budget", "allowed"),
    [
        ("x" * 100, TextBudget(), 10),
        ("x" * 99, TextBudget(), 9),
        ("x" * 3, TextBudget(), 1),
        ("", TextBudget(), 0),
        ("x" * 100, TextBudget(share=0.29), 29),
        ("x" * 100, TextBudget(share=0.0), 0),
        ("x" * 100, TextBudget(count=0), 0),
        ("one two three four", TextBudget("words", share=0.5), 2),
        ("one", TextBudget("words", count=3), 3),
    ],
)
def test_how_many_edits_are_allowed(text: str, budget: TextBudget, allowed: int) -> None:
    assert budget.allowed(text) == allowed


@pytest.mark.parametrize("text", ["a dog", "  a  dog \n", "dog", "", "   ", "a\u200bb\u00a0c"])
def test_words_put_together_are_the_text(text: str) -> None:
    assert "".join(split_words(text)) == (text if text.strip() else "")


def test_the_cost_of_parts_is_never_below_the_distance() -> None:
    rng = random.Random(1)
    for unit in ("characters", "words"):
        budget = TextBudget(unit, count=99)
        for _ in range(200):
            words = ["".join(rng.choices("abc", k=rng.randrange(1, 5))) + " " for _ in range(4)]
            changed = [rng.choice([word, word.strip(), word[::-1], "x" + word]) for word in words]
            assert budget.spent(words, changed) >= budget.edits("".join(words), "".join(changed))


@pytest.mark.parametrize(
    ("text", "count"),
    [("a dog", 1), ("a DOG", 1), ("hotdogs", 1), ("d\u200bog", 1), ("ｄｏｇ", 1), ("d0g", 0), ("dog dog", 2), ("", 0)],
)
def test_banned_words_are_counted_as_a_word_filter_sees_them(text: str, count: int) -> None:
    assert count_banned(text, ["dog"]) == count


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attacks": ["homoglyph"]}, 'did you mean "homoglyphs"'),
        ({"attacks": []}, "at least one attack"),
        ({"budget": {"share": 1.5}}, r"share lies in \[0, 1\], got 1.5"),
        ({"budget": {"count": -1}}, "count must be at least 0, got -1"),
        ({"budget": {"unit": "letters"}}, "letters"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"suffix": -1}, "suffix must not be negative, got -1"),
        ({"banned": [" "]}, "must not be empty"),
        ({"query": 3}, 'did you mean "queries"'),
    ],
)
def test_a_threat_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadCardError, match=message):
        TextPart.from_dict(dict(fields))


def test_a_threat_is_read_back_as_it_was_written() -> None:
    threat = TextPart(("leetspeak", "gcg"), TextBudget("words", count=3), banned=("dog",), suffix=2)
    assert TextPart.from_dict(threat.to_dict()) == threat
