"""From a model's output scores to verdicts: the one place where a policy is applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.contract.card import ModelCard
from zoo.contract.policy import AnyPolicy, Category, PanelPolicy, Policy
from zoo.contract.verdict import Decision, Verdict, unjudged
from zoo.errors import BadArgumentError, BadPolicyError, close_match

Scores = NDArray[np.floating]


class Judge:
    """A policy bound to the outputs of one model.

    `outputs` are the N names that the model scores, in order: a zero-shot model's phrases as the policy lists
    them, or a classifier's labels as the card lists them. Raises BadPolicyError when they do not fit together.
    """

    def __init__(self, card: ModelCard, policy: Policy) -> None:
        self.card, self.policy = card, policy
        self.policy_id = policy.id
        zero_shot = card.task == "zero_shot"
        self.outputs = phrases(policy) if zero_shot else card.labels
        if not zero_shot and (policy.temperature != 1 or policy.pooling == "logsumexp"):
            raise BadPolicyError(
                f'policy "{policy.name}": temperature and pooling logsumexp are for the phrases of a zero-shot model, '
                f"and {card.name} is a classifier"
            )
        #: Which outputs make up each category, in the policy's order.
        self.members: list[list[int]] = []
        start = 0
        for category in policy.categories:
            if zero_shot:
                self.members.append(list(range(start, start + len(category.descriptors))))
                start += len(category.descriptors)
            else:
                self.members.append([card.labels.index(label) for label in labels_of(category, card)])
        #: All members in a row, and where each category begins: pooling is one call for all of them.
        self._columns = [column for members in self.members for column in members]
        self._starts = np.cumsum([0, *(len(members) for members in self.members[:-1])])
        self._flaggable = np.array([c.action != "allow" for c in policy.categories])
        self._thresholds = np.array([c.threshold.value if c.threshold else np.inf for c in policy.categories])
        limits = {c.threshold.value for c in policy.categories if c.threshold}
        #: The one threshold that all categories share, if they do.
        self.threshold = limits.pop() if len(limits) == 1 else None

    @property
    def zero_shot_policies(self) -> list[Policy]:
        """The policy whose phrases are embedded, in a list as a panel's; none for a classifier."""
        return [self.policy] if self.card.task == "zero_shot" else []

    def category_scores(self, scores: Scores) -> NDArray[np.float64]:
        """Pool output scores `[B, N]` in [0, 1] to category scores `[B, C]`, in the policy's order."""
        if scores.ndim != 2 or scores.shape[1] != len(self.outputs):
            raise BadArgumentError(f"scores must be [B, {len(self.outputs)}], got {list(scores.shape)}")
        pool = np.maximum if self.policy.pooling == "max" else np.add
        table: NDArray[np.float64] = pool.reduceat(scores.astype(np.float64)[:, self._columns], self._starts, axis=1)
        if self.policy.pooling in ("mean", "logsumexp"):
            table = table / [len(members) for members in self.members]
        if self.policy.pooling == "logsumexp":
            # The mean of probabilities is that of exp(logit) but for a factor, which this undoes.
            table = table / table.sum(axis=1, keepdims=True)
        return table

    def flags(self, category_scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which categories `[B, C]` are flagged: above their threshold and, under `argmax`, the highest."""
        flagged: NDArray[np.bool_] = (category_scores > self._thresholds) & self._flaggable
        if self.policy.rule == "argmax":
            flagged &= category_scores == category_scores.max(axis=1, keepdims=True)
        return flagged

    def margins(self, category_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """How near each item `[B]` comes to the threshold of any category."""
        nearest: NDArray[np.float64] = np.abs(category_scores - self._thresholds)[:, self._flaggable].min(axis=1)
        return nearest

    def unsafe_score(self, category_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """One score `[B]` to rank items by: the highest score among categories that block or ask for review."""
        highest: NDArray[np.float64] = category_scores[:, self._flaggable].max(axis=1)
        return highest

    def rank(self, verdict: Verdict) -> float | None:
        """The score that a verdict ranks by, as `unsafe_score`; None for what was not judged."""
        guarded = [c.name for c in self.policy.categories if c.action != "allow"]
        return max(verdict.scores[name] for name in guarded) if verdict.status == "ok" else None

    def risks(self, category_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores `[B]` on a scale that other policies share: 0.5 at the threshold, linear on either side of it.

        The highest of the categories that block or ask for review; above 0.5 only where one of them is flagged.
        """
        limit = np.where(self._flaggable, np.minimum(self._thresholds, 1.0), 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            below = np.where(category_scores > 0, 0.5 * category_scores / limit, 0.0)
            above = 0.5 + 0.5 * (category_scores - limit) / (1 - limit)
        risk = np.where(self.flags(category_scores), above.clip(0.5, 1.0), below.clip(0.0, 0.5))
        highest: NDArray[np.float64] = risk[:, self._flaggable].max(axis=1)
        return highest

    def verdicts(
        self, scores: Scores, sources: Sequence[str] | None = None, truncated: Sequence[bool] | None = None
    ) -> list[Verdict]:
        """Judge output scores `[B, N]`; a row with a NaN, infinity or a value outside [0, 1] is not judged."""
        names = sources or [""] * len(scores)
        cut = truncated or [False] * len(scores)
        table = self.category_scores(scores)
        flags = self.flags(table)
        tolerance = 1e-3  # float16 engines round a probability of 1 upwards
        within = np.logical_and(scores >= -tolerance, scores <= 1 + tolerance).all(axis=1)
        # Scores that are all 0 have no share that `logsumexp` could give to a category.
        valid = np.logical_and(within, np.isfinite(table).all(axis=1))
        # Plain numbers from here: numpy's own are slower one by one, and this is most of what the runtime adds.
        rows = zip(valid.tolist(), table.tolist(), flags.tolist(), names, cut, strict=True)
        return [self._verdict(*row) for row in rows]

    def unreadable(self, detail: str, source: str = "") -> Verdict:
        """The verdict of an item that could not be decoded."""
        return unjudged("unreadable", detail, policy=self.policy_id, model=self.card.name, source=source)

    def missing_input(self, detail: str, source: str = "") -> Verdict:
        """The verdict of an item that lacks an input that the model needs."""
        return unjudged("missing_input", detail, policy=self.policy_id, model=self.card.name, source=source)

    def _verdict(self, valid: bool, scores: list[float], flags: list[bool], source: str, cut: bool) -> Verdict:
        if not valid:
            detail = "the model's scores are not probabilities (NaN, infinite, or outside [0, 1])"
            return unjudged("invalid_scores", detail, policy=self.policy_id, model=self.card.name, source=source)
        categories = self.policy.categories
        flagged = [index for index, flag in enumerate(flags) if flag]
        # A blocking category outranks one that only asks for review, however high the latter scores.
        among = [index for index in flagged if categories[index].action == "block"] or flagged or range(len(scores))
        decider = categories[max(among, key=scores.__getitem__)]
        decision: Decision = "safe"
        if flagged:
            decision = "unsafe" if decider.action == "block" else "review"
        return Verdict(
            "ok",
            decision,
            decider.name,
            {c.name: min(max(score, 0.0), 1.0) for c, score in zip(categories, scores, strict=True)},
            self.policy_id,
            self.card.name,
            source,
            text_truncated=cut,
        )


def phrases(policy: Policy) -> tuple[str, ...]:
    """All phrases of a zero-shot policy, category by category. Raises BadPolicyError for a category without one."""
    for category in policy.categories:
        if not category.descriptors:
            raise BadPolicyError(
                f'policy "{policy.name}": category "{category.name}" has no descriptors, and a zero-shot model '
                "knows a category by them alone: add short phrases under `descriptors:`"
            )
    return tuple(phrase for category in policy.categories for phrase in category.descriptors)


def labels_of(category: Category, card: ModelCard) -> tuple[str, ...]:
    """The classifier outputs that make up a category. Raises BadPolicyError for one that the model lacks."""
    wanted = category.labels or (category.name,)
    for label in wanted:
        if label not in card.labels:
            raise BadPolicyError(
                f'category "{category.name}": {card.name} has no output "{label}"' + close_match(label, card.labels)
            )
    return wanted


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
