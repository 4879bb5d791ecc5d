"""From a model's output scores to verdicts: the one place where a policy is applied, to one model or to a panel."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.contract.card import ModelCard
from zoo.contract.policy import AnyPolicy, PanelPolicy, Policy, Pool
from zoo.contract.schema import repeated
from zoo.contract.verdict import Decision, Place, Verdict
from zoo.errors import BadPolicyError, close_match
from zoo.judging.base import BaseJudge, Scores, Seen, warn_of_views

log = logging.getLogger("zoo.judging.judge")

#: Names of outputs that a policy hardly means to allow.
_UNSAFE_NAMES = {
    *("unsafe", "nsfw", "porn", "hentai", "sexy", "sexual", "explicit", "nude", "nudity", "gore", "toxic", "toxicity"),
    *("violence", "violent", "harmful", "hate", "hateful", "offensive", "inappropriate", "disturbing", "jailbreak"),
}

#: What cosines are multiplied by at most before a softmax, as in CLIP (Radford et al. 2021, section 2.5).
LARGEST_SCALE = 100.0

#: How far a score may lie outside [0, 1]: float16 engines round a probability of 1 upwards.
TOLERANCE = 1e-3
#: How far the scores of a softmax may add up from 1: half precision and many phrases round it away.
SUM_TOLERANCE = 1e-2


#: The nearest that a probability comes to 0 and 1 before its logit is taken.
_TINY = 1e-7


class Judge(BaseJudge):
    """A policy bound to the outputs of one model: a zero-shot model's phrases, or a classifier's labels.

    Warns of what can never be flagged, unless `warn` is False: of a policy that nobody wrote, or that was warned of.
    Raises BadPolicyError when policy and model do not fit together.

    >>> import numpy as np
    >>> from zoo.contract.policy import read_policy
    >>> from zoo.registry import model_card
    >>> judge = Judge(model_card("nsfwjs_mobilenet_v2.gantman"), read_policy("configs/policy/nsfwjs.yaml"))
    >>> judge.outputs
    ('drawing', 'hentai', 'neutral', 'porn', 'sexy')
    >>> [verdict.decision for verdict in judge.verdicts(np.array([[0.0, 0.0, 1.0, 0.0, 0.0]]))]
    ['safe']
    """

    policy: Policy

    def __init__(self, card: ModelCard, policy: Policy, *, warn: bool = True) -> None:
        if card.task == "panel":
            raise BadPolicyError(
                f'policy "{policy.name}" is for one model, and {card.name} is a panel: it needs one policy for each '
                "head, under `heads:` (see its own policy.yaml)"
            )
        super().__init__(card, policy)
        self.policy = policy
        zero_shot = card.task == "zero_shot"
        if not zero_shot and (policy.temperature != 1 or policy.pooling == "logsumexp"):
            raise BadPolicyError(
                f'policy "{policy.name}": temperature and pooling logsumexp are for the phrases of a zero-shot model, '
                f"and {card.name} is a classifier"
            )
        self.outputs = policy.phrases if zero_shot else card.labels
        self.score_names = tuple(category.name for category in policy.categories)
        self.zero_shot_policies = [policy] if zero_shot else []
        #: Which outputs make up each category, in the policy's order.
        self.members: list[list[int]] = []
        for category in policy.categories:
            members = category.descriptors if zero_shot else category.labels or (category.name,)
            unknown = [name for name in members if name not in self.outputs]
            if unknown:
                raise BadPolicyError(
                    f'category "{category.name}": {card.name} has no output "{unknown[0]}"'
                    + close_match(unknown[0], self.outputs)
                )
            self.members.append([self.outputs.index(name) for name in members])
        #: All members in a row, and where each category begins: pooling is one call for all of them.
        self._columns = [column for members in self.members for column in members]
        self._starts = np.cumsum([0, *(len(members) for members in self.members[:-1])])
        if twice := repeated(self.outputs[column] for column in self._columns):
            raise BadPolicyError(
                f'policy "{policy.name}": labels that stand in two categories, so that neither decides: {twice} '
                "(a category without `labels` has that of its own name)"
            )
        #: Whether any item can be flagged at all.
        self.can_flag = any(
            category.threshold is not None and category.threshold.value < self._highest(len(members))
            for category, members in zip(policy.categories, self.members, strict=True)
        )
        if warn:
            self._warn_of_unreachable()
        self._flaggable = np.array([c.action != "allow" for c in policy.categories])
        self._blocking = np.array([c.action == "block" for c in policy.categories])
        self._thresholds = np.array([c.threshold.value if c.threshold else np.inf for c in policy.categories])
        limits = {c.threshold.value for c in policy.categories if c.threshold}
        self.threshold = limits.pop() if len(limits) == 1 else None

    def _warn_of_unreachable(self) -> None:
        """Warn of a category that can never be flagged, and of an unsafe output that is allowed or in no category."""
        name, zero_shot = self.policy.name, self.card.task == "zero_shot"
        for category, members in zip(self.policy.categories, self.members, strict=True):
            highest = self._highest(len(members))
            if category.threshold is not None and category.threshold.value >= highest:
                log.warning(
                    'policy "%s": "%s" is never flagged: its threshold is %g, and no score is above %.4g '
                    "(%s of %d of %d outputs, temperature %g)",
                    *(name, category.name, category.threshold.value, highest),
                    *(self.policy.pooling, len(members), len(self.outputs), self.policy.temperature),
                )
            labels = [] if zero_shot else [self.outputs[place] for place in members]
            unsafe = [one for one in (category.name, *labels) if one.lower() in _UNSAFE_NAMES]
            if category.action == "allow" and unsafe:
                log.warning('policy "%s": allows "%s", so that %s never flags it', name, unsafe[0], self.card.name)
        for place, label in enumerate(self.outputs):
            if place not in self._columns and label.lower() in _UNSAFE_NAMES:
                words = 'policy "%s": no category has the label "%s", so that %s never flags it'
                log.warning(words, name, label, self.card.name)

    def _highest(self, members: int) -> float:
        """The score that a category of so many outputs cannot exceed."""
        if self.card.score == "sigmoid":
            return float(members) if self.policy.pooling == "sum" else 1.0
        # Where all members are as likely as can be: of a zero-shot model cosines of 1, and of -1 for other phrases.
        other = math.exp(-2 * LARGEST_SCALE / self.policy.temperature) if self.card.task == "zero_shot" else 0.0
        others = {"max": len(self.outputs) - 1, "logsumexp": len(self.policy.categories) - 1}
        together = {"max": 1, "logsumexp": 1}.get(self.policy.pooling, members)
        share = together / (together + others.get(self.policy.pooling, len(self.outputs) - members) * other)
        return share / members if self.policy.pooling == "mean" else share

    def category_scores(self, scores: Scores) -> NDArray[np.float64]:
        """Pool output scores `[B, N]` in [0, 1] to category scores `[B, C]`, in the policy's order."""
        self._check(scores)
        pool = np.maximum if self.policy.pooling == "max" else np.add
        table: NDArray[np.float64] = pool.reduceat(scores.astype(np.float64)[:, self._columns], self._starts, axis=1)
        if self.policy.pooling in ("mean", "logsumexp"):
            table = table / [len(members) for members in self.members]
        if self.policy.pooling == "logsumexp":
            # The mean of probabilities is that of exp(logit), up to a factor which this removes.
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
        return np.asarray(np.abs(category_scores - self._thresholds)[:, self._flaggable].min(axis=1))

    def unsafe_score(self, category_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """One score `[B]` to rank items by: the highest score among categories that block or ask for review."""
        return np.asarray(category_scores[:, self._flaggable].max(axis=1))

    def rank(self, verdict: Verdict) -> float | None:
        """The score that a verdict ranks by, as `unsafe_score`; None for what was not judged."""
        guarded = [c.name for c in self.policy.categories if c.action != "allow"]
        return max(verdict.scores[name] for name in guarded) if verdict.status == "ok" else None

    def pooled(self, scores: Scores, starts: Sequence[int], pool: Pool) -> tuple[Scores, NDArray[np.int_]]:
        """Output scores `[B, N]` of items whose rows begin at these, and the rows that gave them, `[B, 1]`.

        `max` takes the most severe row: one that blocks, then one without an answer, because it could have blocked,
        then by risk. `mean` takes the mean of the logits, and no row.
        """
        if pool == "mean":
            return self._mean(scores, starts), np.empty((len(starts), 0), dtype=np.int_)
        table = self.category_scores(scores)
        flags, risk = self.flags(table), self.risks(table)
        severity = np.where(self._valid(scores, table), risk + flags.any(axis=1), 2.5)
        severity[(flags & self._blocking).any(axis=1)] += 3
        ends = [*starts[1:], len(scores)]
        rows = np.array([start + np.argmax(severity[start:end]) for start, end in zip(starts, ends, strict=True)])
        return scores[rows], rows[:, None]

    def _mean(self, scores: Scores, starts: Sequence[int]) -> Scores:
        """Output scores of the mean logits of the rows from each start to the next."""
        counts = np.diff([*starts, len(scores)])[:, None]
        likely = np.clip(scores.astype(np.float64), _TINY, 1 - _TINY)
        softmax = self.card.score == "softmax"
        mean = np.add.reduceat(np.log(likely) - (0 if softmax else np.log1p(-likely)), starts, axis=0) / counts
        share = np.exp(mean)
        return np.asarray(share / share.sum(axis=1, keepdims=True) if softmax else share / (1 + share))

    def _placed(self, verdict: Verdict, places: Sequence[Place]) -> Verdict:
        return replace(verdict, place=places[0])

    def risks(self, category_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores `[B]` on a scale that other policies share: 0.5 at the threshold, linear on either side of it.

        The highest of the categories that block or ask for review; above 0.5 only where one of them is flagged.
        """
        limit = np.where(self._flaggable, np.minimum(self._thresholds, 1.0), 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            below = np.where(category_scores > 0, 0.5 * category_scores / limit, 0.0)
            above = 0.5 + 0.5 * (category_scores - limit) / (1 - limit)
        risk = np.where(self.flags(category_scores), above.clip(0.5, 1.0), below.clip(0.0, 0.5))
        return self.unsafe_score(risk)

    def valid(self, scores: Scores) -> NDArray[np.bool_]:
        """Which rows `[B]` of output scores `[B, N]` are probabilities: within [0, 1], and a softmax adds up to 1."""
        self._check(scores)
        valid = np.asarray(np.logical_and(scores >= -TOLERANCE, scores <= 1 + TOLERANCE).all(axis=1))
        if self.card.score == "softmax":
            valid &= np.abs(scores.sum(axis=1, dtype=np.float64) - 1) <= SUM_TOLERANCE
        return valid

    def _valid(self, scores: Scores, table: NDArray[np.float64]) -> NDArray[np.bool_]:
        # The logits of a softmax may be so far apart that the categories of `logsumexp` have no share at all.
        return np.logical_and(self.valid(scores), np.isfinite(table).all(axis=1))

    def _judge(self, scores: Scores, sources: Sequence[str], unseen: Sequence[Seen]) -> list[Verdict]:
        table = self.category_scores(scores)
        valid = self._valid(scores, table)
        # Plain Python numbers from here: numpy scalars are slower, and this loop is most of the runtime's overhead.
        rows = zip(valid.tolist(), table.tolist(), self.flags(table).tolist(), sources, unseen, strict=True)
        return [self._verdict(*row) for row in rows]

    def _verdict(self, valid: bool, scores: list[float], flags: list[bool], source: str, unseen: Seen) -> Verdict:
        if not valid:
            detail = "the model's scores are not probabilities (NaN, infinite, outside [0, 1]"
            detail += ", or they do not add up to 1)" if self.card.score == "softmax" else ")"
            return self.unjudged("invalid_scores", detail, source)
        categories = self.policy.categories
        flagged = [index for index, flag in enumerate(flags) if flag]
        # A blocking category outranks one that only asks for review, however high the latter scores.
        among = [index for index in flagged if categories[index].action == "block"] or flagged or range(len(scores))
        decider = categories[max(among, key=scores.__getitem__)]
        decision: Decision = "safe"
        if flagged:
            decision = "unsafe" if decider.action == "block" else "review"
        bounded = {c.name: min(max(score, 0.0), 1.0) for c, score in zip(categories, scores, strict=True)}
        decision, category, seen, detail = self._hold(decision, decider.name, unseen)
        return Verdict("ok", decision, category, bounded, self.policy_id, self.card.name, source, detail, unseen=seen)


class PanelJudge(BaseJudge):
    """A panel policy bound to the heads of one panel; the same methods as `Judge`, over all heads' outputs in turn.

    Raises BadPolicyError if a head has no policy, a policy no head, or the two do not fit.
    """

    policy: PanelPolicy

    def __init__(self, card: ModelCard, policy: PanelPolicy, *, warn: bool = True) -> None:
        if card.task != "panel":
            raise BadPolicyError(
                f'policy "{policy.name}" is for a panel (it has `heads:`), and {card.name} is one model'
            )
        super().__init__(card, policy)
        self.policy = policy
        policies, heads = {entry.head: entry.policy for entry in policy.heads}, card.heads
        for name in policies:
            if name not in heads:
                raise BadPolicyError(f'{card.name} has no head "{name}"' + close_match(name, heads))
        lacking = [name for name in heads if name not in policies]
        if lacking:
            raise BadPolicyError(f'policy "{policy.name}" says nothing of the heads {lacking}')
        self.judges = {name: Judge(head, policies[name], warn=warn) for name, head in heads.items()}
        self.score_names = tuple(self.judges)
        self.outputs = tuple(f"{name}: {output}" for name, judge in self.judges.items() for output in judge.outputs)
        self.zero_shot_policies = [one for judge in self.judges.values() for one in judge.zero_shot_policies]
        self.threshold = None if policy.combine == "majority" else 0.5
        able = [name for name, judge in self.judges.items() if judge.can_flag]
        if warn and len(able) < self._needed:
            words = 'policy "%s": %s never flags anything: %d heads must agree, and these alone can flag: %s'
            log.warning(words, policy.name, card.name, self._needed, ", ".join(able) or "none")
        judges = self.judges.values()
        self._output_ends = np.cumsum([len(judge.outputs) for judge in judges])[:-1]
        self._category_ends = np.cumsum([len(judge.policy.categories) for judge in judges])[:-1]

    def category_scores(self, scores: Scores) -> NDArray[np.float64]:
        """Output scores `[B, N]` of all heads in turn to category scores `[B, C]` of all heads in turn."""
        self._check(scores)
        return np.concatenate([j.category_scores(p) for j, p in self._heads(scores, self._output_ends)], axis=1)

    def valid(self, scores: Scores) -> NDArray[np.bool_]:
        """Which rows `[B]` of the output scores of all heads in turn are probabilities in every head."""
        self._check(scores)
        by_head = [judge.valid(part) for judge, part in self._heads(scores, self._output_ends)]
        return np.asarray(np.stack(by_head).all(axis=0))

    def flags(self, category_scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which categories `[B, C]` of which head are flagged."""
        return np.concatenate([j.flags(p) for j, p in self._heads(category_scores, self._category_ends)], axis=1)

    def margins(self, category_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """How near each item `[B]` comes to a threshold of any head."""
        by_head = [j.margins(p) for j, p in self._heads(category_scores, self._category_ends)]
        return np.asarray(np.min(by_head, axis=0))

    def unsafe_score(self, category_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """One score `[B]` to rank items by: the mean risk where the panel combines by `mean`, else the highest."""
        risks = self._risks(category_scores)
        combined: NDArray[np.float64] = risks.mean(axis=1) if self.policy.combine == "mean" else risks.max(axis=1)
        return combined

    def rank(self, verdict: Verdict) -> float | None:
        """The score that a verdict ranks by, as `unsafe_score`; None for what was not judged."""
        if verdict.status != "ok":
            return None
        risks = list(verdict.scores.values())
        return float(np.mean(risks)) if self.policy.combine == "mean" else max(risks)

    def pooled(self, scores: Scores, starts: Sequence[int], pool: Pool) -> tuple[Scores, NDArray[np.int_]]:
        """Output scores `[B, N]` of items whose rows begin at these, and the row that each head took, `[B, H]`."""
        heads = [judge.pooled(part, starts, pool) for judge, part in self._heads(scores, self._output_ends)]
        return np.concatenate([part for part, _ in heads], axis=1), np.concatenate([rows for _, rows in heads], axis=1)

    def _placed(self, verdict: Verdict, places: Sequence[Place]) -> Verdict:
        where = dict(zip(self.judges, places, strict=True))
        heads = {name: replace(head, place=where[name]) for name, head in verdict.heads.items()}
        return replace(verdict, heads=heads, place=where.get(verdict.category or ""))

    def _heads(self, columns: NDArray[Any], ends: NDArray[np.int_]) -> Iterator[tuple[Judge, NDArray[Any]]]:
        """Each head's judge with its part of the columns."""
        return zip(self.judges.values(), np.split(columns, ends, axis=1), strict=True)

    def _risks(self, category_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The risk `[B, H]` that each head sees."""
        return np.stack([j.risks(p) for j, p in self._heads(category_scores, self._category_ends)], axis=1)

    def _judge(self, scores: Scores, sources: Sequence[str], unseen: Sequence[Seen]) -> list[Verdict]:
        risks = self._risks(self.category_scores(scores)).tolist()
        by_head = [j.verdicts(part, sources) for j, part in self._heads(scores, self._output_ends)]
        rows = zip(zip(*by_head, strict=True), risks, sources, unseen, strict=True)
        return [self._combine(dict(zip(self.judges, heads, strict=True)), *row) for heads, *row in rows]

    def _combine(self, heads: dict[str, Verdict], risks: list[float], source: str, unseen: Seen) -> Verdict:
        broken = [name for name, verdict in heads.items() if verdict.status != "ok"]
        model, policy = self.card.name, self.policy_id
        if broken:  # the head without an answer could have been the one to flag the item
            detail = f"{', '.join(broken)}: {heads[broken[0]].detail}"
            return Verdict("invalid_scores", "unknown", None, {}, policy, model, source, detail, heads)
        risk = dict(zip(heads, risks, strict=True))
        decision = self._decide(heads, risk)
        saying = [name for name in heads if heads[name].decision == decision] or list(heads)
        share = sum(verdict.decision != "safe" for verdict in heads.values()) / len(heads)
        decision, category, seen, detail = self._hold(decision, max(saying, key=risk.__getitem__), unseen)
        return Verdict(
            "ok", decision, category, risk, policy, model, source, detail, heads, 1 - abs(2 * share - 1), seen
        )

    def _decide(self, heads: dict[str, Verdict], risk: dict[str, float]) -> Decision:
        decisions = [verdict.decision for verdict in heads.values()]
        unsafe, flagged = decisions.count("unsafe"), len(decisions) - decisions.count("safe")
        if self.policy.combine == "max":
            return heads[max(risk, key=risk.__getitem__)].decision
        if self.policy.combine == "mean":
            above = sum(risk.values()) / len(risk) > 0.5
            return ("unsafe" if unsafe else "review") if above and flagged else "safe"
        return "unsafe" if unsafe >= self._needed else "review" if flagged >= self._needed else "safe"

    @property
    def _needed(self) -> int:
        """How many heads must agree that an item is flagged."""
        return len(self.judges) // 2 + 1 if self.policy.combine == "majority" else 1


#: A policy bound to a model, or the policies of a panel to its heads.
AnyJudge: TypeAlias = Judge | PanelJudge


def bind(card: ModelCard, policy: AnyPolicy) -> AnyJudge:
    """The judge of a model and a policy. Raises BadPolicyError when they do not fit together."""
    warn_of_views(card, policy)
    return PanelJudge(card, policy) if isinstance(policy, PanelPolicy) else Judge(card, policy)
