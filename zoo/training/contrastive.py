"""Contrastive pre-training of an image and a text tower (CLIP, Radford et al. 2021; locked tower: LiT, Zhai 2022)."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from zoo.data.manifest import need_label
from zoo.errors import BadArgumentError, BadDataError
from zoo.judging.banks import policy_bank
from zoo.metrics import auroc, recall_at_k
from zoo.models.clip import DualEncoder, unit
from zoo.models.conv_clip import ConvImageTower
from zoo.training.base import Base
from zoo.training.data import Batch, ManifestData
from zoo.training.freeze import freeze_parts
from zoo.training.order import gathered, processes


class Contrastive(Base):
    """Symmetric InfoNCE on image-text pairs; validated by retrieval and by the policy's zero-shot AUROC.

    The policy judges only; it is not trained on.

    Args:
        model: registry name of a zero-shot model.
        weight_decay: AdamW's, on matrices only.
        locked_views: above 0 the backbone of the image tower is locked (LiT), and its features of that many random
            views of each training image are computed once, before the first epoch.
        label_smoothing: of the cross-entropy over the batch.
        positive_label: the label that marks a row as unsafe, if the manifest has labels.
        kwargs: arguments of `Base`.
    """

    model: DualEncoder

    def __init__(
        self,
        model: str,
        *,
        weight_decay: float = 0.1,
        locked_views: int = 0,
        label_smoothing: float = 0.0,
        positive_label: str = "1",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, weight_decay=weight_decay, **kwargs)
        if not isinstance(self.model, DualEncoder):
            raise BadArgumentError(f"{model} has no text tower to train against: train a zero_shot model (`zoo list`)")
        self.label_smoothing, self.positive_label = label_smoothing, positive_label
        self.locked = LockedTower(self.model, locked_views) if locked_views else None
        self._images: dict[int, Tensor] = {}
        self._texts: list[tuple[int, Tensor, int, float]] = []

    def setup(self, stage: str) -> None:
        """Also refuse rows with labels none of which is the positive one."""
        super().setup(stage)
        if self.locked is not None:
            self.locked.seen.clear()  # numbers mean other images in other data
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ManifestData):
            data.setup(stage)
            need_label(data.rows, self.positive_label, data.manifest)

    def on_fit_start(self) -> None:
        """Compute the features of a locked tower."""
        if self.locked is not None:
            self.locked.compute(self.trainer.datamodule)  # type: ignore[attr-defined]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on `[B]` pairs."""
        image = self._embed_images(batch) if self.locked is None else self.locked.embed_known(batch["group"])
        loss = self._loss(image, self._embed_texts(self._captions(batch)), batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(image))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Embed the policy's phrases, by averaged weights if there are any: at the epoch's end they are gone again."""
        self._phrases = (self.model.scale() * self.bank()).float().cpu()

    def on_test_epoch_start(self) -> None:
        """As in validation."""
        self.on_validation_epoch_start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the embeddings; the figures come from all of them together."""
        groups = batch["group"].tolist()
        new = {group: row for row, group in reversed(list(enumerate(groups))) if group not in self._images}
        if new:  # a photo with five captions comes five times, and is encoded once
            rows = list(new.values())
            images = self._embed_images(
                {
                    "pixels": batch["pixels"][rows],
                    "image_present": batch["image_present"][rows],
                    "group": batch["group"][rows],
                }
            )
            self._images |= dict(zip(new, images, strict=True))
        unsafe = [float("nan") if not row else float(self.positive_label in row) for row in batch["labels"]]
        texts = self._embed_texts(self._captions(batch))
        self._texts += zip(batch["lines"], texts, groups, unsafe, strict=True)

    def on_validation_epoch_end(self) -> None:
        """Log retrieval both ways and, if the split has labels, the AUROC of the policy."""
        known = gathered([(group, one.float().cpu()) for group, one in self._images.items()])
        images = dict(sorted(known, key=lambda one: one[0]))
        rows = gathered([(line, one.float().cpu(), group, label) for line, one, group, label in self._texts])
        _, texts, groups, labels = zip(*sorted(rows, key=lambda row: row[0]), strict=True)  # as one process has them
        self._images, self._texts = {}, []
        numbers = {group: number for number, group in enumerate(images)}
        image, text = torch.stack(list(images.values())), torch.stack(texts)
        owner = torch.tensor([numbers[group] for group in groups])
        unsafe = torch.full((len(image),), float("nan"))
        unsafe[owner] = torch.tensor(labels)
        figures = dict(recall_at_k((text @ image.transpose(0, 1)).round(decimals=5), owner))
        labelled = ~unsafe.isnan()
        if labelled.any():
            scores = (image @ self._phrases.transpose(0, 1)).softmax(dim=-1)
            kinds = unsafe[labelled].int().tolist()
            area = auroc(self.unsafe_score(scores).cpu()[labelled].tolist(), kinds)
            self.warn_of_one_kind(set(kinds))
            if area is not None:
                figures["auroc"] = area
        self.log_dict({f"{self.stage}/{key}": value for key, value in figures.items()})
        self.log(f"{self.stage}/r1", figures["text_to_image_r1"], prog_bar=True, logger=False)

    def bank(self) -> Tensor:
        """The policy's text bank `[P, D]` by the present weights."""
        return policy_bank(self.policy, self.model.embed_phrases)

    def _embed_images(self, batch: Batch) -> Tensor:
        if self.locked is None:
            return self.model.encode_image(self.pixels(batch))
        return self.locked.embed(self.pixels(batch), batch["group"].tolist())

    def _embed_texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings `[B, D]`, on a CPU in parts of similar length: padding takes as long as words do."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        size = PART if self.device.type == "cpu" else len(order)
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        encoded = [self.model.encode_text(*self.tokens([texts[row] for row in part])) for part in parts]
        back = torch.tensor(order, device=self.device).argsort()
        return torch.cat(encoded)[back]

    def _captions(self, batch: Batch) -> list[str]:
        texts = [text for text in batch.get("texts", ()) if text is not None]
        if len(texts) < len(batch["labels"]):
            raise BadDataError("contrastive training needs a text in every row of the manifest")
        return texts

    def _of_all(self, rows: Tensor) -> Tensor:
        """The rows `[B, ...]` of every process, `[processes * B, ...]`, with gradients."""
        every: Any = self.all_gather(rows, sync_grads=rows.is_floating_point())
        return cast("Tensor", every.flatten(0, 1))

    def _loss(self, image: Tensor, text: Tensor, batch: Batch) -> Tensor:
        words, group = torch.tensor([_number(t) for t in batch["texts"]], device=self.device), batch["group"]
        if processes() > 1:  # the rows of all processes are each other's negatives
            image, text, words, group = (self._of_all(one) for one in (image, text, words, group))
        logits = self.model.scale() * image @ text.transpose(0, 1)
        # Another caption of the same image, or the same words of another one, is not a negative.
        twins = (words[:, None] == words) | (group[:, None] == group)
        twins.fill_diagonal_(False)
        logits = logits.masked_fill(twins, torch.finfo(logits.dtype).min)
        target = torch.arange(len(logits), device=self.device)
        smooth = self.label_smoothing
        if smooth == 0:
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return (_smooth(logits, twins, smooth) + _smooth(logits.T, twins.T, smooth)) / 2


