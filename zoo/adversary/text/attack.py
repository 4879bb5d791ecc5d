"""All attacks of a text threat model, one after the other, each on the texts that held so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from zoo.adversary.image.target import evaluation_mode
from zoo.adversary.text.edits import Variants
from zoo.adversary.text.gradient import substitute_tokens
from zoo.adversary.text.model import ItemScore, TextModel, TextResult
from zoo.adversary.text.search import search_items
from zoo.adversary.threat import GRADIENT_ATTACKS, TextPart
from zoo.errors import BadArgumentError

_Attack = Callable[[list[str], list[int]], list[TextResult]]


def attack_texts(
    model: TextModel | ItemScore,
    texts: Sequence[str],
    threat: TextPart,
    *,
    threshold: float,
    synonyms: Variants | None = None,
    items: Sequence[int] | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> list[TextResult]:
    """Look for texts within a threat model that the model no longer flags (score not **above** `threshold`).

    The character attacks of the threat are searched together; `synonyms` (see `Synonyms`), `hotflip` and `gcg` follow,
    each on what held so far; a text that nothing broke keeps the attempt of lowest score. Costs add up.
    The model is a `TextModel`, or for attacks without gradients any function of texts and their `items` (places in the
    attacked set, by default 0, 1, ...) to scores. Raises BadInputError where an attack lacks what it needs.
    """
    places = list(range(len(texts))) if items is None else list(items)
    found: dict[int, TextResult] = {}
    modules = model.modules if isinstance(model, TextModel) else ()
    with evaluation_mode(*modules):
        for attack in _plan(model, threat, threshold, synonyms, batch_size, progress):
            left = [n for n in range(len(texts)) if n not in found or found[n].outcome in ("held", "refuted")]
            if left:
                results = attack([texts[n] for n in left], [places[n] for n in left])
                found |= {n: _joined(found.get(n), result) for n, result in zip(left, results, strict=True)}
    return [found[n] for n in range(len(texts))]


def _plan(
    model: TextModel | ItemScore,
    threat: TextPart,
    threshold: float,
    synonyms: Variants | None,
    batch_size: int,
    progress: bool,
) -> list[_Attack]:
    score: ItemScore = model.score if isinstance(model, TextModel) else model

    def searching(variants: Variants | None) -> _Attack:
        def run(texts: list[str], places: list[int]) -> list[TextResult]:
            def of_items(part: list[str], owners: list[int]) -> object:
                return score(part, [places[owner] for owner in owners])

            return search_items(
                of_items,
                texts,
                threat,
                threshold=threshold,
                variants=variants,
                batch_size=batch_size,
                progress=progress,
            )

        return run

    plan: list[_Attack] = []
    if threat.kinds:
        plan.append(searching(None))
    if "synonyms" in threat.attacks:
        if synonyms is None:
            raise BadArgumentError('the attack "synonyms" needs the neighbours of words: give `synonyms`')
        plan.append(searching(synonyms))
    for method in GRADIENT_ATTACKS:
        if method in threat.attacks:
            if not isinstance(model, TextModel):
                raise BadArgumentError(f"the attack `{method}` needs a gradient: give the model as a TextModel")
            plan.append(_substituting(model, threat, method, threshold, batch_size, progress))
    return plan


def _substituting(
    model: TextModel, threat: TextPart, method: str, threshold: float, batch_size: int, progress: bool
) -> _Attack:
    def run(texts: list[str], places: list[int]) -> list[TextResult]:
        return substitute_tokens(
            model,
            texts,
            threat,
            "gcg" if method == "gcg" else "hotflip",
            threshold=threshold,
            items=places,
            batch_size=batch_size,
            progress=progress,
        )

    return run


def _joined(before: TextResult | None, now: TextResult) -> TextResult:
    """The better of two attempts at one text, with the costs of both."""
    if before is None:
        return now
    better = now if now.outcome == "broken" or now.score_after < before.score_after else before
    return dataclasses.replace(
        better,
        queries=before.queries + now.queries,
        unrealisable=before.unrealisable + now.unrealisable,
        obfuscated=before.obfuscated or now.obfuscated,
    )
