"""The criterion of classifiers: cross-entropy with class weights, focal factor and label smoothing; unknowns masked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError, close_match


class Criterion(nn.Module):
    """Logits `[B, L]` and targets to a mean loss, in float32 whatever the precision of the logits.

    Softmax cards take class indices `[B]`: cross-entropy, as `F.cross_entropy` with `weight` and `label_smoothing`.
    Sigmoid cards take `[B, L]` of 0, 1 and NaN (unknown): binary cross-entropy, the mean over what is known; 0 without
    gradient where nothing is.

    Args:
        card: names the labels, and says softmax or sigmoid.
        weights: factor of each class (softmax), or of the rows that have the label (sigmoid, `pos_weight` of
            `F.binary_cross_entropy_with_logits`), by label; 1 for labels left out.
        focal_gamma: exponent of the focal loss (Lin et al. 2017, arXiv 1708.02002, equation 4): the term of each class
            is multiplied by (1 - p)^gamma, with p the probability given to it (to its absence, for the negative term).
        smoothing: label smoothing (Szegedy et al. 2016, arXiv 1512.00567) in [0, 1): that share of the target is
            spread evenly over all classes, or for sigmoid over the label and its absence.

    Raises BadInputError for unknown labels, weights that are not positive, a negative gamma, smoothing out of range.
    """

    weight: Tensor

    def __init__(
        self,
        card: ModelCard,
        weights: Mapping[str, float] | None = None,
        focal_gamma: float = 0.0,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        for label, weight in (weights or {}).items():
            if label not in card.labels:
                raise BadArgumentError(f'class_weights: no label "{label}"' + close_match(label, card.labels))
            if not weight > 0:
                raise BadArgumentError(f"class_weights: a weight is above 0, got {weight} for {label}")
        if not focal_gamma >= 0:
            raise BadArgumentError(f"focal_gamma is 0 or more, got {focal_gamma}")
        if not 0 <= smoothing < 1:
            raise BadArgumentError(f"label_smoothing is a share in [0, 1), got {smoothing}")
        self.softmax = card.score == "softmax"
        self.gamma, self.smoothing = focal_gamma, smoothing
        factors = [(weights or {}).get(label, 1.0) for label in card.labels]
        self.register_buffer("weight", torch.tensor(factors), persistent=False)  # it is in the recipe

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean loss."""
        with torch.autocast(logits.device.type, enabled=False):
            return self._exclusive(logits.float(), target) if self.softmax else self._each(logits.float(), target)

    def _exclusive(self, logits: Tensor, target: Tensor) -> Tensor:
        log_p = logits.log_softmax(dim=1)
        wanted = F.one_hot(target, logits.shape[1]) * (1 - self.smoothing) + self.smoothing / logits.shape[1]
        terms = -wanted * self.weight * log_p
        if self.gamma:
            terms = terms * _power(1 - log_p.exp(), self.gamma)
        return terms.sum() / self.weight[target].sum()

    def _each(self, logits: Tensor, target: Tensor) -> Tensor:
        known = ~target.isnan()
        wanted = target.nan_to_num() * (1 - self.smoothing) + self.smoothing / 2
        there, absent = -F.logsigmoid(logits) * self.weight, -F.logsigmoid(-logits)
        if self.gamma:
            p = logits.sigmoid()
            there, absent = there * _power(1 - p, self.gamma), absent * _power(p, self.gamma)
        losses = wanted * there + (1 - wanted) * absent
        return (losses * known).sum() / known.sum().clamp(min=1)


def _power(base: Tensor, exponent: float) -> Tensor:
    """Power of a probability; below exponent 1 its derivative at 0 is infinite, so 0 is kept away."""
    return base.clamp(min=1e-6) ** exponent
