"""Black-box search for a readable change of a text that hides it from a model: greedy, by importance of words.

As in DeepWordBug (Gao et al. 2018, arXiv 1801.04354) and TextFooler (Jin et al. 2020, arXiv 1907.11932), words are
tried in the order of how much the score falls without them. Of the variants of each word the search keeps the one that
lowers the score most per edit. If all scores are equal, it tries random changes instead. The model is any function of
texts to scores; logits suit best, because they do not saturate. A greedy search may miss what a longer one would find:
a search that finds nothing proves nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from zoo.adversary.text.edits import Variants, count_banned, drawing, keeps_protected, perturb, split_words
from zoo.adversary.text.target import Goal, Outcome, TextResult

T = TypeVar("T")
#: Asks for the scores of texts, gets them, and returns a value at its end.
_Asking: TypeAlias = Generator[list[str], NDArray[np.float64], T]
_Search: TypeAlias = _Asking[TextResult]


def search_texts(
    goal: Goal, variants: Variants, texts: Sequence[str], items: Sequence[int], *, exchanged: bool, progress: bool
) -> list[TextResult]:
    """Attack texts, the `items` of the attacked set, by the `variants` of their words.

    `exchanged`: the variants are other words, which leave the protected ones (see `TextPart`). All searches run side by
    side, so that the model gets large batches, and each stops at its first success; successes are confirmed on a fresh
    pass. The result depends on threat, model and text only.
    """

    def kept(word: str) -> list[str]:
        protected = goal.threat.protected
        return [one for one in variants(word) if keeps_protected(word, one, protected, exchanged=exchanged)]

    ended = _side_by_side(goal, [_Greedy(goal, text, kept).run() for text in texts], items)
    found = dict(track(ended, "attacking texts", total=len(texts), disable=not progress, transient=True))
    return goal.confirmed([dataclasses.replace(found[n], exchanged=exchanged) for n in range(len(texts))], items)


def _side_by_side(
    goal: Goal, searches: list[_Search], items: Sequence[int]
) -> Generator[tuple[int, TextResult], None, None]:
    """Run all searches to their end, with the texts that they wait for in common batches; their results by number."""
    waiting = {number: next(search) for number, search in enumerate(searches)}
    while waiting:
        asked = [(text, items[number]) for number, texts in waiting.items() for text in texts]
        scores = goal.scores([text for text, _ in asked], [item for _, item in asked])
        start = 0
        for number, texts in list(waiting.items()):
            part, start = scores[start : start + len(texts)], start + len(texts)
            try:
                waiting[number] = searches[number].send(part)
            except StopIteration as stop:
                del waiting[number]
                yield number, stop.value


class _Trial(NamedTuple):
    """A candidate: its words, its text, its edits from the original, its banned words."""

    words: list[str]
    text: str
    cost: int
    banned: int


class _Greedy:
    """The search for one text: its words before and now, how many banned words are left, its score, the queries."""

    def __init__(self, goal: Goal, text: str, variants: Variants) -> None:
        self.goal, self.threat, self.text, self.variants = goal, goal.threat, text, variants
        self.words = split_words(text)
        self.now, self.score, self.queries = list(self.words), 0.0, 1
        self.banned = count_banned(text, self.threat.banned)
        self.flat = True  # whether every score so far was the same
        self.random = drawing(self.threat.seed, text)

    def run(self) -> _Search:
        before = self.score = float((yield [self.text])[0])
        if self._hidden():
            return TextResult(self.text, self.text, "missed", before, before, 0, 1)
        order = yield from self._by_importance()
        improved = True
        while improved and not self._hidden():
            improved = False
            for index in order:
                improved |= yield from self._improve(index)
                if self._hidden():
                    break
        if self.words and self.flat and not self._hidden():
            yield from self._at_random()
        changed = "".join(self.now) if self.words else self.text
        outcome: Outcome = "broken" if self._hidden() else "held"
        return TextResult(self.text, changed, outcome, before, self.score, 0, self.queries)

    def _hidden(self) -> bool:
        return self.goal.reached(self.banned, self.score)

    def _ask(self, texts: list[str]) -> _Asking[NDArray[np.float64]]:
        scores = yield texts
        self.queries += len(texts)
        self.flat &= bool((scores == self.score).all())
        return scores

    def _by_importance(self) -> _Asking[list[int]]:
        """The places of the words, first the one without which the score is lowest; those not asked for last."""
        asked = list(range(len(self.words)))[: max(self.threat.queries - self.queries, 0) // 2]
        if not asked:
            return list(range(len(self.words)))
        scores = yield from self._ask(["".join(self.words[:index] + self.words[index + 1 :]) for index in asked])
        ranked = [asked[place] for place in np.argsort(scores, kind="stable")]
        return ranked + list(range(len(asked), len(self.words)))

    def _improve(self, index: int) -> _Asking[bool]:
        """Put the best affordable variant in place of one word; whether there was a better one."""
        trials = self._affordable(index)
        count = min(len(trials), self.threat.options, max(self.threat.queries - self.queries, 0))
        if not count:
            return False
        trials = [trials[place] for place in sorted(self.random.sample(range(len(trials)), count))]
        spent = self.threat.budget.spent(self.words, self.now)
        scores = yield from self._ask([trial.text for trial in trials])

        def worth(place: int) -> tuple[int, bool, float]:
            """Fewer banned words first, then a success, then how far the score falls for each edit that it takes."""
            trial, fall = trials[place], float(self.score - scores[place])
            hidden = bool(self.goal.reached(trial.banned, scores[place]))
            return -trial.banned, hidden, -trial.cost if hidden else fall / max(trial.cost - spent, 1)

        best = max(range(count), key=worth)
        if trials[best].banned == self.banned and scores[best] >= self.score:
            return False
        self.now, self.banned, self.score = trials[best].words, trials[best].banned, float(scores[best])
        return True

    def _affordable(self, index: int) -> list[_Trial]:
        """The candidates with another variant of one word that keep to the budget and bring in no banned word."""
        allowed = self.threat.budget.allowed(self.text)
        trials = []
        # Variants of the original word, and itself again: variants of variants would soon be unreadable.
        for option in (*self.variants(self.words[index]), self.words[index]):
            if option == self.now[index]:
                continue
            words = [*self.now[:index], option, *self.now[index + 1 :]]
            cost, text = self.threat.budget.spent(self.words, words), "".join(words)
            if cost <= allowed:
                trials.append(_Trial(words, text, cost, count_banned(text, self.threat.banned)))
        return [trial for trial in trials if trial.banned <= self.banned]

    def _at_random(self) -> _Asking[None]:
        """Spend the other queries on random changes: a yes-or-no model shows no way that takes two words at once."""
        while count := min(self.threat.options, self.threat.queries - self.queries):
            seed = self.threat.seed + self.queries
            tries = [perturb(self.text, self.variants, self.threat.budget, seed + place) for place in range(count)]
            scores = yield from self._ask(tries)
            for text, score in zip(tries, scores.tolist(), strict=True):
                banned = count_banned(text, self.threat.banned)
                if (banned, score) < (self.banned, self.score):
                    self.now, self.banned, self.score = [text], banned, score
            if self._hidden():
                return
