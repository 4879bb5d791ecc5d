"""What the LightningModules share: the model by name, its tokenizer and policy, the optimizer, the checkpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

import zoo
from zoo.assets import find_asset
from zoo.contract.card import Training
from zoo.contract.policy import Policy
from zoo.errors import BadArgumentError, BadDataError, close_match
from zoo.inputs.text import TextCodec, train_tokenizer
from zoo.judging.judge import Judge
from zoo.models.base import ZooModel
from zoo.registry import create_model, model_entry
from zoo.release.checkpoint import CHECKPOINT_KEY
from zoo.release.load import load_model
from zoo.training.data import Batch, ManifestData

log = logging.getLogger("zoo.training")


class Base(lightning.LightningModule):
    """Holds a `ZooModel` and its policy. Subclasses add the steps."""

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any] | None,
        policy: str | None,
        init_from: str | None,
        lr: float,
        weight_decay: float,
        warmup: float,
        lr_factors: dict[str, float] | None,
    ) -> None:
        super().__init__()
        if model_entry(model).card.task == "panel":
            raise BadArgumentError(
                f"{model} is a panel: train or import its heads, then put them together by `zoo panel`"
            )
        self.policy = Policy.read(find_asset(policy or model_entry(model).policy))
        self.model: ZooModel
        if init_from:
            self.model = _begun(load_model(str(init_from)), model)
        else:
            self.model = create_model(model, **(model_args or {}))
        self.model.train()  # the registry hands out models in evaluation mode
        self.judge = Judge(self.model.card, self.policy)
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.lr_factors = lr_factors or {}
        self._codec: TextCodec | None = self.model.codec() if init_from and self.model.card.text else None

    def _start_from(self, image_weights: str | None, text_weights: str | None) -> None:
        """Start convolutional and BERT towers from published weights; the tokenizer comes with those of the text."""
        if not (image_weights or text_weights):
            return
        from zoo.models.conv_clip import load_pretrained

        load_pretrained(self.model, image_weights, text_weights)
        if text_weights:
            self._codec = self.model.codec()

    def setup(self, stage: str) -> None:
        """Train the tokenizer on the training texts when the model has none of its own yet."""
        if self.model.card.text is None or self._codec is not None:
            return
        data = getattr(self.trainer, "datamodule", None)
        size = self.model.card.hparams["vocabulary_size"]
        if stage == "fit" and isinstance(data, ManifestData):
            data.setup(stage)
            self.model.tokenizer_json = train_tokenizer(data.train_texts(), size)
        self._codec = self.model.codec()

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask `[B, T]` of these texts, on the module's device."""
        assert self._codec is not None, "setup() makes the codec"
        encoded = self._codec.encode(texts)
        longest = int(encoded.mask.sum(axis=1).max(initial=1))  # padding past the longest text costs time for nothing
        ids, mask = encoded.ids[:, :longest], encoded.mask[:, :longest]
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    def configure_optimizers(self) -> Any:
        """AdamW, weight decay on matrices only, linear warm-up (`warmup`: a share of all steps), then a cosine to 0."""
        optimizer = torch.optim.AdamW(self._parameter_groups(), lr=self.lr)
        return with_schedule(optimizer, self.warmup, int(self.trainer.estimated_stepping_batches))

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters by learning rate (the longest prefix in `lr_factors` counts) and weight decay."""
        groups: dict[tuple[float, bool], list[Tensor]] = defaultdict(list)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                prefix = max((p for p in self.lr_factors if name.startswith(p)), key=len, default=None)
                factor = 1.0 if prefix is None else self.lr_factors[prefix]
                groups[factor, parameter.ndim >= 2].append(parameter)
        unused = [p for p in self.lr_factors if not any(n.startswith(p) for n, _ in self.model.named_parameters())]
        if unused:
            names = {n.rsplit(".", depth)[0] for n, _ in self.model.named_parameters() for depth in (1, 2, 3)}
            raise BadArgumentError(
                f'lr_factors: no parameter begins with "{unused[0]}"' + close_match(unused[0], names)
            )
        return [
            {"params": parameters, "lr": self.lr * factor, "weight_decay": self.weight_decay if matrix else 0.0}
            for (factor, matrix), parameters in groups.items()
        ]

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Verdicts of a batch as plain data, with the manifest line of each as its source."""
        scores = self.scores(batch).float().cpu().numpy()
        sources = [f"line {line}" for line in batch["lines"]]
        truncated = None
        if self.model.card.reads_text and self._codec is not None and "texts" in batch:
            truncated = [bool(cut) for cut in self._codec.encode([t or "" for t in batch["texts"]]).truncated]
        verdicts = [verdict.to_dict() for verdict in self.judge.verdicts(scores, sources, truncated)]
        self._predicted += verdicts
        return verdicts

    def on_predict_start(self) -> None:
        """Start an empty list of verdicts."""
        self._predicted: list[dict[str, Any]] = []

    def on_predict_end(self) -> None:
        """Write the verdicts to `predictions.jsonl` in the log directory."""
        path = Path(self.trainer.log_dir or ".") / "predictions.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in self._predicted)
        path.write_text("".join(lines), encoding="utf-8")
        log.warning("%d verdicts written to %s", len(self._predicted), path)

    def scores(self, batch: Batch) -> Tensor:
        """Output scores `[B, N]` of a batch, in evaluation mode."""
        raise TypeError(f"{type(self).__name__} must define scores()")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the card, the policy and the tokenizer, so that `zoo release` needs nothing but the checkpoint."""
        data = getattr(self.trainer, "datamodule", None)
        training = Training(
            recipe=str(self.hparams.get("recipe") or ""),
            data=str(data.manifest) if isinstance(data, ManifestData) else "",
            epochs=self.trainer.fit_loop.epoch_progress.current.ready,  # begun: the same during an epoch and after it
            steps=self.global_step,
            seed=int(torch.initial_seed()) if torch.initial_seed() < 2**32 else None,
            safety_zoo=zoo.__version__,
        )
        checkpoint[CHECKPOINT_KEY] = {
            "card": self.model.card.replace(training=training).to_dict(),
            "policy": self.policy.to_dict(),
            "tokenizer": self.model.tokenizer_json,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the tokenizer of the checkpoint: ids must mean what they meant in training."""
        stored = checkpoint.get(CHECKPOINT_KEY)
        if stored is None:
            raise BadDataError("this checkpoint was not written by safety-zoo: it carries no card")
        if stored["tokenizer"] is not None:
            self.model.tokenizer_json = stored["tokenizer"]
            self._codec = self.model.codec()


def _begun(start: ZooModel, name: str) -> ZooModel:
    """A loaded model under the name of what it is to become: another tag of its architecture, or the same."""
    found, wanted = start.card, model_entry(name).card
    if found.architecture != wanted.architecture or model_entry(found.name).builder != model_entry(name).builder:
        raise BadArgumentError(f"init_from is a {found.name}, the recipe trains {name}: another architecture")
    text = found.text
    if text is not None and wanted.text is not None:
        text = dataclasses.replace(text, deobfuscate=wanted.text.deobfuscate)
    start.card = found.replace(
        name=name, summary=wanted.summary, limits=wanted.limits, text=text, measurements=(), files={}
    )
    return start


def with_schedule(optimizer: torch.optim.Optimizer, warmup: float, total: int) -> dict[str, Any]:
    """What `configure_optimizers` returns: linear warm-up over a share of `total` steps, then a cosine to 0."""
    warm = max(1, round(warmup * total))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
