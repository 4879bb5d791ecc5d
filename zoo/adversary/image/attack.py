"""Attack a model's judgement of images: one attack after the other on what is still robust, every success checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from rich.progress import Progress
from torch import Tensor, nn

from zoo.adversary.image.ball import Ball, lengths
from zoo.adversary.image.fab import fab_t
from zoo.adversary.image.pgd import apgd_ce, apgd_t, fgsm, pgd
from zoo.adversary.image.square import square
from zoo.adversary.image.target import ImageBatch, Model, Target, cross_entropy, evaluation_mode, misjudged
from zoo.adversary.threat import ImagePart, Threat
from zoo.errors import BadArgumentError, BadDataError


@dataclass(frozen=True)
class AttackRecord:
    """One attack of a sequence: the number of images that it tried and broke, and its cost.

    `outside` counts images that were misjudged and lay outside the budget, which do not count as broken (expected: 0).
    `forwards` and `backwards` count images, the checks included; `seconds` are wall time.
    """

    attack: str
    attempted: int
    broken: int
    outside: int
    forwards: int
    backwards: int
    seconds: float
    robust_accuracy: float  # after this attack and those before it


@dataclass(frozen=True)
class AttackOutcome:
    """The effect of an attack on N inputs: those judged right before (`correct` `[N]`), and those `broken` `[N]` by it.

    Only inputs that are judged right are attacked, and only they can be broken. `blind` `[N]` tells where the model
    gives no gradient.
    """

    #: The properties and fields that `to_dict` names.
    _figures: ClassVar[Sequence[str]] = ("clean_accuracy", "robust_accuracy", "success_rate", "obfuscated")

    correct: Tensor
    broken: Tensor
    blind: Tensor
    threat: ImagePart | Threat

    @property
    def clean_accuracy(self) -> float:
        """Share of the N inputs judged right before any attack."""
        return float(self.correct.double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of the N inputs still judged right under attack: an upper bound of the true one."""
        return float((self.correct & ~self.broken).double().mean())

    @property
    def success_rate(self) -> float:
        """Share of the inputs judged right that the attack broke; 0 if none were judged right."""
        return int(self.broken.sum()) / max(1, int(self.correct.sum()))

    @property
    def obfuscated(self) -> bool:
        """Whether some attacked input has no gradient at all."""
        return bool(self.blind.any())

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data, without the inputs."""
        figures = {name: getattr(self, name) for name in (*self._figures, "forwards", "backwards")}
        blind = {"blind_share": float(self.blind.double().mean())}
        return {"threat": self.threat.to_dict(), "items": len(self.correct), **figures, **blind}


@dataclass(frozen=True)
class AttackResult(AttackOutcome):
    """The outcome for N images.

    `adversarial` `[N, C, H, W]` are misjudged images inside the budget, or the clean ones if the attacks failed.
    Gradient attacks say nothing where an image is `blind`, so Square attacks it instead; `why_blind` is the error that
    the model raised there, if any. `randomised`: two passes gave different logits, so that the success of an attack is
    partly luck.
    """

    _figures = (*AttackOutcome._figures, "why_blind", "randomised")

    threat: ImagePart
    adversarial: Tensor
    why_blind: str
    randomised: bool
    records: tuple[AttackRecord, ...]

    @property
    def forwards(self) -> int:
        """Images that the models judged in the attacks and their checks: of a black-box attack, the queries."""
        return sum(record.forwards for record in self.records)

    @property
    def backwards(self) -> int:
        """Images whose gradient was computed in the attacks."""
        return sum(record.backwards for record in self.records)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data, without the images. `images` is the old name of `items`, for one more release."""
        records = [asdict(record) for record in self.records]
        return super().to_dict() | {"images": len(self.correct), "records": records}


#: By how much a perturbation may be longer than eps, because pixels are float32; times eps where that is above 1.
TOLERANCE = 1e-6

_Attack = Callable[[Target, ImageBatch, ImagePart, int], Tensor]
#: The attacks by their names in a threat model: each takes a batch and the number of the restart to pixels.
IMAGE_ATTACKS: dict[str, _Attack] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "apgd-ce": apgd_ce,
    "apgd-t": apgd_t,
    "fab-t": fab_t,
    "square": square,
}
_TARGETED = ("apgd-t", "fab-t")
#: How many clean images are judged twice, to see whether the model is random.
_SAMPLE = 16


