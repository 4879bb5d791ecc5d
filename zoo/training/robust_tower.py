"""Adversarial fine-tuning of a zero-shot model's image tower, FARE and TeCoA; the text tower does not change."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.adversary.image.target import evaluation_mode
from zoo.adversary.threat import ImagePart
from zoo.adversary.training import perturb_pixels, scaled, training_threat
from zoo.errors import BadArgumentError, BadDataError, close_match
from zoo.judging.banks import policy_bank
from zoo.models.clip import DualEncoder
from zoo.training.adversarial import Generators, row_generators, rows_of, spaced_rows, warm_share
from zoo.training.base import Base
from zoo.training.data import Batch, ManifestData
from zoo.training.freeze import freeze_parts
from zoo.training.ranking import Mean, UnsafeRanking

log = logging.getLogger("zoo.training")

#: Linf 4/255 by ten steps of 1/255, as FARE and TeCoA are published.
PUBLISHED = {"norm": "Linf", "eps": "4/255", "steps": 10, "step_size": "1/255"}


class RobustTower(Base):
    """Fine-tunes the image tower on attacked images. The text tower does not change, so every policy still works.

    `fare` (Schlarmann et al. 2024, arXiv 2402.12336, eq. 3) needs no labels: the embedding of the attacked image is
    pulled to the one that the original tower gives the clean image, by the squared L2 distance of the projected, not
    normalised embeddings. `tecoa` (Mao et al. 2023, arXiv 2212.07016): cross-entropy of the attacked image against the
    phrases of the policy, a category's probability being the sum of its phrases'. The attack raises the same loss.

    Validated by that loss and by the policy's AUROC, clean and under attack (`val/robust_loss`, `val/robust_auroc`).

    Args:
        model: registry name of a zero-shot model, the hardened tag.
        init_from: the release to harden: the same architecture, under another tag or the same.
        method: `fare` or `tecoa`.
        threat: `{norm: Linf, eps: 4/255, steps: 10, step_size: 1/255}`, the default, on pixels in [0, 1].
        eps_warmup: share of all steps in which eps rises from 0.
        label_names: which category of the policy a label of the manifest is, `{"1": forbidden_signs, "0": neutral}`.
        lr: peak learning rate.
        weight_decay: AdamW's, on matrices only.
        warmup: share of all steps in which the learning rate rises from 0.
        val_attack_batches: how many batches' worth of rows validation attacks, evenly spaced over the split.
        kwargs: arguments of `Base`. TeCoA trains on the phrases of `policy`.
    """

    model: DualEncoder
    preset = ("model_args", "image_weights", "text_weights")

    def __init__(
        self,
        model: str,
        *,
        init_from: str,
        method: Literal["fare", "tecoa"] = "fare",
        threat: dict[str, Any] | None = None,
        eps_warmup: float = 0.0,
        label_names: dict[str, str] | None = None,
        lr: float = 1e-5,
        weight_decay: float = 1e-4,
        warmup: float = 0.07,
        val_attack_batches: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model,
            model_args=None,
            init_from=init_from,
            image_weights=None,
            text_weights=None,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            **kwargs,
        )
        if not isinstance(self.model, DualEncoder):
            raise BadArgumentError(f"{model} has no text tower to keep to: train a zero_shot model (`zoo list`)")
        if not 0 <= eps_warmup <= 1:
            raise BadArgumentError(f"eps_warmup is a share in [0, 1], got {eps_warmup}")
        self.method, self.eps_warmup, self.val_attack_batches = method, eps_warmup, val_attack_batches
        self.threat = training_threat(PUBLISHED if threat is None else threat)
        self.label_names = label_names or {}
        names = [category.name for category in self.policy.categories]
        for name in self.label_names.values():
            if name not in names:
                raise BadArgumentError(f'label_names: the policy has no category "{name}"' + close_match(name, names))
        freeze_parts(self.model, ["text_tower", "logit_scale"])
        # In a list, so that it is not a submodule: a checkpoint need not hold what the release holds.
        self._original = [copy.deepcopy(self.model.image_tower).requires_grad_(False).eval()]
        self._bank: Tensor | None = None
        self.clean_loss, self.robust_loss = Mean(), Mean()
        self.ranking, self.robust_ranking = UnsafeRanking(), UnsafeRanking()

    def setup(self, stage: str) -> None:
        """Also warn of labels none of which is a category of the policy."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ManifestData):
            data.setup(stage)
            labels = {label for row in data.rows for label in row.labels}
            if labels and not any(self._categories((label,)) for label in labels):
                names = ", ".join(category.name for category in self.policy.categories)
                log.warning("no ranking is logged: no label (%s) is a category (%s)", ", ".join(sorted(labels)), names)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on `[B]` images, attacked first."""
        pixels = self.pixels(batch)
        loss_of = self._loss_of(pixels, batch)
        threat = scaled(self.threat, warm_share(self, self.eps_warmup))
        loss = loss_of(self._attack(pixels, loss_of, threat))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(pixels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and AUROC of the clean images, and of some rows under attack."""
        pixels = self.pixels(batch)
        self._collect(batch, pixels, pixels, self.clean_loss, self.ranking)
        rows = spaced_rows(self.trainer, self.val_attack_batches, batch_idx, len(pixels))
        if rows.any():
            part = rows_of({"labels": batch["labels"], "lines": batch["lines"]}, rows.nonzero()[:, 0].tolist())
            with torch.inference_mode(False):
                clean = pixels[rows.to(self.device)].clone()
                starts = row_generators(part["lines"], self.device)  # the same in every epoch
                attacked = self._attack(clean, self._loss_of(clean, part), self.threat, starts)
            self._collect(part, clean, attacked, self.robust_loss, self.robust_ranking)

    def on_validation_epoch_end(self) -> None:
        """Log losses and rankings of all batches."""
        self.log_means(loss=self.clean_loss, robust_loss=self.robust_loss)
        self.log_ranking(self.ranking, names=["auroc"])
        self.log_ranking(self.robust_ranking, "robust_", ["auroc"])

    def bank(self) -> Tensor:
        """The policy's phrases `[P, D]` over its temperature, embedded once: the text tower does not change."""
        if self._bank is None:
            with torch.inference_mode(False), evaluation_mode(self.model.text_tower):
                self._bank = policy_bank(self.policy, self.model.embed_phrases)
        return self._bank.to(self.device)

    def _loss_of(self, clean: Tensor, batch: Batch) -> Callable[[Tensor], Tensor]:
        """The loss as a function of the pixels that replace `clean` `[B, 3, S, S]`."""
        if self.method == "fare":
            with torch.no_grad():
                wanted = self._original[0].to(clean.device)(clean).embedding.float()
            return lambda pixels: (self.model.image_tower(pixels).embedding.float() - wanted).square().sum(dim=1).mean()
        target = torch.tensor([self._category(row) for row in batch["labels"]], device=clean.device)
        bank = self.bank()

        def loss(pixels: Tensor) -> Tensor:
            each = self.model(pixels, bank).float().log_softmax(dim=1)
            categories = torch.stack([each[:, part].logsumexp(dim=1) for part in self.judge.members], dim=1)
            return torch.nn.functional.nll_loss(categories, target)

        return loss

    def _attack(
        self,
        pixels: Tensor,
        loss_of: Callable[[Tensor], Tensor],
        threat: ImagePart,
        generators: Generators | None = None,
    ) -> Tensor:
        with evaluation_mode(self.model.image_tower):
            return perturb_pixels(lambda moved: loss_of(moved) * len(pixels), pixels, threat, generators)

    def _collect(self, batch: Batch, clean: Tensor, pixels: Tensor, mean: Mean, ranking: UnsafeRanking) -> None:
        """Add the loss of pixels that replace clean ones, and the policy's ranking of them."""
        with torch.no_grad():
            mean.update(self._loss_of(clean, batch)(pixels), weight=len(pixels))
            scores = self.model(pixels, self.bank()).float().softmax(dim=-1)
        truth = [self._unsafe(row) for row in batch["labels"]]
        known = [place for place, one in enumerate(truth) if one is not None]
        if known:
            unsafe = torch.tensor([truth[place] for place in known], device=self.device)
            ranking.update(self.unsafe_score(scores)[known], unsafe)

    def _categories(self, row: tuple[str, ...]) -> list[int]:
        """The categories that a row's labels belong to, by their name or by the policy's `labels`."""
        named = [self.label_names.get(label, label) for label in row]
        categories = self.policy.categories
        return [n for n, c in enumerate(categories) if any(one == c.name or one in c.labels for one in named)]

    def _unsafe(self, row: tuple[str, ...]) -> int | None:
        """1 if a category of the row blocks or asks for review, 0 if all allow, None for a row without a category."""
        actions = [self.policy.categories[number].action for number in self._categories(row)]
        return int(any(action != "allow" for action in actions)) if actions else None

    def _category(self, row: tuple[str, ...]) -> int:
        numbers = self._categories(row)
        if len(numbers) != 1:
            names = ", ".join(category.name for category in self.policy.categories)
            raise BadDataError(
                f"TeCoA needs exactly one category of the policy in each row ({names}), got the labels {list(row)}; "
                "label_names maps labels to categories"
            )
        return numbers[0]
