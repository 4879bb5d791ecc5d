"""A panel judges: several heads on one image tower, each by its policy, and one verdict from all of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.contract.card import ModelCard
from zoo.contract.panel import AnyPolicy, PanelPolicy
from zoo.contract.policy import Policy
from zoo.contract.verdict import Decision, Verdict, unjudged
from zoo.errors import BadArgumentError, BadPolicyError, close_match
from zoo.judging.judge import Judge, Scores


def bind(card: ModelCard, policy: AnyPolicy) -> AnyJudge:
    """The judge of a model and a policy. Raises BadPolicyError when they do not fit together."""
    if isinstance(policy, PanelPolicy):
        return PanelJudge(card, policy)
    if card.task == "panel":
        raise BadPolicyError(
            f'policy "{policy.name}" is for one model, and {card.name} is a panel: it needs one policy for each head, '
            "under `heads:` (see its own policy.yaml)"
        )
    return Judge(card, policy)


#: A policy bound to a model, or the policies of a panel to its heads.
AnyJudge: TypeAlias = "Judge | PanelJudge"


class PanelJudge:
    """A panel policy bound to the heads of one panel; the same methods as `Judge`, over all heads' outputs in turn.

    Raises BadPolicyError where a head has no policy, a policy no head, or the two do not fit.
    """

    def __init__(self, card: ModelCard, policy: PanelPolicy) -> None:
        if card.task != "panel":
            raise BadPolicyError(f'policy "{policy.name}" has `heads:`, and {card.name} is no panel')
        self.card, self.policy = card, policy
        self.policy_id = policy.id
        policies, heads = {entry.head: entry.policy for entry in policy.heads}, card.heads
        for name in policies:
            if name not in heads:
                raise BadPolicyError(f'{card.name} has no head "{name}"' + close_match(name, heads))
        lacking = [name for name in heads if name not in policies]
        if lacking:
            raise BadPolicyError(f'policy "{policy.name}" says nothing of the heads {lacking}')
        self.judges = {name: Judge(head, policies[name]) for name, head in heads.items()}
        self.outputs = tuple(f"{name}: {out}" for name, judge in self.judges.items() for out in judge.outputs)
        self.threshold: float | None = None if policy.combine == "majority" else 0.5

    @property
    def zero_shot_policies(self) -> list[Policy]:
        """The policies whose phrases are embedded, in the order of `card.bank_names`."""
        return [policy for judge in self.judges.values() for policy in judge.zero_shot_policies]

    def category_scores(self, scores: Scores) -> NDArray[np.float64]:
        """Output scores `[B, N]` of all heads in turn to category scores `[B, C]` of all heads in turn."""
        if scores.ndim != 2 or scores.shape[1] != len(self.outputs):
            raise BadArgumentError(f"scores must be [B, {len(self.outputs)}], got {list(scores.shape)}")
        parts = self._split(scores, [len(judge.outputs) for judge in self.judges.values()])
        return np.concatenate([j.category_scores(p) for j, p in zip(self.judges.values(), parts, strict=True)], axis=1)

    def flags(self, category_scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which categories `[B, C]` of which head are flagged."""
        return np.concatenate([judge.flags(part) for judge, part in self._by_head(category_scores)], axis=1)

    def margins(self, category_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """How near each item `[B]` comes to a threshold of any head."""
        nearest: NDArray[np.float64] = np.min([j.margins(p) for j, p in self._by_head(category_scores)], axis=0)
        return nearest

    def unsafe_score(self, category_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """One score `[B]` to rank items by: the mean risk where the panel combines by `mean`, else the highest."""
        risks = np.stack([judge.risks(part) for judge, part in self._by_head(category_scores)], axis=1)
        combined: NDArray[np.float64] = risks.mean(axis=1) if self.policy.combine == "mean" else risks.max(axis=1)
        return combined

    def rank(self, verdict: Verdict) -> float | None:
        """The score that a verdict ranks by, as `unsafe_score`; None for what was not judged."""
        if verdict.status != "ok":
            return None
        risks = list(verdict.scores.values())
        return float(np.mean(risks)) if self.policy.combine == "mean" else max(risks)

    def verdicts(
        self, scores: Scores, sources: Sequence[str] | None = None, truncated: Sequence[bool] | None = None
    ) -> list[Verdict]:
        """Judge output scores `[B, N]`: each head by its own policy, then all together."""
        names = sources or [""] * len(scores)
        table = self.category_scores(scores)
        parts = self._split(scores, [len(judge.outputs) for judge in self.judges.values()])
        by_head = [judge.verdicts(part, names) for judge, part in zip(self.judges.values(), parts, strict=True)]
        risks = np.stack([judge.risks(part) for judge, part in self._by_head(table)], axis=1)
        rows = zip(zip(*by_head, strict=True), risks, names, strict=True)
        return [self._combine(dict(zip(self.judges, row, strict=True)), risk, name) for row, risk, name in rows]

    def unreadable(self, detail: str, source: str = "") -> Verdict:
        """The verdict of an item that could not be decoded."""
        return unjudged("unreadable", detail, policy=self.policy_id, model=self.card.name, source=source)

    def missing_input(self, detail: str, source: str = "") -> Verdict:
        """The verdict of an item that lacks an input that the panel needs."""
        return unjudged("missing_input", detail, policy=self.policy_id, model=self.card.name, source=source)

    def _combine(self, heads: dict[str, Verdict], risks: NDArray[np.float64], source: str) -> Verdict:
        broken = [name for name, verdict in heads.items() if verdict.status != "ok"]
        model, policy = self.card.name, self.policy_id
        if broken:  # one head without an answer could have been the one to flag it
            detail = f"{', '.join(broken)}: {heads[broken[0]].detail}"
            return Verdict("invalid_scores", "unknown", None, {}, policy, model, source, detail=detail, heads=heads)
        risk = {name: float(value) for name, value in zip(heads, risks, strict=True)}
        decision = self._decide(heads, risk)
        saying = [name for name in heads if heads[name].decision == decision] or list(heads)
        share = sum(verdict.decision != "safe" for verdict in heads.values()) / len(heads)
        return Verdict(
            "ok", decision, max(saying, key=lambda name: risk[name]), risk, policy, model, source,
            heads=heads, disagreement=1 - abs(2 * share - 1),
        )  # fmt: skip

    def _decide(self, heads: dict[str, Verdict], risk: dict[str, float]) -> Decision:
        decisions = [verdict.decision for verdict in heads.values()]
        unsafe, flagged = decisions.count("unsafe"), len(decisions) - decisions.count("safe")
        if self.policy.combine == "max":
            return heads[max(risk, key=lambda name: risk[name])].decision
        if self.policy.combine == "mean":
            above = sum(risk.values()) / len(risk) > 0.5
            return ("unsafe" if unsafe else "review") if above and flagged else "safe"
        needed = len(heads) // 2 + 1 if self.policy.combine == "majority" else 1
        return "unsafe" if unsafe >= needed else "review" if flagged >= needed else "safe"

    def _by_head(self, table: NDArray[np.float64]) -> list[tuple[Judge, NDArray[np.float64]]]:
        parts = self._split(table, [len(judge.policy.categories) for judge in self.judges.values()])
        return list(zip(self.judges.values(), parts, strict=True))

    @staticmethod
    def _split(columns: NDArray[Any], widths: list[int]) -> list[NDArray[Any]]:
        return np.split(columns, np.cumsum(widths)[:-1], axis=1)