def attack(
    model: Model,
    pixels: Tensor,
    labels: Tensor,
    threat: ImagePart,
    *,
    victim: Model | None = None,
    extras: Sequence[Tensor] = (),
    modules: Sequence[nn.Module] = (),
    batch_size: int = 128,
    progress: bool = False,
) -> AttackResult:
    """Look for misjudged images within a threat model, white box; each attack gets what those before it left robust.

    `model` takes pixels `[B, C, H, W]` in [0, 1], and the rows of each of `extras` that go with them, to logits
    `[B, K]` with K >= 2; `labels` `[N]` are the right classes. The model is attacked in evaluation mode with frozen
    parameters, and left as it was; where it is a plain function, name the `modules` that it calls. Every success is
    checked again: inside the ball (to `TOLERANCE`), inside [0, 1], and misjudged in a fresh forward pass.
    An image without a gradient always goes to Square, even if the threat model does not name it; the result says so.

    With a `victim` the images are made on `model` and judged by the victim, whose gradients are not used: a transfer
    attack. It does not stop where `model` errs, but goes on to its worst judgement, which transfers better.
    Raises BadInputError for pixels, labels or logits of a wrong shape, type or range.
    """
    judged = model if victim is None else victim
    with evaluation_mode(model, judged, *modules):
        target, judge = Target(model, extras, stop=victim is None), Target(judged, extras)
        return _Campaign(target, judge, pixels, labels, threat, batch_size).run(progress)


class _Campaign:
    """A sequence of attacks made on `target` and judged by `judge`, and what it has found so far."""

    def __init__(
        self, target: Target, judge: Target, pixels: Tensor, labels: Tensor, threat: ImagePart, batch_size: int
    ) -> None:
        check_inputs(pixels, labels, judge.extras, batch_size)
        self.target, self.judge, self.threat, self.batch_size = target, judge, threat, batch_size
        self.pixels = pixels.detach().clone()  # a normal tensor, also of one made in inference mode
        self.labels = labels.to(pixels.device, torch.int64).clone()
        self.blind, self.why_blind = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device), ""
        #: The gradient of the cross-entropy at the clean images `[N, C, H, W]`, kept for the attack that wants it.
        self.gradient = torch.zeros_like(self.pixels) if "fgsm" in threat.attacks else None
        self.own_clean = self._look()
        clean = self.own_clean
        if target.model is not judge.model:
            clean = finite([judge.logits(batch.pixels, batch) for batch in self._everything()])
        check_labels(self.labels, min(clean.shape[1], self.own_clean.shape[1]))
        self.correct = clean.argmax(dim=1) == self.labels
        self.broken = torch.zeros_like(self.correct)
        self.adversarial = self.pixels.clone()
        others = self.own_clean.scatter(1, self.labels[:, None], -torch.inf)
        #: The wrong classes `[N, T]` that targeted attacks aim at, the likeliest first.
        self.goals = others.topk(min(threat.targets, self.own_clean.shape[1] - 1), dim=1).indices

    def run(self, progress: bool) -> AttackResult:
        """Attack what is judged right, attack by attack."""
        self._look_near()
        blind, randomised = self.blind, self._randomised()
        plan = [(name, torch.ones_like(blind) if name == "square" else ~blind) for name in self.threat.attacks]
        if blind.any() and "square" not in self.threat.attacks:
            plan.append(("square", blind))
        with Progress(disable=not progress) as bar:
            records = tuple(self._attack(name, allowed, bar) for name, allowed in plan)
        return AttackResult(
            self.correct, self.broken, blind, self.threat, self.adversarial, self.why_blind, randomised, records
        )

    def _batches(self, wanted: Tensor) -> list[ImageBatch]:
        """The images that a mask `[N]` picks, in batches."""
        parts = torch.split(wanted.nonzero()[:, 0], self.batch_size)
        return [ImageBatch(self.pixels[rows], self.labels[rows], rows) for rows in parts if len(rows)]

    def _everything(self) -> list[ImageBatch]:
        return self._batches(torch.ones_like(self.blind))

    def _look(self) -> Tensor:
        """The attacked model's logits `[N, K]` of the clean images, and in the same pass where it gives no gradient."""

        def objective(logits: Tensor, batch: ImageBatch) -> Tensor:
            check_labels(self.labels, logits.shape[1])  # first: on a GPU a wrong index ends the process
            return cross_entropy(logits, batch)

        parts = []
        for batch in self._everything():
            try:
                logits, _, gradient = self.target.gradient(batch.pixels, batch, objective)
                self.blind[batch.rows] = gradient.flatten(1).count_nonzero(dim=1) == 0
                if self.gradient is not None:
                    self.gradient[batch.rows] = gradient
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as problem:  # such as a tensor with a graph that is turned into an array
                logits = self.target.logits(batch.pixels, batch)
                self.blind[batch.rows], self.why_blind = True, str(problem).splitlines()[0]
            parts.append(logits)
        return finite(parts)

    def _look_near(self) -> None:
        """Look again, near the clean image, where the gradient was zero; wrongly judged images are skipped."""
        self.blind &= self.correct
        if self.why_blind:
            return
        for batch in self._batches(self.blind):
            near = Ball.around(batch.pixels, self.threat).random(self.threat, "look", 0, batch)
            _, _, gradient = self.target.gradient(near, batch, cross_entropy)
            self.blind[batch.rows] = gradient.flatten(1).count_nonzero(dim=1) == 0

    def _randomised(self) -> bool:
        """Whether a second pass of a few clean images gives other logits than the first."""
        rows = torch.arange(min(_SAMPLE, len(self.pixels)), device=self.pixels.device)
        before = self.own_clean[rows]
        again = self.target.logits(self.pixels[rows], ImageBatch(self.pixels[rows], self.labels[rows], rows))
        return bool(((again - before).abs() > 0.01 * (1 + before.abs())).any())

    def _attack(self, name: str, allowed: Tensor, bar: Progress) -> AttackRecord:
        """One attack with all its restarts and goals, on what is still robust of the images `[N]` allowed."""
        begin = time.perf_counter()
        self.target.forwards = self.target.backwards = self.judge.forwards = 0
        before = self.broken.clone()
        attempted = int((self.correct & ~before & allowed).sum())
        ranks = range(self.goals.shape[1]) if name in _TARGETED else [None]
        runs = [(restart, rank) for restart in range(1 if name == "fgsm" else self.threat.restarts) for rank in ranks]
        task = bar.add_task(name, total=attempted * len(runs))
        outside = 0
        for number, (restart, rank) in enumerate(runs, 1):
            for batch in self._batches(self.correct & ~self.broken & allowed):
                goals = None if rank is None else self.goals[batch.rows, rank]
                known = None if self.gradient is None else self.gradient[batch.rows]
                aimed = ImageBatch(batch.pixels, batch.labels, batch.rows, goals, known)
                outside += self._keep(aimed, IMAGE_ATTACKS[name](self.target, aimed, self.threat, restart))
                bar.advance(task, len(batch))
            bar.update(task, completed=attempted * number, description=f"{name}: {int(self.broken.sum())} broken")
        return AttackRecord(
            attack=name,
            attempted=attempted,
            broken=int((self.broken & ~before).sum()),
            outside=outside,
            forwards=self.target.forwards + self.judge.forwards,
            backwards=self.target.backwards,
            seconds=time.perf_counter() - begin,
            robust_accuracy=float((self.correct & ~self.broken).double().mean()),
        )

    def _keep(self, batch: ImageBatch, images: Tensor) -> int:
        """Keep the found images that a fresh pass misjudges inside the budget; returns how many were outside it."""
        wrong = misjudged(self.judge.logits(images, batch), batch.labels)
        inside = allowed_images(images, batch.pixels, self.threat)
        rows = batch.rows[wrong & inside]
        self.adversarial[rows], self.broken[rows] = images[wrong & inside], True
        return int((wrong & ~inside).sum())


