"""All attacks of a text threat model, one after the other, each on the texts that held so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from zoo.adversary.image.target import evaluation_mode
from zoo.adversary.text.edits import Variants
from zoo.adversary.text.gradient import substitute_tokens
from zoo.adversary.text.search import search_texts
from zoo.adversary.text.target import ItemScore, TextModel, TextResult
from zoo.adversary.threat import GRADIENT_ATTACKS, TextPart
from zoo.errors import BadArgumentError


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
    attacked set, by default 0, 1, ...) to scores. Raises BadInputError if an attack lacks what it needs.
    """
    places = list(range(len(texts))) if items is None else list(items)
    how: dict[str, Any] = {"threat": threat, "threshold": threshold, "batch_size": batch_size, "progress": progress}
    plan = _plan(model, threat, synonyms, how)
    best: dict[int, TextResult] = {}
    with evaluation_mode(*(model.modules if isinstance(model, TextModel) else ())):
        for attack in plan:
            left = [n for n in range(len(texts)) if n not in best or best[n].outcome in ("held", "refuted")]
            if left:
                results = attack([texts[n] for n in left], items=[places[n] for n in left])
                best |= {n: _joined(best.get(n), result) for n, result in zip(left, results, strict=True)}
    return [best[n] for n in range(len(texts))]


def _plan(
    model: TextModel | ItemScore, threat: TextPart, synonyms: Variants | None, how: dict[str, Any]
) -> list[Callable[..., list[TextResult]]]:
    """The attacks of the threat in their order, each a function of texts and their `items`."""
    search = partial(search_texts, model.score if isinstance(model, TextModel) else model, **how)
    plan: list[Callable[..., list[TextResult]]] = [search] if threat.kinds else []
    if "synonyms" in threat.attacks:
        if synonyms is None:
            raise BadArgumentError('the attack "synonyms" needs the neighbours of words: give `synonyms`')
        plan.append(partial(search, variants=synonyms))
    for method in GRADIENT_ATTACKS:
        if method in threat.attacks:
            if not isinstance(model, TextModel):
                raise BadArgumentError(f"the attack `{method}` needs a gradient: give the model as a TextModel")
            plan.append(partial(substitute_tokens, model, method=method, **how))
    return plan


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
