"""What the attacks on images raise: one value per image, the higher the nearer to a misjudgement."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.adversary.image.target import Batch


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """What stands for the cross-entropy: the log-odds `[B]` of any class but the label, from logits `[B, K]`.

    The cross-entropy is their softplus. It rises with them and its gradient points the same way, so that attacks that
    use the direction of a gradient and the order of values take the very same steps. But where a model is sure (17
    nats do), float32 rounds the cross-entropy and the label's part of its gradient to zero: false robustness.
    """
    own = logits.gather(1, batch.labels[:, None])[:, 0]
    return logits.scatter(1, batch.labels[:, None], -torch.inf).logsumexp(dim=1) - own


def margin(logits: Tensor, batch: Batch) -> Tensor:
    """The best other logit minus the label's `[B]`: above 0 where the image is misjudged (arXiv 1912.00049, eq. 2)."""
    own = logits.gather(1, batch.labels[:, None])[:, 0]
    others = logits.scatter(1, batch.labels[:, None], -torch.inf)
    return others.amax(dim=1) - own


def goal_margin(logits: Tensor, batch: Batch) -> Tensor:
    """The goal's logit minus the label's `[B]`: above 0 where the goal has overtaken the label."""
    assert batch.goals is not None
    pair = logits.gather(1, torch.stack([batch.goals, batch.labels], dim=1))
    return pair[:, 0] - pair[:, 1]


def targeted_dlr(logits: Tensor, batch: Batch) -> Tensor:
    """The targeted difference-of-logits ratio `[B]` (Croce & Hein 2020, arXiv 2003.01690, eq. 7).

    `(z_t - z_y) / (z_1 - (z_3 + z_4) / 2)` with sorted logits, so that no scaling of the logits changes it. Three
    classes have no fourth: there the denominator is `z_1 - z_3`. Two have neither: there it is the plain margin
    `z_t - z_y`, which saturates nowhere, and of which the attacks use the direction only.
    """
    gain = goal_margin(logits, batch)
    classes = logits.shape[1]
    if classes == 2:
        return gain
    top = logits.topk(min(4, classes), dim=1).values
    return gain / (top[:, 0] - top[:, 2:].mean(dim=1) + 1e-12)