def _number(text: str | None) -> int:
    """The same number for the same text, in every process."""
    return int.from_bytes(hashlib.blake2b((text or "").encode(), digest_size=8).digest(), signed=True)


def _smooth(logits: Tensor, twins: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy to the diagonal, smoothed over the true negatives only."""
    log_probabilities = logits.log_softmax(dim=1).masked_fill(twins, 0.0)
    hit = log_probabilities.diagonal()
    share = log_probabilities.sum(dim=1) / (~twins).sum(dim=1)
    return -((1 - smoothing) * hit + smoothing * share).mean()


#: Texts at once on a CPU.
PART = 100

#: Images at once: small, so that the feature maps of a depthwise network stay in the processor's cache.
CHUNK = 8


class LockedTower:
    """The locked image tower of a model, and the features of `views` random views of each training image.

    Only the projection above the features is trained. Raises BadInputError for a tower that cannot be locked.
    """

    def __init__(self, model: DualEncoder, views: int) -> None:
        if not isinstance(model.image_tower, ConvImageTower):
            raise BadArgumentError(f"{model.card.name}: only convolutional image towers can be locked")
        self.tower, self.views = model.image_tower, views
        freeze_parts(model, ["image_tower.backbone"])
        self._fast: nn.Module | None = None
        self._features = torch.empty(0)
        self.seen: dict[int, Tensor] = {}

    def compute(self, data: ManifestData) -> None:
        """Compute the features `[views, images, width]`; the first view is the whole image."""
        store = data.images
        if store.pixels is None:
            raise BadArgumentError("locked_views needs the images in memory: raise max_cache_gb")
        device = next(self.tower.parameters()).device
        wanted = sorted({store.number[row.image] for row in data.by_split["train"] if row.image})
        steps = [(view, start) for view in range(self.views) for start in range(0, len(wanted), CHUNK)]
        for view, start in track(steps, "Features of the locked tower", transient=True):
            numbers = wanted[start : start + CHUNK]
            pixels = torch.from_numpy(store.pixels[numbers]).to(device).permute(0, 3, 1, 2).float().div_(255.0)
            features = self._run(data.view(pixels) if view else pixels)
            if not len(self._features):
                self._features = features.new_zeros(self.views, len(store.number), features.shape[1])
            self._features[view, numbers] = features
        data.pixels_in_training = False

    def embed_known(self, group: Tensor) -> Tensor:
        """Unit embeddings `[B, D]` of training images by their number, each from a view drawn at random."""
        view = torch.randint(self.views, group.shape, device=group.device)
        return unit(self.tower.projection(self._features[view, group]))

    def embed(self, pixels: Tensor, group: Sequence[int]) -> Tensor:
        """Unit embeddings `[B, D]` of images `[B, 3, S, S]` in [0, 1] by their numbers; features are computed once."""
        new = [row for row, number in enumerate(group) if number not in self.seen]
        if new:
            features = self._evaluated(pixels[new])
            self.seen |= {group[row]: one for row, one in zip(new, features, strict=True)}
        return unit(self.tower.projection(torch.stack([self.seen[number] for number in group])))

    def _evaluated(self, pixels: Tensor) -> Tensor:
        """The features `[B, width]` that the tower has in evaluation."""
        parts = torch.split(pixels, CHUNK)
        features = torch.cat([self._run(part) for part in parts])
        if self.tower.mirror:
            features = (features + torch.cat([self._run(part.flip(3)) for part in parts])) / 2
        return features

    @torch.no_grad()
    def _run(self, pixels: Tensor) -> Tensor:
        if self._fast is None:  # not before the first use: a checkpoint may bring other weights after __init__
            fused = _fused(self.tower.backbone).to(pixels.device)
            self._fast = fused.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        output = self._fast(self.tower.normalise(pixels).contiguous(memory_format=torch.channels_last))
        features: Tensor = output.pooler_output.flatten(1)
        return features


def _fused(backbone: nn.Module) -> nn.Module:
    """A copy with each batch norm folded into its convolution: three times as fast on a CPU."""
    fused = copy.deepcopy(backbone)
    for layer in fused.modules():
        convolution, norm = getattr(layer, "convolution", None), getattr(layer, "normalization", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layer.convolution = fuse_conv_bn_eval(convolution, norm)
            layer.normalization = nn.Identity()
    return fused
