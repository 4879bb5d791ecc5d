"""What the judges of one model and of a panel share: one verdict from parts, and what must not stay unseen."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.contract.card import ModelCard
from zoo.contract.policy import AnyPolicy, PanelPolicy, Policy, Pool
from zoo.contract.verdict import Cause, Decision, Place, Status, Unseen, Verdict
from zoo.errors import BadArgumentError

log = logging.getLogger("zoo.judging.base")

Scores = NDArray[np.floating]
#: What no model looked at of an item, by cause; None where that is not known.
Seen: TypeAlias = dict[Cause, Unseen] | None


class BaseJudge(ABC):
    """The part that the judges of one model and of a panel share.

    `outputs` are the N names that the model scores, in order. `threshold` is the one threshold on `unsafe_score`,
    None if there are several. `zero_shot_policies` are the policies whose phrases are embedded, in the order of
    `card.bank_names`. `score_names` are the keys of a verdict's scores.
    """

    policy: AnyPolicy
    outputs: tuple[str, ...]
    threshold: float | None
    zero_shot_policies: list[Policy]
    score_names: tuple[str, ...]

    def __init__(self, card: ModelCard, policy: AnyPolicy) -> None:
        self.card, self.policy, self.policy_id = card, policy, policy.id

    def verdicts(
        self,
        scores: Scores,
        sources: Sequence[str] | None = None,
        unseen: Sequence[Seen] | None = None,
        places: Sequence[Sequence[Place]] | None = None,
    ) -> list[Verdict]:
        """Judge output scores `[R, N]`; a row that is not `valid` is not judged.

        Each row is an item or, with `places`, a part of one: item i has `len(places[i])` rows, and the policy's `pool`
        says how they make one verdict. `sources` name the items, `unseen` says what no model looked at, None where that
        is not known. Raises BadInputError for another shape.
        """
        starts = list(range(len(scores) + 1)) if places is None else [0, *accumulate(len(parts) for parts in places)]
        count = len(starts) - 1
        names, gaps = sources or [""] * count, unseen or [None] * count
        if places is None or len(scores) == count:
            return self._judge(scores, names, gaps)
        scores, rows = self.pooled(scores, starts[:-1], self.policy.pool)
        answers = self._judge(scores, names, gaps)
        return [
            self._placed(answer, [parts[row - start] for row in chosen]) if len(parts) > 1 and chosen else answer
            for answer, chosen, start, parts in zip(answers, rows.tolist(), starts, places, strict=False)
        ]

    @abstractmethod
    def category_scores(self, scores: Scores) -> NDArray[np.float64]:
        """Pool output scores `[R, N]` to category scores `[R, C]`."""

    @abstractmethod
    def pooled(self, scores: Scores, starts: Sequence[int], pool: Pool) -> tuple[Scores, NDArray[np.int_]]:
        """Output scores `[B, N]` of items whose rows begin at these, and the rows that gave them, `[B, H]`.

        H is 1, the number of a panel's heads, or 0 where all rows count alike.
        """

    @abstractmethod
    def _placed(self, verdict: Verdict, places: Sequence[Place]) -> Verdict:
        """The verdict with the places that gave its scores, those of `pooled`."""

    @abstractmethod
    def valid(self, scores: Scores) -> NDArray[np.bool_]:
        """Which rows `[B]` of output scores `[B, N]` are probabilities: within [0, 1], and a softmax adds up to 1."""

    def unjudged(self, status: Status, detail: str, source: str = "") -> Verdict:
        """The verdict of an item that cannot be judged: decision `unknown`, no scores."""
        return Verdict(status, "unknown", None, {}, self.policy_id, self.card.name, source, detail=detail)

    def _check(self, scores: Scores) -> None:
        if scores.ndim != 2 or scores.shape[1] != len(self.outputs):
            raise BadArgumentError(f"scores must be [B, {len(self.outputs)}], got {list(scores.shape)}")

    @abstractmethod
    def _judge(self, scores: Scores, sources: Sequence[str], unseen: Sequence[Seen]) -> list[Verdict]:
        """Verdicts of the rows of output scores, in order."""

    def _hold(
        self, decision: Decision, category: str | None, unseen: Seen
    ) -> tuple[Decision, str | None, dict[Cause, Unseen] | None, str]:
        """Decision, category, what is unseen and a detail: nothing is safe of which too much is unseen."""
        if not unseen:
            return decision, category, None if unseen is None else {}, ""
        weighed = self.policy.weigh(unseen)
        beyond = [f"{cause} {one}" for cause, one in weighed.items() if not one.tolerated]
        if not beyond or decision != "safe":
            return decision, category, weighed, ""
        return "review", None, weighed, f"not looked at: {', '.join(beyond)}"


def warn_of_views(card: ModelCard, policy: AnyPolicy) -> None:
    """Warn of thresholds that were found with other views of pictures than the policy has, or with no one knows which.

    The highest score of several views is above a threshold more often than that of one.
    """
    if card.image is None:
        return
    policies = [entry.policy for entry in policy.heads] if isinstance(policy, PanelPolicy) else [policy]
    for category in (category for one in policies for category in one.categories):
        point = category.threshold.operating_point if category.threshold else None
        one_view = policy.views not in ("auto", "tiles")
        if point is None or point.views == policy.views or (not point.views and one_view):
            continue
        log.warning(
            'policy "%s": the threshold of "%s" was found with %s, and pictures are judged with `views: %s`: its %s '
            "need not hold; find it again, and say so in `views:` of its operating point",
            *(policy.name, category.name, f"`views: {point.views}`" if point.views else "views that it does not say"),
            *(policy.views, point.metric),
        )
