"""What an attack on a text found, and the check of every claimed success on a fresh pass."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from zoo.adversary.text.budget import count_banned
from zoo.adversary.threat import TextPart
from zoo.errors import BadArgumentError, BadDataError

#: Texts to one number each, `[B]`: how sure the model is of what the attacker wants to hide.
Score: TypeAlias = Callable[[list[str]], Any]
#: The same, with the place of each text's item in the attacked set: for a model that also sees the item's image.
ItemScore: TypeAlias = Callable[[list[str], list[int]], Any]

#: `missed`: below the threshold before the attack. `broken`: by the attack, confirmed. `held`: the attack failed.
#: `refuted`: the attack claimed a success that a fresh pass did not confirm; it counts as no success.
Outcome = Literal["missed", "broken", "held", "refuted"]


@dataclass(frozen=True)
class TextResult:
    """One attacked text: what it became, the model's score of it before and after, and what that took.

    `text` is the best that was found, also where that was not enough. `edits` counts by the budget, `queries` the texts
    that the model scored, `unrealisable` the token sequences thrown away because no text is encoded as them.
    `obfuscated`: the gradient was zero everywhere, so the attack went on without one. `exchanged`: found by an attack
    that exchanges words, which must leave the protected ones, and not by one on characters.
    """

    original: str
    text: str
    outcome: Outcome
    score_before: float
    score_after: float
    edits: int
    queries: int
    unrealisable: int = 0
    obfuscated: bool = False
    exchanged: bool = False


def checked_scores(scores: Any, count: int) -> NDArray[np.float64]:
    """The scores as an array `[count]`. Raises BadInputError for another shape, and for what is no finite number."""
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu().float()
    found = np.asarray(scores, dtype=np.float64)
    if found.shape != (count,):
        raise BadArgumentError(f"the attacked model must give one score per text, [{count}], got {list(found.shape)}")
    if not np.isfinite(found).all():
        raise BadDataError("the attacked model gave a score that is NaN or infinite: nothing was judged")
    return found


def score_all(score: ItemScore, texts: Sequence[str], items: Sequence[int], batch_size: int) -> NDArray[np.float64]:
    """Scores `[N]` of texts, asked for in batches."""
    parts = []
    for start in range(0, len(texts), batch_size):
        part, owners = list(texts[start : start + batch_size]), list(items[start : start + batch_size])
        parts.append(checked_scores(score(part, owners), len(part)))
    return np.concatenate(parts) if parts else np.zeros(0)


def confirmed(
    results: Sequence[TextResult],
    score: ItemScore,
    threat: TextPart,
    threshold: float,
    batch_size: int,
) -> list[TextResult]:
    """Score every found text again, count its edits from the original, and refute the claims that do not hold."""
    scores = score_all(score, [result.text for result in results], range(len(results)), batch_size)
    found = []
    for result, after in zip(results, scores.tolist(), strict=True):
        permitted = threat.permits(result.original, result.text, exchanged=result.exchanged)
        permitted &= not count_banned(result.text, threat.banned)
        outcome = result.outcome
        if outcome == "broken" and not (after <= threshold and permitted):
            outcome = "refuted"
        edits = threat.budget.edits(result.original, result.text)
        found.append(dataclasses.replace(result, outcome=outcome, score_after=after, edits=edits))
    return found


def success_rate(results: Sequence[TextResult]) -> float | None:
    """The share broken among the texts that the model judged rightly before; None where it judged none so."""
    attacked = [result for result in results if result.outcome != "missed"]
    return sum(result.outcome == "broken" for result in attacked) / len(attacked) if attacked else None


def summary(results: Sequence[TextResult]) -> dict[str, Any]:
    """The figures of an attack as plain data: outcomes, success rate, means over the broken texts, costs."""
    broken = [result for result in results if result.outcome == "broken"]
    counts = Counter(result.outcome for result in results)
    return {
        "texts": len(results),
        **{outcome: counts[outcome] for outcome in get_args(Outcome)},
        "success_rate": success_rate(results),
        "mean_edits": sum(result.edits for result in broken) / len(broken) if broken else None,
        "queries": sum(result.queries for result in results),
        "unrealisable": sum(result.unrealisable for result in results),
        "obfuscated": any(result.obfuscated for result in results),
    }
