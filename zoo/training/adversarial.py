"""Adversarial training of classifiers: each step trains on the worst inputs that a short attack finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias, cast

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.adversary.image.target import evaluation_mode
from zoo.adversary.text.target import input_embedding
from zoo.adversary.threat import ImagePart
from zoo.adversary.training import Inputs, TextHardening, Words, WordSwaps, scaled, training_threat, worst_inputs
from zoo.errors import BadArgumentError
from zoo.training.base import Trainable
from zoo.training.classification import Classification
from zoo.training.data import Batch
from zoo.training.ranking import Mean, UnsafeRanking

Method = Literal["pgd", "trades", "fast"]
Generators: TypeAlias = Sequence[torch.Generator]


class Adversarial(Classification):
    """`Classification` on attacked inputs. The attack sees the model in evaluation mode, the step in training mode.

    `pgd`: the loss of the worst image in the ball (Madry et al. 2018, arXiv 1706.06083), from a random start. `fast`:
    the same with a single step of 1.25 eps (Wong et al. 2020, arXiv 2001.03994). It may overfit to its own attack from
    one epoch to the next, which `val/robust_accuracy` shows. `trades`: the loss of the clean input plus `beta` times
    the divergence of the attacked answer from the clean one, and the attack raises this divergence (Zhang et al. 2019,
    arXiv 1901.08573, eq. 5; their start is a small noise, ours is uniform in the ball). With `text.hotflip_words` the
    first backward pass of the attack also exchanges words, and the other passes attack the image with these words:
    joint training.

    Validation also logs `val/robust_accuracy` and `val/robust_auroc` under PGD and the same changes of words.

    Args:
        model: registry name of a classifier.
        method: how images are attacked; None leaves them alone.
        threat: `{norm: Linf, eps: 4/255, steps: 10, step_size: 1/255}` on pixels in [0, 1]; 10 steps of 2.5 eps / steps
            unless given.
        beta: weight of the divergence in TRADES.
        eps_warmup: share of all steps in which eps rises from 0.
        clean_share: share of rows that are not attacked.
        text: changes of the prompts, see `TextHardening`: `{share: 0.5, hotflip_words: 3, protected: [dog]}`.
        val_attack_batches: how many batches' worth of rows validation attacks, evenly spaced over the split.
        val_attack_steps: PGD steps in validation; more than in training, or overfitting to the attack would not show.
        kwargs: arguments of `Classification` and `Base`.
    """

    def __init__(
        self,
        model: str,
        *,
        method: Method | None = None,
        threat: dict[str, Any] | None = None,
        beta: float = 6.0,
        eps_warmup: float = 0.0,
        clean_share: float = 0.0,
        text: dict[str, Any] | None = None,
        val_attack_batches: int = 2,
        val_attack_steps: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        card = self.model.card
        if method is None and text is None:
            raise BadArgumentError("adversarial training attacks something: give method, text or both")
        if (method is None) != (threat is None):
            raise BadArgumentError(f"method and threat go together, got {method} and {threat}")
        if method is not None and card.image is None:
            raise BadArgumentError(f'{model} reads no image: method "{method}" has nothing to attack')
        if text is not None and not card.reads_text:
            raise BadArgumentError(f"{model} reads no text: leave text out")
        for name, share in (("eps_warmup", eps_warmup), ("clean_share", clean_share)):
            if not 0 <= share <= 1:
                raise BadArgumentError(f"{name} is a share in [0, 1], got {share}")
        if beta <= 0:
            raise BadArgumentError(f"beta must be above 0, got {beta}")
        self.method, self.beta, self.eps_warmup, self.clean_share = method, beta, eps_warmup, clean_share
        self.threat = None if threat is None else training_threat(threat, single_step=method == "fast")
        self.text = None if text is None else TextHardening.from_dict(text)
        self.val_attack_batches = val_attack_batches
        self.val_threat = self.threat and training_threat(
            {"norm": self.threat.norm, "eps": self.threat.eps, "steps": val_attack_steps}
        )
        self.robust_accuracy, self.robust_ranking = Mean(), UnsafeRanking()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on `[B]` rows, attacked first."""
        target = self._target(batch)
        attacked = _draws(len(target)) >= self.clean_share
        batch, edited = self._edited(batch, target, attacked)
        inputs = self._inputs(batch, drop=True)
        threat = None if self.threat is None else scaled(self.threat, warm_share(self, self.eps_warmup))
        worst = self._worst_case(inputs, target, attacked, attacked & ~edited, threat)
        answer = self.model(*worst)
        if self.method == "trades":
            clean = self.model(*inputs)
            loss: Tensor = self.criterion(clean, target) + self.beta * self.divergence(clean, answer)
        else:
            loss = self.criterion(answer, target)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(target))
        if threat is not None:
            self.log("train/eps", threat.eps, batch_size=len(target))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """As in `Classification`, and some rows under attack."""
        super().validation_step(batch, batch_idx)
        taken = spaced_rows(self.trainer, self.val_attack_batches, batch_idx, len(batch["labels"]))
        if taken.any():
            self._evaluate_attacked(batch, batch_idx, taken)

    def on_validation_epoch_end(self) -> None:
        """As in `Classification`, and the figures of the rows under attack."""
        super().on_validation_epoch_end()
        self.log_means(robust_accuracy=self.robust_accuracy)
        self.log_ranking(self.robust_ranking, "robust_", ["auroc"])

    def divergence(self, clean: Tensor, other: Tensor) -> Tensor:
        """Mean Kullback-Leibler divergence of answers from the clean ones, both logits `[B, L]`.

        For softmax it is that of the distribution over the labels, for sigmoid the mean of that of each label.
        """
        clean, other = clean.float(), other.float()
        if self.model.card.score == "softmax":
            return F.kl_div(other.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)
        share = clean.sigmoid()
        cross = F.binary_cross_entropy_with_logits(other, share)
        return cross - F.binary_cross_entropy_with_logits(clean, share)

    def _edited(
        self, batch: Batch, target: Tensor, attacked: Tensor, generators: Generators | None = None
    ) -> tuple[Batch, Tensor]:
        """The batch with character edits in a share of the attacked rows, and which rows `[B]` were drawn for them."""
        texts = batch.get("texts")
        edited = torch.zeros(len(attacked), dtype=torch.bool)
        if self.text is None or texts is None or not self.text.share:
            return batch, edited
        edited = attacked & (_draws(len(attacked), generators) < self.text.share)
        rows = [row for row in edited.nonzero()[:, 0].tolist() if texts[row]]
        own = None if generators is None else [generators[row] for row in rows]
        options = [self._edits(texts, rows, own) for _ in range(self.text.worst_of)]
        chosen = options[0] if len(options) == 1 else self._worst_edits(batch, target, rows, options)
        changed: list[str | None] = list(texts)
        for row, text in zip(rows, chosen, strict=True):
            changed[row] = text
        return {**batch, "texts": changed}, edited

    def _edits(self, texts: Sequence[str | None], rows: list[int], generators: Generators | None) -> list[str]:
        assert self.text is not None
        seeds = (_draws(len(rows), generators).double() * 2**31).long().tolist()
        return [self.text.edited(texts[row] or "", seed) for row, seed in zip(rows, seeds, strict=True)]

    @torch.no_grad()
    def _worst_edits(self, batch: Batch, target: Tensor, rows: list[int], options: list[list[str]]) -> list[str]:
        """From several texts for each of the rows, the one with the highest loss beside the clean image."""
        if not rows:
            return []
        part, wanted = rows_of(batch, rows), target[rows]
        with evaluation_mode(self.model):
            answers = [self.model(*self._inputs({**part, "texts": [*texts]}, drop=False)) for texts in options]
        each = range(len(rows))
        losses = [
            torch.stack([self.criterion(answer[n : n + 1], wanted[n : n + 1]) for n in each]) for answer in answers
        ]
        worst = torch.stack(losses).argmax(dim=0).tolist()  # one wait for the GPU, not one a text
        return [options[which][n] for n, which in enumerate(worst)]

    def _worst_case(
        self,
        inputs: list[Tensor],
        target: Tensor,
        attacked: Tensor,
        worded: Tensor,
        threat: ImagePart | None,
        generators: Generators | None = None,
    ) -> list[Tensor]:
        """The inputs with the images of the rows `attacked` `[B]` and the words of the rows `worded` `[B]` replaced."""
        names = self.model.card.input_names
        attacked, worded = attacked.to(target.device), worded.to(target.device)
        if threat is None:
            attacked = torch.zeros_like(attacked)
        elif "image_present" in names:
            attacked = attacked & inputs[names.index("image_present")]
        if self.text is None or not self.text.hotflip_words:
            worded = torch.zeros_like(worded)
        rows = (attacked | worded).nonzero()[:, 0]
        if not len(rows):
            return inputs
        with evaluation_mode(self.model):
            # Cloned, for validation makes them in inference mode, where nothing can be kept for a gradient.
            part = {name: value.detach()[rows].clone() for name, value in zip(names, inputs, strict=True)}
            objective = self._objective(part, target[rows].clone())
            own = None if generators is None else [generators[row] for row in rows.tolist()]
            words = None
            if self.text is not None and worded.any():
                words = Words(self.swaps, self.text.hotflip_words, worded[rows])
            changed = worst_inputs(objective, part, threat if attacked.any() else None, words, own)
        worst = list(inputs)
        for name, kept in (("image", attacked[rows]), ("input_ids", worded[rows])):
            if name in names:
                place = names.index(name)
                worst[place] = inputs[place].index_copy(0, rows[kept], changed[name][kept])
        return worst

    def _objective(self, part: Inputs, target: Tensor) -> Callable[[Inputs], Tensor]:
        """The objective of the attack: the training criterion, or for TRADES the divergence from the clean answer."""
        count = len(target)  # a mean over many rows would underflow in float16
        if self.method != "trades":
            return lambda inputs: self.criterion(self.model(*inputs.values()), target) * count
        with torch.no_grad():
            clean = self.model(*part.values())
        return lambda inputs: self.divergence(clean, self.model(*inputs.values())) * count

    @cached_property  # not in the constructor: a checkpoint may bring another tokenizer after setup()
    def swaps(self) -> WordSwaps:
        """Exchanges of words for the model's tokenizer and embedding."""
        assert self.model.tokenizer_json is not None  # the model reads text
        protected = self.text.protected if self.text is not None else ()
        return WordSwaps(self.model.tokenizer_json, input_embedding(self.model), protected)

    def _evaluate_attacked(self, batch: Batch, batch_idx: int, taken: Tensor) -> None:
        target = self._target(batch)
        # The same edits and the same start in every epoch, whatever stands beside a row.
        batch, edited = self._edited(batch, target, taken, row_generators(batch["lines"]))
        inputs, generators = self._inputs(batch, drop=False), row_generators(batch["lines"], self.device)
        worst = self._worst_case(inputs, target, taken, taken & ~edited, self.val_threat, generators)
        rows = taken.nonzero()[:, 0].to(target.device)
        logits, target = self.model(*(value[rows] for value in worst)).float(), target[rows]
        if self.model.card.score == "softmax":
            right = (logits.argmax(dim=1) == target).float()
        else:
            known = ~target.isnan()
            right = ((logits > 0) == (target > 0.5))[known].float()
        self.robust_accuracy.update(right)
        self.robust_ranking.update(*self._ranked(self._scores(logits), [batch["labels"][row] for row in rows.tolist()]))


