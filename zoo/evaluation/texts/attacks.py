"""Texts under attack: random edits that know nothing of the ranker, and a search that asks it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.adversary.text.edits import KINDS, perturb
from zoo.adversary.text.search import search_texts
from zoo.adversary.text.threat import TextThreat
from zoo.evaluation.texts.rankers import Ranker
from zoo.evaluation.texts.rows import UNKNOWN, YES, TextRows

#: Below every logit: the search never calls it a success, and goes on while the score falls.
_NEVER = -1e9


def edited(texts: Sequence[str], kind: str, threat: TextThreat) -> list[str]:
    """Each text after one random edit of this kind that spends the budget; the same for equal seeds."""
    return [perturb(text, KINDS[kind], threat.budget, threat.seed) for text in texts]


def sample_positives(rows: TextRows, count: int, seed: int) -> NDArray[np.bool_]:
    """Which texts are searched for each category, `[N, L]`: `count` of its positives, or all where there are fewer."""
    chosen = np.zeros(rows.labels.shape, dtype=bool)
    for column in range(rows.labels.shape[1]):
        positives = np.flatnonzero(rows.labels[:, column] == YES)
        drawn = np.random.default_rng([seed, column]).permutation(positives)[:count]
        chosen[drawn, column] = True
    return chosen


def only_searched(labels: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The labels with the positives that were not searched left out: what is compared before and after the search."""
    return np.where((labels == YES) & ~chosen, UNKNOWN, labels)


def searched(
    ranker: Ranker,
    rows: TextRows,
    clean: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    threat: TextThreat,
    progress: bool = False,
) -> tuple[NDArray[np.float64], int]:
    """The logits `[N, L]` after a search for the lowest of each chosen one, and how many texts were scored for it.

    The search (`search_texts`) knows the ranker's logits of the category and stops when nothing lowers them further, or
    the budget or the queries are spent. What is not chosen keeps its `clean` logits.
    """
    found, queries = clean.copy(), 0
    for column in range(chosen.shape[1]):
        places = np.flatnonzero(chosen[:, column])
        if not len(places):
            continue

        def score(texts: list[str], column: int = column) -> NDArray[np.float64]:
            return ranker.logits(texts)[:, column]

        texts = [rows.texts[place] for place in places]
        results = search_texts(score, texts, threat, threshold=_NEVER, progress=progress)
        # A search that found nothing lower keeps the text as it was.
        found[places, column] = [min(result.score_before, result.score_after) for result in results]
        queries += sum(result.queries for result in results)
    return found, queries
