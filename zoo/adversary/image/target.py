"""The model under attack, with its passes counted and its modules in evaluation mode; the objectives of attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from zoo.errors import BadArgumentError

#: Pixels `[B, C, H, W]` float32 in [0, 1], and any other input of each image, to logits `[B, K]`, K >= 2.
Model: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True)
class ImageBatch:
    """Images under attack: clean `pixels` `[B, C, H, W]`, `labels` `[B]`, their `rows` `[B]` in the whole set.

    `goals` `[B]` are the classes that a targeted attack aims at. `gradient` `[B, C, H, W]` is that of the cross-entropy
    at the clean pixels, where it is known already.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor
    goals: Tensor | None = None
    gradient: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, keep: Tensor) -> ImageBatch:
        """The images that a mask `[B]` or a list of indices picks."""
        goals, gradient = (None if one is None else one[keep] for one in (self.goals, self.gradient))
        return ImageBatch(self.pixels[keep], self.labels[keep], self.rows[keep], goals, gradient)


#: The objective that an attack maximises: logits `[B, K]` of the images of a batch to one value each `[B]`.
Objective: TypeAlias = Callable[[Tensor, ImageBatch], Tensor]


class Target:
    """A model with counters of the images that it saw forward and backward.

    `extras` are tensors of one row per image of the whole set, such as the ids of its prompt. The model gets the rows
    of each batch after the pixels. With `stop` an attack lets go of an image as soon as it is misjudged; without,
    it goes on to the worst that it can find, which is what transfers to other models.
    """

    def __init__(self, model: Model, extras: Sequence[Tensor] = (), *, stop: bool = True) -> None:
        self.model, self.extras, self.stop = model, tuple(extras), stop
        self.forwards = self.backwards = 0

    def logits(self, pixels: Tensor, batch: ImageBatch) -> Tensor:
        """Logits `[B, K]` without a graph. Raises BadInputError when the model gives something else."""
        with torch.no_grad():
            return self._run(pixels, batch)

    def gradient(self, pixels: Tensor, batch: ImageBatch, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[B, K]`, objective `[B]` and its gradient `[B, C, H, W]`, zero where missing or not finite."""
        with torch.enable_grad():
            leaf = pixels.detach().requires_grad_()
            logits = self._run(leaf, batch)
            values, gradient = objective(logits, batch), None
            if values.requires_grad:
                (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
                self.backwards += len(pixels)
        finite = torch.zeros_like(pixels) if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)
        return logits.detach(), values.detach(), finite

    def fooled(self, logits: Tensor, batch: ImageBatch) -> Tensor:
        """Which images `[B]` an attack can let go of: the misjudged ones, or none when it is not to stop."""
        return misjudged(logits, batch.labels) & self.stop

    def _run(self, pixels: Tensor, batch: ImageBatch) -> Tensor:
        self.forwards += len(pixels)
        logits = self.model(pixels, *(extra[batch.rows] for extra in self.extras))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(pixels) or logits.shape[1] < 2:
            given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise BadArgumentError(
                f"the attacked model must give logits [{len(pixels)}, K] with K >= 2, got {given}; "
                "zoo.adversary.image.two_logits makes two logits of one, or of a policy"
            )
        return logits.float()


def misjudged(logits: Tensor, labels: Tensor) -> Tensor:
    """Which rows of logits `[B, K]` put another class first than `labels` `[B]`; a row with a NaN never does."""
    return (logits.argmax(dim=1) != labels) & logits.isfinite().all(dim=1)


@contextmanager
def evaluation_mode(*models: object) -> Iterator[None]:
    """Put the modules among `models` in evaluation mode with frozen parameters, and restore them afterwards.

    Parameters are frozen because an attack needs the gradient of the pixels only, and other gradients cost memory.
    Gradients work inside, even if the caller is in inference mode.
    """
    owners = [getattr(model, "__self__", model) for model in models]  # of a bound method, its module
    modules = {part: part.training for owner in owners if isinstance(owner, nn.Module) for part in owner.modules()}
    trained = {one for owner in modules for one in owner.parameters(recurse=False) if one.requires_grad}
    try:
        for module in modules:
            module.training = False
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.inference_mode(False):
            yield
    finally:
        for module, training in modules.items():
            module.training = training
        for parameter in trained:
            parameter.requires_grad_(True)


def cross_entropy(logits: Tensor, batch: ImageBatch) -> Tensor:
    """In place of the cross-entropy: the log-odds `[B]` of any class except the label, from logits `[B, K]`.

    The cross-entropy is their softplus. It rises with them and its gradient points the same way, so that attacks that
    use the direction of a gradient and the order of values take the same steps. But if a model is sure (17 nats
    suffice), float32 rounds the cross-entropy and the label's part of its gradient to zero: false robustness.
    """
    own = logits.gather(1, batch.labels[:, None])[:, 0]
    return logits.scatter(1, batch.labels[:, None], -torch.inf).logsumexp(dim=1) - own


def margin(logits: Tensor, batch: ImageBatch) -> Tensor:
    """The best other logit minus the label's `[B]`: above 0 where the image is misjudged (arXiv 1912.00049, eq. 2)."""
    own = logits.gather(1, batch.labels[:, None])[:, 0]
    others = logits.scatter(1, batch.labels[:, None], -torch.inf)
    return others.amax(dim=1) - own


def goal_margin(logits: Tensor, batch: ImageBatch) -> Tensor:
    """The goal's logit minus the label's `[B]`: above 0 where the goal has overtaken the label."""
    assert batch.goals is not None
    pair = logits.gather(1, torch.stack([batch.goals, batch.labels], dim=1))
    return pair[:, 0] - pair[:, 1]


def targeted_dlr(logits: Tensor, batch: ImageBatch) -> Tensor:
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
