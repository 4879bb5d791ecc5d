"""Contrastive pre-training of an image and a text tower (CLIP, Radford et al. 2021; locked tower: LiT, Zhai 2022)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import BadInputError
from zoo.evaluation.metrics import auroc, recall_at_k
from zoo.judge import phrases
from zoo.models.dual_encoder import DualEncoder
from zoo.training.base import Base
from zoo.training.data import Batch


class Contrastive(Base):
    """Symmetric InfoNCE on image-text pairs; validated by retrieval and by the policy's zero-shot AUROC.

    Args:
        model: registry name of a zero-shot model.
        model_args: hyperparameters to change, see `zoo show NAME`.
        policy: policy file, as given or as shipped; the model's own when None. It judges, it never trains.
        init_from: a release to start from instead of random weights.
        lr: peak learning rate.
        weight_decay: AdamW's, on matrices only.
        warmup: share of all steps in which the learning rate rises from 0.
        label_smoothing: of the cross-entropy over the batch.
        positive_label: the label that marks a row as unsafe, where the manifest has labels.
        recipe: name of the recipe, for the card.
    """

    model: DualEncoder

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any] | None = None,
        policy: str | None = None,
        init_from: str | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup: float = 0.05,
        label_smoothing: float = 0.0,
        positive_label: str = "1",
        recipe: str = "",
    ) -> None:
        super().__init__(model, model_args, policy, init_from, lr, weight_decay, warmup)
        self.save_hyperparameters()
        if not isinstance(self.model, DualEncoder):
            raise BadInputError(f"{model} has no text tower to train against; see `zoo list --task zero_shot`")
        self.label_smoothing, self.positive_label = label_smoothing, positive_label
        self._seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on `[B]` pairs."""
        image, text = self._embed(batch)
        loss = self._loss(image, text, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(image))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the embeddings; the figures come from all of them together."""
        image, text = self._embed(batch)
        unsafe = [float("nan") if not row else float(self.positive_label in row) for row in batch["labels"]]
        self._seen.append((image, text, batch["group"], torch.tensor(unsafe)))

    def on_validation_epoch_end(self) -> None:
        """Log retrieval both ways and, where there are labels, the AUROC of the policy."""
        self._report("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self._report("test")

    def scores(self, batch: Batch) -> Tensor:
        """Scores `[B, P]` of the policy's phrases."""
        if "pixels" not in batch or not batch["image_present"].all():
            raise BadInputError(f"{self.model.card.name} needs an image in every row of the manifest")
        bank = self.model.embed_phrases(phrases(self.policy))
        logits: Tensor = self.model(batch["pixels"], bank)
        return logits.softmax(dim=-1)

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        texts = [text for text in batch.get("texts", ()) if text is not None]
        if "pixels" not in batch or len(texts) < len(batch["labels"]) or not batch["image_present"].all():
            raise BadInputError("contrastive training needs an image and a text in every row of the manifest")
        return self.model.encode_image(batch["pixels"]), self.model.encode_text(*self.tokens(texts))

    def _loss(self, image: Tensor, text: Tensor, batch: Batch) -> Tensor:
        logits = self.model.scale() * image @ text.transpose(0, 1)
        # Another caption of the same image, or the same words of another one, is no negative.
        words: dict[str | None, int] = {}
        same_text = torch.tensor([words.setdefault(t, len(words)) for t in batch["texts"]], device=self.device)
        twins = (same_text[:, None] == same_text) | (batch["group"][:, None] == batch["group"])
        twins.fill_diagonal_(False)
        logits = logits.masked_fill(twins, torch.finfo(logits.dtype).min)
        target = torch.arange(len(logits), device=self.device)
        smooth = self.label_smoothing
        if smooth == 0:
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return (_smooth(logits, twins, smooth) + _smooth(logits.T, twins.T, smooth)) / 2

    def _report(self, stage: str) -> None:
        image, text, group, unsafe = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        # A photo with five captions comes five times: keep it once, and every caption.
        _, inverse = torch.unique(group, return_inverse=True)
        first = torch.zeros(int(inverse.max()) + 1, dtype=torch.long, device=inverse.device)
        first.scatter_(0, inverse.flip(0), torch.arange(len(inverse), device=inverse.device).flip(0))
        similarity = text @ image[first].transpose(0, 1)
        figures = {f"{stage}/{key}": value for key, value in recall_at_k(similarity, inverse).items()}
        labelled = ~unsafe.isnan()
        if labelled.any():
            bank = self.model.embed_phrases(phrases(self.policy))
            scores = (self.model.scale() * image @ bank.transpose(0, 1)).softmax(dim=-1).cpu().numpy()
            ranked = self.judge.unsafe_score(self.judge.category_scores(scores))
            area = auroc(ranked[labelled.cpu().numpy()].tolist(), unsafe[labelled].int().tolist())
            if area is not None:
                figures[f"{stage}/auroc"] = area
        self.log_dict(figures)
        self.log(f"{stage}/r1", figures[f"{stage}/text_to_image_r1"], prog_bar=True, logger=False)


def _smooth(logits: Tensor, twins: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy to the diagonal, smoothed over the true negatives only."""
    log_probabilities = logits.log_softmax(dim=1).masked_fill(twins, 0.0)
    hit = log_probabilities.diagonal()
    share = log_probabilities.sum(dim=1) / (~twins).sum(dim=1)
    return -((1 - smoothing) * hit + smoothing * share).mean()
