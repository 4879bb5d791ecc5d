"""Models as the attacks want them: two logits, unflagged and flagged, of a model with one logit or with a policy."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.contract.policy import Policy
from zoo.errors import BadArgumentError
from zoo.judging.judge import Judge
from zoo.models.base import ZooModel
from zoo.models.served import text_banks

#: Log-odds beyond these are probabilities that float32 cannot tell from 0 and 1.
_UTMOST = 100.0


class OneLogit(nn.Module):
    """A model of one logit `[B]` or `[B, 1]`, flagged where its sigmoid is above `threshold`, as two logits `[B, 2]`.

    Where a model gives a probability, attack its logit instead: near 0 and 1 a probability has no gradient in float32.
    """

    def __init__(self, model: Callable[..., Tensor], threshold: float = 0.5) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise BadArgumentError(f"threshold must be in (0, 1), got {threshold}")
        self.model, self.limit = model, _log_odds(threshold)

    def forward(self, pixels: Tensor, *extras: Tensor) -> Tensor:
        """Logits `[B, 2]`: 0, and the model's own less that of the threshold."""
        logits = self.model(pixels, *extras)
        if logits.shape not in ((len(pixels),), (len(pixels), 1)):
            raise BadArgumentError(f"expected one logit for each of {len(pixels)} images, got {list(logits.shape)}")
        flagged = logits.reshape(-1).float() - self.limit
        return torch.stack([torch.zeros_like(flagged), flagged], dim=1)


class Judged(nn.Module):
    """A model of the zoo under a policy as two logits `[B, 2]`: class 1 where a category is flagged (block or review).

    Differentiable, and flagged exactly where `Judge` flags, except for ties. The second logit is how far the
    category nearest to being flagged is beyond its threshold, in log-odds, which do not saturate as scores do (in plain
    score where a policy adds up several sigmoid outputs). `threshold` replaces those of the policy: class 1 is where
    the highest score of a category that blocks or asks for review is above it. Raises BadPolicyError if the two
    do not fit, BadInputError for a panel, whose heads are attacked one by one.
    """

    def __init__(self, model: ZooModel, policy: Policy, threshold: float | None = None) -> None:
        super().__init__()
        model.card.refuse_panel("attack its heads one by one")
        judge = Judge(model.card, policy, warn=False)
        self.model, self.banks = model, text_banks(model, judge)
        self.members, self.pooling = judge.members, policy.pooling
        self.argmax = policy.rule == "argmax" and threshold is None
        self.softmax = model.card.score == "softmax"
        #: Whether scores are compared as log-odds.
        self.odds = self.softmax or policy.pooling == "max" or all(len(part) == 1 for part in self.members)
        limits = [
            math.inf if c.threshold is None else c.threshold.value if threshold is None else threshold
            for c in policy.categories
        ]
        self.limits = [(_log_odds(limit) if self.odds else limit) if limit < math.inf else limit for limit in limits]

    def forward(self, pixels: Tensor, *extras: Tensor) -> Tensor:
        """Logits `[B, 2]` of images `[B, 3, S, S]` in [0, 1] and the model's other inputs."""
        return self.judge(self.model(pixels, *extras, *self.banks))

    def judge(self, logits: Tensor) -> Tensor:
        """Logits `[B, 2]` of the model's own `[B, N]`, N phrases or labels."""
        height = self.heights(logits.double())
        beyond = height - torch.tensor(self.limits, dtype=height.dtype, device=height.device)
        if self.argmax:  # and it must be the highest of all
            beyond = torch.minimum(beyond, height - _others(height).amax(dim=2))
        flagged = beyond.amax(dim=1).float()
        return torch.stack([torch.zeros_like(flagged), flagged], dim=1)

    def heights(self, logits: Tensor) -> Tensor:
        """Scores `[B, C]` of the categories from the outputs' logits `[B, N]`, in log-odds where those are compared."""
        parts = [logits[:, part] for part in self.members]
        if self.pooling == "logsumexp":
            pooled = torch.stack([part.logsumexp(dim=1) - math.log(part.shape[1]) for part in parts], dim=1)
            heights = _softmax_odds(pooled)
        elif self.pooling == "max" or all(len(part) == 1 for part in self.members):
            odds = _softmax_odds(logits) if self.softmax else logits
            heights = torch.stack([odds[:, part].amax(dim=1) for part in self.members], dim=1)
        elif self.softmax:
            heights = torch.stack([self._sum_odds(logits, part) for part in self.members], dim=1)
        else:
            sums = torch.stack([part.sigmoid().sum(dim=1) for part in parts], dim=1)
            sizes = torch.tensor([len(part) for part in self.members], device=sums.device)
            return sums / sizes if self.pooling == "mean" else sums
        return heights.clamp(-_UTMOST, _UTMOST)

    def _sum_odds(self, logits: Tensor, part: list[int]) -> Tensor:
        """Log-odds `[B]` of the sum or the mean of some softmax outputs: of their share `a` against `1 - a` of all."""
        share = torch.zeros(logits.shape[1], dtype=logits.dtype, device=logits.device)
        share[part] = 1.0 if self.pooling == "sum" else 1 / len(part)
        return (logits + share.log()).logsumexp(dim=1) - (logits + (1 - share).log()).logsumexp(dim=1)


def _softmax_odds(logits: Tensor) -> Tensor:
    """Log-odds `[B, N]` of each softmax output: its logit against the log-sum-exp of the others."""
    return logits - _others(logits).logsumexp(dim=2)


def _others(values: Tensor) -> Tensor:
    """For each of `[B, N]` its whole row with itself at -inf: `[B, N, N]`."""
    alone = torch.eye(values.shape[1], dtype=torch.bool, device=values.device)
    return values[:, None, :].masked_fill(alone, -torch.inf)


def _log_odds(probability: float) -> float:
    if probability in (0, 1):
        return _UTMOST * (2 * probability - 1)
    return math.log(probability) - math.log1p(-probability)
