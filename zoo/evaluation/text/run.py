"""Rank the texts of a manifest by a release and by a baseline, clean and under attack, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.adversary.text.attack import attack_texts
from zoo.adversary.text.edits import KINDS, character_edits, perturb
from zoo.adversary.threat import TextPart
from zoo.errors import BadArgumentError, BadDataError
from zoo.evaluation.labelling import limited
from zoo.evaluation.text.rankers import (
    BASELINE,
    NO,
    UNKNOWN,
    YES,
    FrozenBaseline,
    Ranker,
    ReleaseRanker,
    TextRows,
    read_text_rows,
    style_tests,
)
from zoo.evaluation.text.report import (
    CategoryCounts,
    Changed,
    Condition,
    PairedFigures,
    Scored,
    TextLatency,
    TextReport,
)
from zoo.files.held import sha256
from zoo.files.writing import WEIGHTS
from zoo.metrics import Draws
from zoo.release.store import load_scorer

#: Below every logit: the search never succeeds, so it continues while the score falls.
_NEVER = -1e9
#: How many texts are judged before the first that is timed.
WARM = 5


def edited(texts: Sequence[str], kind: str, threat: TextPart) -> list[str]:
    """Each text after one random edit of this kind that spends the budget; the same for equal seeds."""
    return [perturb(text, KINDS[kind], threat.budget, threat.seed) for text in texts]


def sample_positives(rows: TextRows, count: int, seed: int) -> NDArray[np.bool_]:
    """Which texts are searched for each category, `[N, L]`: `count` of its positives, or all if it has fewer."""
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
    threat: TextPart,
    progress: bool = False,
) -> tuple[NDArray[np.float64], int]:
    """The logits `[N, L]` after a search for the lowest of each chosen one, and how many texts were scored for it.

    The search (`attack_texts`) knows the ranker's logits of the category and stops when nothing lowers them further, or
    the budget or the queries are spent. What is not chosen keeps its `clean` logits.
    """
    logits, queries = clean.copy(), 0
    for column in range(chosen.shape[1]):
        places = np.flatnonzero(chosen[:, column])

        def score(texts: list[str], items: list[int], column: int = column) -> NDArray[np.float64]:
            return ranker.logits(texts)[:, column]

        texts = [rows.texts[place] for place in places]
        results = attack_texts(score, texts, threat, threshold=_NEVER, progress=progress)
        # A search that found nothing lower keeps the text as it was.
        logits[places, column] = [min(result.score_before, result.score_after) for result in results]
        queries += sum(result.queries for result in results)
    return logits, queries


@dataclass(frozen=True)
class TextOptions:
    """Options. `attacks` are kinds of random edits; `search` positives of each category are searched.

    `limit` draws that many texts by `seed`. Latency is that of the bundle `latency_of`, or else of the release.
    """

    split: str = "test"
    attacks: tuple[str, ...] = tuple(KINDS)
    search: int = 0
    queries: int = 200
    limit: int | None = None
    seed: int = 0
    draws: int = 1000
    latency_of: str | None = None
    latency: int = 200
    progress: bool = False
    command: str = ""
    say: Callable[[str], None] = field(default=print)


def evaluate_texts(model: str, data: Path, baseline: str | None, options: TextOptions) -> TextReport:
    """Measure how a release, and a baseline beside it, rank the texts of each category; see `TextReport`.

    Raises BadInputError for a model that does not judge texts alone, a split without texts, and as the parts do.
    """
    begin = time.perf_counter()
    character_edits(options.attacks)  # refuses an unknown kind by name
    if baseline is not None and not baseline.startswith(BASELINE):
        raise BadArgumentError(f'baseline "{baseline}": must be {BASELINE}DIRECTORY or {BASELINE}HUB-ID')
    ranker = ReleaseRanker(model)
    by_split = read_text_rows(data, ranker.labels, ranker.model.card, options.say)
    if options.split not in by_split:
        raise BadDataError(f'{data}: no texts of the split "{options.split}", there are {", ".join(sorted(by_split))}')
    whole = by_split[options.split]
    rows = whole.take(limited(range(len(whole)), options.limit, options.seed))
    ranker.columns = [c for c in ranker.columns if {YES, NO} <= set(rows.labels[:, c].tolist())]
    categories = [ranker.labels[column] for column in ranker.columns]
    if not categories:
        raise BadDataError(f"{data}, {options.split}: no category has texts of both kinds")
    if left_out := [name for name in ranker.labels if name not in categories]:
        options.say(f"{data}, {options.split}: no figures, as its texts are not of both kinds: {', '.join(left_out)}")
    style = style_tests(whole, ranker.labels)
    by_split = {split: part.of(ranker.columns) for split, part in by_split.items()}
    rows = rows.of(ranker.columns)
    fitted = None
    if baseline is not None:
        options.say("fitting the baseline")
        fitted = FrozenBaseline(baseline.removeprefix(BASELINE), by_split, categories, options.progress)
    threat = TextPart(attacks=options.attacks or tuple(KINDS), queries=options.queries, seed=options.seed)
    rankers: list[Ranker] = [ranker, *([fitted] if fitted else [])]
    figures = PairedFigures(categories, style, Draws(range(len(rows)), seed=options.seed, draws=options.draws).counts)
    return TextReport(
        model=ranker.name,
        source=model,
        weights_sha256=ranker.model.card.files.get(WEIGHTS, ""),
        baseline=fitted.name if fitted else "",
        strengths=fitted.strengths if fitted else {},
        data=data.name,
        data_sha256=sha256(data),
        split=options.split,
        texts=len(rows),
        categories=tuple(_category(rows, column, name, style) for column, name in enumerate(categories)),
        conditions=tuple(_conditions(rankers, rows, figures, threat, options)),
        latency=_latency(options.latency_of or model, rankers[1:], rows, options),
        threat=threat.to_dict(),
        seed=options.seed,
        command=options.command,
        seconds=time.perf_counter() - begin,
    )


def _conditions(
    rankers: list[Ranker], rows: TextRows, figures: PairedFigures, threat: TextPart, options: TextOptions
) -> list[Condition]:
    options.say("ranking the texts as they are")
    clean = [Scored(ranker.name, ranker.logits(rows.texts), rows.labels) for ranker in rankers]
    conditions = [figures.condition("clean", "none", clean)]
    for kind in options.attacks:
        options.say(f"ranking them after {kind}")
        texts = edited(rows.texts, kind, threat)
        changed = [ranker.logits(texts) for ranker in rankers]
        which: tuple[Changed, ...] = ("positives", "all")
        for name in which:
            # Of every category its own positives: what an attacker wants to hide from that category.
            hidden = (rows.labels == YES) | (name == "all")
            pairs = zip(clean, changed, strict=True)
            attacked = [one._replace(logits=np.where(hidden, new, one.logits)) for one, new in pairs]
            conditions.append(figures.condition(kind, name, attacked, clean))
    if options.search:
        chosen = sample_positives(rows, options.search, options.seed)
        labels = only_searched(rows.labels, chosen)
        before, after = [one._replace(labels=labels) for one in clean], []
        for ranker, one in zip(rankers, before, strict=True):
            options.say(f"searching against {ranker.name}")
            logits, queries = searched(ranker, rows, one.logits, chosen, threat, options.progress)
            after.append(one._replace(logits=logits, queries=queries))
        conditions.append(figures.condition("before the search", "none", before))
        conditions.append(figures.condition("search", "sample", after, before))
    return conditions


def _category(rows: TextRows, column: int, name: str, style: frozenset[str]) -> CategoryCounts:
    labels = rows.labels[:, column]
    named = tuple(sorted(rows.sources_of(labels != UNKNOWN)))
    return CategoryCounts(name, int((labels == YES).sum()), int((labels == NO).sum()), named, name in style)


def _latency(model: str, baselines: Sequence[Ranker], rows: TextRows, options: TextOptions) -> tuple[TextLatency, ...]:
    """Milliseconds from a text to its answer at batch 1, model and baseline in turn on the same texts."""
    if not options.latency:
        return ()
    options.say("timing")
    places = np.random.default_rng(options.seed).permutation(len(rows))
    texts = [rows.texts[place] for place in np.resize(places, options.latency)]
    with load_scorer(model) as scorer:
        named: dict[str, Callable[[str], object]] = {model: lambda text: scorer.verdict(text=text)}
        named |= {one.name: lambda text, one=one: one.logits([text]) for one in baselines}  # type: ignore[misc]
        times: dict[str, list[float]] = {name: [] for name in named}
        for text in [*texts[:WARM], *texts]:
            for name, answer in named.items():
                start = time.perf_counter()
                answer(text)
                times[name].append(1000 * (time.perf_counter() - start))
    timed = {name: np.percentile(spent[-len(texts) :], [50, 90]) for name, spent in times.items()}
    return tuple(TextLatency(name, float(p50), float(p90), len(texts)) for name, (p50, p90) in timed.items())
