"""All attacks of a text threat model, one after the other, each on the texts that held so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from zoo.adversary.image.target import evaluation_mode
from zoo.adversary.text.edits import Variants, character_edits
from zoo.adversary.text.gradient import substitute_tokens
from zoo.adversary.text.search import search_texts
from zoo.adversary.text.target import Goal, Score, TextModel, TextResult
from zoo.adversary.threat import GRADIENT_ATTACKS, TextPart
from zoo.errors import BadArgumentError


def attack_texts(
    model: TextModel | Score,
    texts: Sequence[str],
    threat: TextPart,
    *,
    threshold: float,
    synonyms: Variants | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> list[TextResult]:
    """Look for texts within a threat model that the model no longer flags.

    A text is flagged when its score is **above** `threshold`, as in a policy. It is broken when it no longer is and no
    banned word is left. The character attacks of the threat are searched together; `synonyms` (see `Synonyms`),
    `hotflip` and `gcg` follow, each on what held so far; a text that nothing broke keeps the attempt of lowest score.
    Costs add up. The model is a `TextModel`, or for attacks without gradients any function of texts and their places
    in `texts` to scores. Raises BadInputError if an attack lacks what it needs, and for scores that are not finite.
    """
    if batch_size < 1:
        raise BadArgumentError(f"batch_size must be at least 1, got {batch_size}")
    goal = Goal(model.score if isinstance(model, TextModel) else model, threat, threshold, batch_size)
    plan = _plan(goal, model, synonyms)
    best: dict[int, TextResult] = {}
    with evaluation_mode(*(model.modules if isinstance(model, TextModel) else ())):
        for attack in plan:
            left = [n for n in range(len(texts)) if n not in best or best[n].outcome in ("held", "refuted")]
            if left:
                results = attack([texts[n] for n in left], left, progress=progress)
                best |= {n: _joined(best.get(n), result) for n, result in zip(left, results, strict=True)}
    return [best[n] for n in range(len(texts))]


def _plan(goal: Goal, model: TextModel | Score, synonyms: Variants | None) -> list[Callable[..., list[TextResult]]]:
    """The attacks of the threat in their order, each a function of texts and their places."""
    threat = goal.threat
    plan: list[Callable[..., list[TextResult]]] = []
    if threat.kinds:
        plan.append(partial(search_texts, goal, character_edits(threat.kinds), exchanged=False))
    if "synonyms" in threat.attacks:
        if synonyms is None:
            raise BadArgumentError('the attack "synonyms" needs the neighbours of words: give `synonyms`')
        plan.append(partial(search_texts, goal, synonyms, exchanged=True))
    for method in GRADIENT_ATTACKS:
        if method in threat.attacks:
            if not isinstance(model, TextModel):
                raise BadArgumentError(f"the attack `{method}` needs a gradient: give the model as a TextModel")
            plan.append(partial(substitute_tokens, goal, model, method))
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