def warm_share(module: Trainable, warmup: float) -> float:
    """The share in (0, 1] of eps that this step attacks with: rising for `warmup`, a share of all steps, then 1."""
    return min(1.0, (module.global_step + 1) / max(1.0, module.steps_of(warmup) if warmup else 0.0))


def spaced_rows(trainer: lightning.Trainer, batches: int, batch_idx: int, count: int) -> Tensor:
    """Which of `count` rows `[B]` bool of a validation batch to attack: in all `batches` batches' worth of rows.

    They are evenly spaced over the whole split, because manifests are often sorted by label. None in testing.
    """
    if batches < 1 or trainer.testing:
        return torch.zeros(count, dtype=torch.bool)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    rows = len(trainer.val_dataloaders.dataset)  # type: ignore[union-attr]
    whole = min(math.ceil(rows / data.batch_size), int(sum(trainer.num_val_batches)) * trainer.world_size)
    stride = max(1, whole // batches)
    places = (batch_idx * data.batch_size + torch.arange(count)) * trainer.world_size + trainer.global_rank
    chosen: Tensor = places % stride == 0
    return chosen


def row_generators(lines: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """A generator of random numbers for each row, seeded by its line in the manifest."""
    return [torch.Generator(device).manual_seed(line) for line in lines]


def _draws(count: int, generators: Generators | None = None) -> Tensor:
    """Numbers `[count]` float32 in [0, 1): from torch's own stream, or each from a generator of its own.

    In `bf16-true` torch would draw one of 256 numbers.
    """
    if generators is None:
        return torch.rand(count, dtype=torch.float32)
    drawn = [float(torch.rand((), generator=one, dtype=torch.float32)) for one in generators]
    return torch.tensor(drawn, dtype=torch.float32)


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch, in this order."""
    picked = {
        name: value[rows] if isinstance(value, Tensor) else [cast("list[object]", value)[row] for row in rows]
        for name, value in batch.items()
    }
    return cast("Batch", picked)