def allowed_images(images: Tensor, clean: Tensor, threat: ImagePart) -> Tensor:
    """Which images `[B]` are finite, in [0, 1] and within eps of the clean ones, to `TOLERANCE`."""
    size = lengths(images.double() - clean.double(), threat.norm)[:, 0, 0, 0]
    limit = threat.eps + TOLERANCE * max(1.0, threat.eps)
    in_box = ((images >= 0) & (images <= 1)).flatten(1).all(dim=1)  # false for NaN
    return in_box & (size <= limit)


def check_inputs(pixels: Tensor, labels: Tensor, extras: Sequence[Tensor], batch_size: int) -> None:
    """Raise BadInputError unless pixels, labels and extras have the form that `attack` asks for."""
    if pixels.ndim != 4 or not len(pixels) or pixels.dtype != torch.float32:
        raise BadArgumentError(
            f"pixels must be [N, C, H, W] float32 in [0, 1], got {list(pixels.shape)} {pixels.dtype}"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise BadArgumentError(
            f"pixels must be in [0, 1], got {low:g} to {high:g}: normalisation belongs into the model"
        )
    if labels.shape != (len(pixels),) or labels.is_floating_point() or labels.is_complex():
        raise BadArgumentError(f"labels must be [{len(pixels)}] integers, got {list(labels.shape)} {labels.dtype}")
    for number, extra in enumerate(extras):
        if len(extra) != len(pixels):
            raise BadArgumentError(f"extras[{number}] has {len(extra)} rows for {len(pixels)} images")
    if batch_size < 1:
        raise BadArgumentError(f"batch_size must be at least 1, got {batch_size}")


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise BadInputError for a label that is none of the model's classes."""
    if labels.min() < 0 or labels.max() >= classes:
        given = f"{int(labels.min())} to {int(labels.max())}"
        raise BadArgumentError(f"labels must be 0 to {classes - 1}, the classes of the model, got {given}")


def finite(parts: list[Tensor]) -> Tensor:
    """All logits `[N, K]` of clean inputs. Raises BadInputError if some are not finite."""
    logits = torch.cat(parts)
    wrong = (~logits.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if wrong:
        raise BadDataError(f"the logits of clean inputs {wrong[:8]} are not finite: nothing to attack there")
    return logits
