"""Black-box search for a readable change of a text that hides it from a model: greedy, by importance of words.

Words are tried in the order of how much the score falls without them, and of each word's variants the one is kept that
lowers the score most per edit (one in the place of each word), as DeepWordBug (Gao et al. 2018, arXiv 1801.04354) and
TextFooler (Jin et al. 2020, arXiv 1907.11932) do. Where all scores are equal, random changes are tried instead. The
model is any function of texts to scores, best of logits, which saturate nowhere; nothing else of it is used. A greedy
search may miss what a longer one would find: that it found nothing proves nothing.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from zoo.adversary.text.edits import (
    Variants,
    character_edits,
    count_banned,
    drawing,
    keeps_protected,
    perturb,
    split_words,
)
from zoo.adversary.text.model import ItemScore, Score, TextResult, confirmed, score_all
from zoo.adversary.threat import TextPart
from zoo.errors import BadArgumentError

#: Asks for the scores of texts, gets them, returns what it found.
_Search: TypeAlias = Generator[list[str], NDArray[np.float64], TextResult]


def search_texts(
    score: Score | ItemScore,
    texts: Sequence[str],
    threat: TextPart,
    *,
    threshold: float,
    variants: Variants | None = None,
    items: Sequence[int] | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> list[TextResult]:
    """Attack texts by the `variants` of their words, by default those of the threat's attacks on characters.

    Given `variants` count as other words, which leave the protected ones (see `TextPart`). A text is flagged when its
    score is **above** `threshold`, as in a policy. It is broken when it no longer is and no banned word is left. All
    searches run side by side, so that the model gets large batches, and each stops at its first success; successes are
    confirmed on a fresh pass. The result depends on threat, model and text only. A model that judges each text
    together with something else gets the places of both in the attacked set: give `items`, and an `ItemScore`.
    Raises BadInputError for scores that are not finite, and for a threat without attacks on characters or `variants`.
    """
    exchanged = variants is not None
    if variants is None:
        if not threat.kinds:
            raise BadArgumentError(f"the attacks {list(threat.attacks)} need their variants: give `variants`")
        variants = character_edits(threat.kinds)
    if batch_size < 1:
        raise BadArgumentError(f"batch_size must be at least 1, got {batch_size}")

    def scored(part: list[str], owners: list[int]) -> Any:
        return score(part) if items is None else score(part, [items[owner] for owner in owners])  # type: ignore[call-arg]

    kept = _keeping(variants, threat, exchanged)
    searches = [_greedy(text, kept, threat, threshold) for text in texts]
    found = _side_by_side(searches, scored, batch_size, progress)
    found = [dataclasses.replace(result, exchanged=exchanged) for result in found]
    return confirmed(found, scored, threat, threshold, batch_size)


def _keeping(variants: Variants, threat: TextPart, exchanged: bool) -> Variants:
    """The variants of each word that leave the protected words."""
    if not threat.protected:
        return variants

    def kept(word: str) -> list[str]:
        found = variants(word)
        return [one for one in found if keeps_protected(word, one, threat.protected, exchanged=exchanged)]

    return kept


def _side_by_side(searches: list[_Search], score: ItemScore, batch_size: int, progress: bool) -> list[TextResult]:
    """Run all searches to their end, with the texts that they wait for in common batches."""
    found: dict[int, TextResult] = {}
    waiting = {item: next(search) for item, search in enumerate(searches)}

    def ended() -> Generator[int, None, None]:
        while waiting:
            owners = [item for item, texts in waiting.items() for _ in texts]
            scores = score_all(score, [text for texts in waiting.values() for text in texts], owners, batch_size)
            start = 0
            for item, texts in list(waiting.items()):
                part, start = scores[start : start + len(texts)], start + len(texts)
                try:
                    waiting[item] = searches[item].send(part)
                except StopIteration as stop:
                    found[item] = stop.value
                    del waiting[item]
                    yield item

    for _ in track(ended(), "attacking texts", total=len(searches), disable=not progress, transient=True):
        pass
    return [found[item] for item in range(len(searches))]


@dataclass
class _State:
    """A text on its way: its words before and now, how many banned words are left, its score, the queries used."""

    words: list[str]
    now: list[str]
    banned: int
    score: float
    queries: int
    flat: bool = True  # whether every score so far was the same


def _greedy(text: str, variants: Variants, threat: TextPart, threshold: float) -> _Search:
    before = float((yield [text])[0])
    words = split_words(text)
    state = _State(words, list(words), count_banned(text, threat.banned), before, 1)

    def hidden() -> bool:
        return state.score <= threshold and not state.banned

    if hidden():
        return TextResult(text, text, "missed", before, before, 0, 1)
    rng = drawing(threat.seed, text)
    order = yield from _by_importance(state, threat)
    improved = True
    while improved and not hidden():
        improved = False
        for index in order:
            improved |= yield from _improve(state, index, variants, threat, threshold, rng)
            if hidden():
                break
    if words and state.flat and not hidden():
        yield from _at_random(state, variants, threat, threshold)
    found = "".join(state.now) if words else text
    return TextResult(text, found, "broken" if hidden() else "held", before, state.score, 0, state.queries)


def _by_importance(state: _State, threat: TextPart) -> Generator[list[str], NDArray[np.float64], list[int]]:
    """The places of the words, first the one without which the score is lowest; those not asked for last."""
    asked = list(range(len(state.words)))[: max(threat.queries - state.queries, 0) // 2]
    if not asked:
        return list(range(len(state.words)))
    scores = yield ["".join(state.words[:index] + state.words[index + 1 :]) for index in asked]
    state.queries += len(asked)
    state.flat &= bool((scores == state.score).all())
    ranked = [asked[place] for place in np.argsort(scores, kind="stable")]
    return ranked + list(range(len(asked), len(state.words)))


def _improve(
    state: _State,
    index: int,
    variants: Variants,
    threat: TextPart,
    threshold: float,
    rng: random.Random,
) -> Generator[list[str], NDArray[np.float64], bool]:
    """Put the best affordable variant in place of one word; whether there was a better one."""
    trials = _affordable(state, index, variants, threat)
    count = min(len(trials), threat.options, max(threat.queries - state.queries, 0))
    if not count:
        return False
    trials = [trials[place] for place in sorted(rng.sample(range(len(trials)), count))]
    spent = threat.budget.spent(state.words, state.now)
    scores = yield [trial.text for trial in trials]
    state.queries += count
    state.flat &= bool((scores == state.score).all())

    def worth(place: int) -> tuple[int, bool, float]:
        """Fewer banned words first, then a success, then how far the score falls for each edit that it takes."""
        trial, fall = trials[place], float(state.score - scores[place])
        hidden = trial.banned == 0 and bool(scores[place] <= threshold)
        return -trial.banned, hidden, -trial.cost if hidden else fall / max(trial.cost - spent, 1)

    best = max(range(count), key=worth)
    if trials[best].banned == state.banned and scores[best] >= state.score:
        return False
    state.now, state.banned, state.score = trials[best].words, trials[best].banned, float(scores[best])
    return True


def _at_random(
    state: _State, variants: Variants, threat: TextPart, threshold: float
) -> Generator[list[str], NDArray[np.float64], None]:
    """Spend the other queries on random changes: a model that answers yes or no shows no way for two words at once."""
    original = "".join(state.words)
    while count := min(threat.options, threat.queries - state.queries):
        tries = [
            perturb(original, variants, threat.budget, threat.seed + state.queries + place) for place in range(count)
        ]
        scores = yield tries
        state.queries += count
        for text, score in zip(tries, scores.tolist(), strict=True):
            banned = count_banned(text, threat.banned)
            if (banned, score) < (state.banned, state.score):
                state.now, state.banned, state.score = [text], banned, score
        if state.score <= threshold and not state.banned:
            return


class _Trial(NamedTuple):
    """A candidate: its words, its text, its edits from the original, its banned words."""

    words: list[str]
    text: str
    cost: int
    banned: int


def _affordable(state: _State, index: int, variants: Variants, threat: TextPart) -> list[_Trial]:
    """The candidates with another variant of one word that keep to the budget and bring in no banned word."""
    allowed = threat.budget.allowed("".join(state.words))
    found = []
    # Variants of the original word, and itself again: variants of variants would soon be unreadable.
    for option in (*variants(state.words[index]), state.words[index]):
        if option == state.now[index]:
            continue
        words = [*state.now[:index], option, *state.now[index + 1 :]]
        cost, text = threat.budget.spent(state.words, words), "".join(words)
        if cost <= allowed:
            found.append(_Trial(words, text, cost, count_banned(text, threat.banned)))
    return [trial for trial in found if trial.banned <= state.banned]
