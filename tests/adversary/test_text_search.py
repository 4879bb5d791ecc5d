"""The black-box search: each attack against a keyword model, budgets, seeds, queries, and claims that are refuted."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from zoo.adversary.text.attack import attack_texts
from zoo.adversary.text.edits import KINDS, TextBudget, count_banned
from zoo.adversary.text.target import TextResult, success_rate, summary
from zoo.adversary.threat import TextPart
from zoo.errors import BadInputError
from zoo.inputs.text import clean

TEXTS = ["a brown dog runs over the grass", "the dog sleeps, and another dog eats", "a cat on a red roof"]


def search_texts(
    score: Callable[[list[str]], object], texts: list[str], threat: TextPart, *, threshold: float, batch_size: int = 256
) -> list[TextResult]:
    return attack_texts(lambda part, _: score(part), texts, threat, threshold=threshold, batch_size=batch_size)


def keyword(texts: list[str]) -> list[float]:
    """A bag of words that knows one of them: 0.9 for each text that has it."""
    return [0.9 if "dog" in text.split() else 0.1 for text in texts]


def cleaned_keyword(texts: list[str]) -> list[float]:
    return keyword([clean(text).lower() for text in texts])


def count_keyword(texts: list[str]) -> list[float]:
    """1 - 2^-n for n dogs: below a half only without any."""
    return [1 - 0.5 ** text.split().count("dog") for text in texts]


def words_score(texts: list[str]) -> list[float]:
    """A smooth score of the letters in the whole text, so that every change matters."""
    return [0.4 + 0.6 * sum(c in "aeiou" for c in text) / max(len(text), 1) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_each_attack_breaks_a_keyword_model(kind: str) -> None:
    results = search_texts(keyword, TEXTS, TextPart((kind,)), threshold=0.5)
    assert [result.outcome for result in results] == ["broken", "broken", "missed"]
    assert success_rate(results) == 1.0
    figures = summary(results)
    assert [figures[key] for key in ("texts", "missed", "broken", "held", "refuted")] == [3, 1, 2, 0, 0]
    assert figures["queries"] == sum(result.queries for result in results)
    for result in results[:2]:
        assert result.score_before == 0.9
        assert result.score_after == 0.1
        assert 1 <= result.edits <= TextBudget().allowed(result.original)
    assert results[2].text == TEXTS[2]


@pytest.mark.parametrize("kind", KINDS)
def test_cleaning_first_undoes_two_of_them(kind: str) -> None:
    results = search_texts(cleaned_keyword, TEXTS[:1], TextPart((kind,)), threshold=0.5)
    assert results[0].outcome == ("held" if kind in ("zero_width", "casing") else "broken")


def test_every_occurrence_must_go_and_the_score_leads_there() -> None:
    result = search_texts(count_keyword, TEXTS[1:2], TextPart(), threshold=0.25)[0]
    assert result.outcome == "broken"
    assert result.edits == 2
    held = search_texts(count_keyword, TEXTS[1:2], TextPart(budget=TextBudget(count=1)), threshold=0.25)[0]
    assert held.outcome == "held"
    assert held.score_after == 0.5


@pytest.mark.parametrize("score", [0.9, 0.5, 0.500001])
def test_a_constant_model_is_never_broken(score: float) -> None:
    results = search_texts(lambda texts: [score] * len(texts), TEXTS, TextPart(queries=80), threshold=0.49)
    assert {result.outcome for result in results} == {"held"}
    assert [result.text for result in results] == TEXTS
    assert success_rate(results) == 0.0


def test_a_model_that_flags_nothing_has_nothing_to_break() -> None:
    results = search_texts(lambda texts: [0.2] * len(texts), TEXTS, TextPart(), threshold=0.2)
    assert {result.outcome for result in results} == {"missed"}
    assert success_rate(results) is None


@pytest.mark.parametrize(
    "budget", [TextBudget(), TextBudget(share=0.25), TextBudget("words", count=2), TextBudget(count=0)]
)
def test_budgets_are_never_exceeded(budget: TextBudget) -> None:
    rng = random.Random(7)
    texts = ["".join(rng.choices("abeiou AB.,é\u200b漢", k=rng.randrange(40))) for _ in range(25)]
    results = search_texts(words_score, texts, TextPart(budget=budget, queries=120), threshold=0.0)
    assert all(budget.permits(result.original, result.text) for result in results)
    assert [result.edits for result in results] == [budget.edits(r.original, r.text) for r in results]
    assert all(result.score_after <= result.score_before for result in results)
    assert any(result.text != result.original for result in results) == (budget.count != 0)


def test_queries_are_counted_and_bounded() -> None:
    asked: list[str] = []

    def score(texts: list[str]) -> list[float]:
        asked.extend(texts)
        return words_score(texts)

    result = search_texts(score, TEXTS[:1], TextPart(queries=30), threshold=0.0)[0]
    assert result.queries == 30
    assert len(asked) == 31  # and the check


def test_the_same_seed_finds_the_same_whatever_the_batch() -> None:
    threat = TextPart(options=5, queries=150, seed=5)
    together = search_texts(words_score, TEXTS, threat, threshold=0.0)
    alone = [search_texts(words_score, [text], threat, threshold=0.0, batch_size=3)[0] for text in reversed(TEXTS)]
    assert together == alone[::-1]
    other = search_texts(words_score, TEXTS, TextPart(options=5, queries=150, seed=6), threshold=0.0)
    assert [r.text for r in other] != [r.text for r in together]


def test_banned_words_are_removed_even_where_the_model_sees_nothing() -> None:
    threat = TextPart(("leetspeak", "zero_width"), banned=("dog",))
    results = search_texts(lambda texts: [0.1] * len(texts), TEXTS, threat, threshold=0.5)
    assert [result.outcome for result in results] == ["broken", "broken", "missed"]
    assert all(count_banned(result.text, ["dog"]) == 0 for result in results)
    only_invisible = search_texts(keyword, TEXTS[:1], TextPart(("zero_width",), banned=("dog",)), threshold=0.5)
    assert only_invisible[0].outcome == "held"


def _fickle() -> Callable[[list[str]], list[float]]:
    seen: set[str] = set()

    def score(texts: list[str]) -> list[float]:
        found = [0.9 if text in seen or text == TEXTS[0] else 0.1 for text in texts]
        seen.update(texts)
        return found

    return score


def test_a_success_that_a_fresh_pass_does_not_confirm_is_refuted() -> None:
    results = search_texts(_fickle(), TEXTS[:1], TextPart(), threshold=0.5)
    assert results[0].outcome == "refuted"
    assert results[0].score_after == 0.9
    assert success_rate(results) == 0.0


def test_a_model_that_sees_more_than_the_text_is_told_which_item_it_is() -> None:
    guarded = [True, False, True]

    def score(texts: list[str], items: list[int]) -> list[float]:
        return [0.9 if guarded[item] else one for one, item in zip(keyword(texts), items, strict=True)]

    results = attack_texts(score, [TEXTS[0]] * 3, TextPart(), threshold=0.5)
    assert [result.outcome for result in results] == ["held", "broken", "held"]


@pytest.mark.parametrize("text", ["", "   ", "?", "\u200b", "漢字", "\ud800"])
def test_a_text_without_letters_is_no_trouble(text: str) -> None:
    result = search_texts(lambda texts: [0.9] * len(texts), [text], TextPart(), threshold=0.5)[0]
    assert result.outcome == "held"
    assert result.text == text


@pytest.mark.parametrize("bad", [[math.nan], [math.inf], [0.1, 0.2], [[0.1, 0.2]]])
def test_scores_that_are_none_are_refused(bad: list[float]) -> None:
    with pytest.raises(BadInputError, match=r"NaN or infinite|one score per text"):
        search_texts(lambda texts: bad, TEXTS[:1], TextPart(), threshold=0.5)


def test_attacks_without_variants_are_refused() -> None:
    with pytest.raises(BadInputError, match="synonyms"):
        search_texts(keyword, TEXTS, TextPart(("synonyms",)), threshold=0.5)
