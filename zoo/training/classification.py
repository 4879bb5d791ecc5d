"""Training of classifiers of an image, a prompt, or both together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError, BadDataError, close_match
from zoo.models.clip_weights import fill_towers
from zoo.models.lora import add_adapters
from zoo.release.checkpoint import CHECKPOINT_KEY
from zoo.release.imports import read_clip
from zoo.training.base import Base
from zoo.training.data import Batch, need_inputs
from zoo.training.freeze import checkpoint_gradients, freeze_norms, freeze_parts
from zoo.training.ranking import Mean, UnsafeRanking


class Classification(Base):
    """Cross-entropy (softmax cards) or binary cross-entropy (sigmoid cards) on the labels of the manifest.

    Averaged weights (EMA) are a callback of Lightning's, `lightning.pytorch.callbacks.EMAWeightAveraging`: its
    checkpoints, and so releases, hold the averaged ones.

    Validated by loss, and by AUROC and AUPRC of the policy's unsafe score against rows that the policy would
    block for their label.

    Args:
        model: registry name of a classifier.
        clip_weights: a CLIP to start both towers from: `hf-hub:ORG/NAME`, a directory or a release with all layers.
        freeze: modules that are not trained, such as `[text_tower]`: no gradients, no dropout, no new statistics.
        unfreeze: modules inside these that are trained, `[text_tower.bert.encoder.layer.5]`; the longest name counts.
        freeze_norm: keep the running statistics of the batch norms of a convolutional backbone.
        lora: `{r, alpha, dropout, target_modules}`: of the towers train only low-rank adapters (Hu et al. 2021,
            arXiv 2106.09685) on these linear layers; `zoo release` merges them.
        gradient_checkpointing: compute the activations of the transformers again in the backward pass, to save memory.
        class_weights: factor of each label in the loss, by its name; 1 for labels left out.
        focal_gamma: exponent of the focal loss, 0 or more; 0 is plain cross-entropy.
        label_smoothing: share of the target in [0, 1) that is spread over all answers.
        label_names: what the manifest calls the labels, `{"1": unsafe, "0": safe}`.
        image_dropout: share of rows that train without their image, if the model does not need it.
        text_dropout: share of rows that train without their text, if the model does not need it. No row loses both.
        kwargs: arguments of `Base`.
    """

    def __init__(
        self,
        model: str,
        *,
        clip_weights: str | None = None,
        freeze: list[str] | None = None,
        unfreeze: list[str] | None = None,
        freeze_norm: bool = False,
        lora: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        class_weights: dict[str, float] | None = None,
        focal_gamma: float = 0.0,
        label_smoothing: float = 0.0,
        label_names: dict[str, str] | None = None,
        image_dropout: float = 0.0,
        text_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        card = self.model.card
        if card.task != "classification":
            raise BadArgumentError(f"{model} is zero-shot and has no labels to train on: use Contrastive")
        if (image_dropout or text_dropout) and (card.requires or not card.reads_text):
            raise BadArgumentError(f"{model} needs {' and '.join(card.requires)} in every row: no dropout of either")
        if clip_weights:
            clip = read_clip(clip_weights, with_text=True)
            fill_towers(self.model, clip, clip)
            self.model.begun_from(f"CLIP towers: {clip.source}", clip.licence)
            self._codec = self.model.codec()
        freeze_parts(self.model, freeze or (), unfreeze or ())
        if freeze_norm:
            freeze_norms(self.model)
        self.lora = lora
        if lora is not None:
            add_adapters(self.model, lora)
        if gradient_checkpointing:
            checkpoint_gradients(self.model)
        self.criterion = Criterion(card, class_weights, focal_gamma, label_smoothing)
        self.label_names = label_names or {}
        self.image_dropout, self.text_dropout = image_dropout, text_dropout
        blocking = {c.name: c.labels or (c.name,) for c in self.policy.categories if c.action != "allow"}
        self._unsafe = {label for labels in blocking.values() for label in labels}
        self.mean_loss, self.ranking = Mean(), UnsafeRanking()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which adapters the weights have, so that a release can merge them."""
        super().on_save_checkpoint(checkpoint)
        if self.lora is not None:
            checkpoint[CHECKPOINT_KEY]["lora"] = self.lora

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on `[B]` rows."""
        target = self._target(batch)
        loss: Tensor = self.criterion(self.model(*self._inputs(batch, drop=True)), target)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(target))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect loss and ranking figures."""
        target = self._target(batch)
        logits = self.model(*self._inputs(batch, drop=False))
        self.mean_loss.update(self.criterion(logits, target), weight=self.criterion.size(target))
        self.ranking.update(*self._ranked(self._scores(logits), batch["labels"]))

    def on_validation_epoch_end(self) -> None:
        """Log loss and ranking of all batches."""
        self.log_means(loss=self.mean_loss)
        self.log_ranking(self.ranking)

    def _scores(self, logits: Tensor) -> Tensor:
        logits = logits.float()  # a softmax in bfloat16 does not add up to 1
        return logits.softmax(dim=-1) if self.model.card.score == "softmax" else logits.sigmoid()

    def _ranked(self, scores: Tensor, rows: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """The policy's unsafe score `[B]` of scores `[B, L]`, and 1 `[B]` where it would block a label of the row."""
        truth = [int(any(self._label(label) in self._unsafe for label in row)) for row in rows]
        return self.unsafe_score(scores), torch.tensor(truth, device=self.device)

    def _inputs(self, batch: Batch, *, drop: bool) -> list[Tensor]:
        """The tensors of `card.input_names`, as the model takes them."""
        card = self.model.card
        inputs: list[Tensor] = []
        count = len(batch["labels"])
        image_there = batch.get("image_present", torch.zeros(count, dtype=torch.bool)).to(self.device)
        texts = batch.get("texts") or [None] * count
        text_there = torch.tensor([text is not None for text in texts], device=self.device)
        need_inputs(card, image_there, text_there)
        if drop:
            chance = torch.rand(count, device=self.device, dtype=torch.float32)
            both = image_there & text_there
            image_there = image_there & ~(both & (chance < self.image_dropout))
            text_there = text_there & ~(both & (chance > 1 - self.text_dropout))
        if card.image is not None:
            blank = torch.zeros(count, 3, card.image.size, card.image.size, device=self.device)
            inputs.append(batch.get("pixels", blank))
        if card.reads_text:
            ids, mask = self.tokens([text or "" for text in texts])
            inputs += [ids * text_there[:, None], mask * text_there[:, None]]
        if "image_present" in card.input_names:
            inputs.append(image_there)
        return inputs

    def _label(self, name: str) -> str:
        return self.label_names.get(name, name)

    def _target(self, batch: Batch) -> Tensor:
        """Class indices `[B]` for softmax, `[B, L]` of 0, 1 and NaN (not judged) for sigmoid.

        Raises BadInputError on labels that the model does not have, and for softmax on rows without exactly one.
        """
        labels, rows = self.model.card.labels, batch["labels"]
        judged = batch.get("judged") or [None] * len(rows)
        for name in sorted({name for row in [*rows, *judged] for name in row or ()}):
            if self._label(name) not in labels:
                raise BadDataError(f'the manifest has a label "{name}"' + close_match(self._label(name), labels))
        if self.model.card.score == "sigmoid":
            hot = torch.tensor([[label in map(self._label, row) for label in labels] for row in rows]).float()
            known = [[row is None or label in map(self._label, row) for label in labels] for row in judged]
            return hot.masked_fill(~torch.tensor(known), torch.nan).to(self.device)
        wrong = next((row for row in rows if len(row) != 1), None)
        if wrong is not None:
            raise BadDataError(f"{self.model.card.name} needs exactly one label in each row, got {list(wrong)}")
        return torch.tensor([labels.index(self._label(row[0])) for row in rows], device=self.device)


class Criterion(nn.Module):
    """Logits `[B, L]` and targets to a mean loss, in float32 for logits of any precision.

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
        # No buffer: that would become bfloat16 with the model, and a count of rows would be rounded to 8 bits.
        self.factors = [(weights or {}).get(label, 1.0) for label in card.labels]

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean loss."""
        with torch.autocast(logits.device.type, enabled=False):
            return self._exclusive(logits.float(), target) if self.softmax else self._each(logits.float(), target)

    def size(self, target: Tensor) -> Tensor:
        """What the mean is divided by: means of parts, weighted by it, give the mean of all."""
        return self._weight(target)[target].sum() if self.softmax else (~target.isnan()).sum()

    def _weight(self, target: Tensor) -> Tensor:
        """The factor of each label `[L]`."""
        return torch.tensor(self.factors, device=target.device, dtype=torch.float32)

    def _exclusive(self, logits: Tensor, target: Tensor) -> Tensor:
        log_p = logits.log_softmax(dim=1)
        wanted = F.one_hot(target, logits.shape[1]).float() * (1 - self.smoothing) + self.smoothing / logits.shape[1]
        terms = -wanted * self._weight(target) * log_p
        if self.gamma:
            terms = terms * _power(1 - log_p.exp(), self.gamma)
        return terms.sum() / self.size(target)

    def _each(self, logits: Tensor, target: Tensor) -> Tensor:
        known = ~target.isnan()
        wanted = target.nan_to_num() * (1 - self.smoothing) + self.smoothing / 2
        there, absent = -F.logsigmoid(logits) * self._weight(target), -F.logsigmoid(-logits)
        if self.gamma:
            p = logits.sigmoid()
            there, absent = there * _power(1 - p, self.gamma), absent * _power(p, self.gamma)
        losses = wanted * there + (1 - wanted) * absent
        return (losses * known).sum() / self.size(target).clamp(min=1)


def _power(base: Tensor, exponent: float) -> Tensor:
    """Power of a probability; below exponent 1 its derivative at 0 is infinite, so 0 is kept away."""
    return base.clamp(min=1e-6) ** exponent
