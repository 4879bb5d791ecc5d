"""The base of the LightningModules: the model by name, its tokenizer and policy, the optimizer, the checkpoint."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

import zoo
from zoo.assets import find_asset
from zoo.contract.card import ModelCard, Training
from zoo.contract.policy import Policy
from zoo.errors import BadArgumentError, BadDataError
from zoo.files.writing import told, write_file
from zoo.inputs.text import TextCodec, train_tokenizer
from zoo.judging.judge import Judge
from zoo.judging.scorer import Scorer
from zoo.keys import refuse_unsigned
from zoo.models.base import ZooModel, check_finite
from zoo.models.served import ServedRun, text_banks
from zoo.registry import create_model, model_entry
from zoo.release.checkpoint import CHECKPOINT_KEY
from zoo.release.store import load_model
from zoo.training.callbacks import WholeAverages
from zoo.training.data import Batch, ManifestData, need_inputs
from zoo.training.optimizer import (
    GRADIENTS_KEY,
    MASTERS_KEY,
    Masters,
    parameter_groups,
    waiting_gradients,
    warm_cosine,
)
from zoo.training.order import RANDOM_KEY, gathered, processes, random_states, restore_random_states
from zoo.training.ranking import Mean, UnsafeRanking

log = logging.getLogger("zoo.training")


class Trainable(lightning.LightningModule):
    """The base of all trainings: the optimizer with its schedule, and a test that does what validation does.

    Args:
        lr: peak learning rate.
        weight_decay: AdamW's, on matrices only.
        warmup: share of all steps in which the learning rate rises from 0.
        lr_factors: learning rates of parts, as factors of `lr` by the beginning of the parameter's name.
        recipe: name of the recipe, for card and logs; the command line fills it in.
    """

    #: Arguments that a subclass sets itself: they are not its hyperparameters.
    preset: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        lr_factors: dict[str, float] | None = None,
        recipe: str = "",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=self.preset)
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.lr_factors = lr_factors or {}
        self._random_states: list[dict[str, Any]] = []
        self._masters, self._kept_masters = Masters({}, {}), dict[str, Tensor]()
        self._gradients: dict[str, Tensor] = {}
        self._has_weights, self._one_kind = False, set[str]()
        self.register_load_state_dict_post_hook(Trainable._take_weights)  # type: ignore[no-untyped-call]

    def _take_weights(self, *_: object) -> None:
        self._has_weights = True

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's. Raises BadDataError for weights of another model."""
        try:
            return super().load_state_dict(*args, **kwargs)
        except RuntimeError as problem:
            raise BadDataError(f"the weights of the checkpoint do not fit this recipe: {str(problem)[:400]}") from None

    def setup(self, stage: str) -> None:
        """Refuse figures and verdicts with a key configured, as no checkpoint is signed. Training goes on without."""
        if stage != "fit":
            refuse_unsigned(f"{type(self).__name__} ({stage})")

    def configure_optimizers(self) -> Any:
        """AdamW, weight decay on matrices only, linear warm-up (`warmup`: a share of all steps), then a cosine to 0.

        Where time alone ends the training (`max_epochs: -1`), the number of steps is not known: the warm-up takes that
        share of one epoch, and the rate stays.
        """
        named = {name.partition(".")[2]: parameter for name, parameter in self.named_parameters()}
        trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        self._masters, self._kept_masters = Masters(trained, self._kept_masters), {}
        self._masters.check(self.trainer.strategy)
        groups = parameter_groups(named, self._masters, self.lr, self.weight_decay, self.lr_factors)
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        optimizer.register_step_post_hook(self._masters.give_weights)
        schedule = warm_cosine(
            max(1, round(self.steps_of(self.warmup))), float(self.trainer.estimated_stepping_batches)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, schedule), "interval": "step"},
        }

    def configure_callbacks(self) -> list[Callback]:
        """What keeps averaged weights whole."""
        return [WholeAverages()]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer see the gradients where it steps on copies."""
        self._masters.take_gradients()

    def steps_of(self, share: float) -> float:
        """How many steps a share of the training is; of one epoch where time alone ends it."""
        total = float(self.trainer.estimated_stepping_batches)
        if math.isinf(total):
            self.trainer.fit_loop.setup_data()  # else the batches of an epoch may not be counted yet
            total = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        return share * total

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, and every parameter gets a gradient: processes that train together wait for all of them."""
        if processes() > 1:
            loss = loss + sum(0.0 * one.sum() for one in self.parameters() if one.requires_grad)
        super().backward(loss, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the states of the streams of random numbers, float32 copies of weights and gradients that wait."""
        if self._masters.copies:
            checkpoint[MASTERS_KEY] = dict(self._masters.copies)
        if waiting := waiting_gradients(self):
            checkpoint[GRADIENTS_KEY] = waiting
        buffer = io.BytesIO()  # torch's own form: its collectives cannot send a tensor inside other data
        torch.save(random_states(), buffer)
        every = gathered([buffer.getvalue()])
        checkpoint[RANDOM_KEY] = [torch.load(io.BytesIO(one), weights_only=True) for one in every]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep all of that until training goes on."""
        self._gradients = checkpoint.get(GRADIENTS_KEY, {})
        self._random_states = checkpoint.get(RANDOM_KEY, [])
        self._kept_masters = checkpoint.get(MASTERS_KEY, {})

    def on_train_start(self) -> None:
        """Go on with the random numbers of the run that is resumed. From here on the weights are trained ones."""
        if self._random_states:
            same = len(self._random_states) == processes()
            restore_random_states(self._random_states[self.global_rank if same else 0])
            self._random_states = []
        for name, parameter in self.named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter)
        self._gradients = {}
        self._has_weights = True

    def on_validation_start(self) -> None:
        self._need_weights()

    def on_test_start(self) -> None:
        self._need_weights()

    def on_predict_start(self) -> None:
        self._need_weights()

    def _need_weights(self) -> None:
        """Raise BadArgumentError for weights that were neither trained nor loaded, but for the validation of a fit."""
        task = self.trainer.state.fn
        if not self._has_weights and task not in (None, TrainerFn.FITTING):
            raise BadArgumentError(
                f"{task.value}: the weights are random; name the checkpoint to judge by in `ckpt_path`"
            )

    @property
    def stage(self) -> str:
        """`val` or `test`: how the figures of an evaluation begin."""
        return "test" if self.trainer.testing else "val"

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()


class Base(Trainable):
    """Holds a `ZooModel` and its policy. Subclasses add the steps.

    Args:
        model: registry name of the model.
        model_args: hyperparameters to change, see `zoo show NAME`; a release in `init_from` brings its own.
        policy: path of a policy, here or among the files of the package; the model's own when None.
        init_from: a release to start from instead of random weights: the same architecture, under any tag.
        image_weights: what to start the image tower from: a directory of a TensorFlow.js MobileNetV1, or for an
            EfficientNet-Lite the name of a classifier (`efficientnet_lite2.imagenet`), which is fetched, or a release.
        text_weights: `hf-hub:ORG/NAME` or directory of a BERT to start the text tower from, tokenizer included.
        kwargs: arguments of `Trainable`.
    """

    def __init__(
        self,
        model: str,
        *,
        model_args: dict[str, Any] | None = None,
        policy: str | None = None,
        init_from: str | None = None,
        image_weights: str | None = None,
        text_weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        entry = model_entry(model)
        entry.card.refuse_panel("train or import its heads, then put them together by `zoo panel`")
        self.policy = Policy.read(find_asset(policy or entry.policy))
        self.model: ZooModel
        if init_from:
            self.model = _begun(load_model(str(init_from)), model)
        else:
            self.model = create_model(model, **(model_args or {}))
        self.model.train()  # the registry hands out models in evaluation mode
        self.judge = Judge(self.model.card, self.policy)
        if image_weights or text_weights:
            from zoo.models.conv_clip import load_pretrained

            load_pretrained(self.model, image_weights, text_weights, load_model)
        has_tokenizer = self.model.card.text is not None and (init_from or text_weights)
        self._codec: TextCodec | None = self.model.codec() if has_tokenizer else None
        self._has_weights = bool(init_from)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits `[B, N]` of the model, whose inputs these are."""
        logits: Tensor = self.model(*inputs)
        return logits

    def setup(self, stage: str) -> None:
        """Train the tokenizer on the training texts if the model does not have one yet."""
        super().setup(stage)
        if self.model.card.text is None or self._codec is not None:
            return
        data = getattr(self.trainer, "datamodule", None)
        size = self.model.card.hparams["vocabulary_size"]
        if stage == "fit" and isinstance(data, ManifestData):
            data.setup(stage)
            # That of the first process for all: ids must mean the same everywhere.
            self.model.tokenizer_json = self.trainer.strategy.broadcast(train_tokenizer(data.train_texts(), size))
        self._codec = self.model.codec()

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask `[B, T]` of these texts, on the module's device."""
        assert self._codec is not None, "setup() makes the codec"
        encoded = self._codec.encode(texts)
        longest = int(encoded.mask.sum(axis=1).max(initial=1))  # padding past the longest text costs time for nothing
        ids, mask = encoded.ids[:, :longest], encoded.mask[:, :longest]
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Verdicts of a batch as plain data, as a scorer gives them, with the manifest line of each as its source.

        Raises BadDataError for a row without an input that the model requires, BadArgumentError for batches of another
        loader than `ManifestData.predict_dataloader`.
        """
        if "images" not in batch:
            raise BadArgumentError("predict: the batches name no images; give those of ManifestData.predict_dataloader")
        card, texts = self.model.card, batch.get("texts") or [None] * len(batch["lines"])
        need_inputs(card, *(torch.tensor([one is not None for one in given]) for given in (batch["images"], texts)))
        judged = self._scorer.verdicts(batch["images"] if card.image else None, texts if card.reads_text else None)
        named = zip(batch["lines"], judged, strict=True)
        verdicts = [dataclasses.replace(verdict, source=f"line {line}").to_dict() for line, verdict in named]
        self._predicted += zip(batch["lines"], verdicts, strict=True)
        return verdicts

    def on_predict_start(self) -> None:
        """Make the scorer, no weight changes from here on. Raises BadDataError for weights of NaN or infinity."""
        super().on_predict_start()
        check_finite(self.model, "predict")
        self._predicted: list[tuple[int, dict[str, Any]]] = []
        engine = ServedRun(self.model, text_banks(self.model, self.judge))
        self._scorer = Scorer(self.judge, self._codec, engine)

    def on_predict_end(self) -> None:
        """Write the verdicts of all processes to `predictions.jsonl` in the log directory, in the manifest's order.

        Raises BadDataError, after that, if no row could be judged.
        """
        self._scorer.close()
        path = Path(self.trainer.log_dir or ".") / "predictions.jsonl"  # log_dir is asked of all processes at once
        predicted = sorted(gathered(self._predicted), key=lambda one: one[0])
        if self.trainer.is_global_zero:
            write_file(path, "".join(json.dumps(verdict, ensure_ascii=False) + "\n" for _, verdict in predicted))
            log.warning("%d verdicts written to %s", len(predicted), told(path))
        if predicted and all(verdict["status"] != "ok" for _, verdict in predicted):
            first = predicted[0][1]
            raise BadDataError(
                f"none of {len(predicted)} rows could be judged; the first: {first['source']}: {first['detail']}"
            )

    def log_means(self, **means: Mean) -> None:
        """Log means of an evaluation over all batches of all processes, and start them again."""
        for name, mean in means.items():
            value = mean.finish()
            if value is not None:
                self.log(f"{self.stage}/{name}", value, prog_bar=True)

    def log_ranking(self, ranking: UnsafeRanking, prefix: str = "", names: Sequence[str] = ("auroc", "auprc")) -> None:
        """Log figures of a ranking over all processes. Warns once where its rows are all safe, or all unsafe."""
        self.log_dict(ranking.finish(f"{self.stage}/{prefix}", names), prog_bar=True)
        if not prefix:  # a few rows drawn from the split say nothing of its labels
            self.warn_of_one_kind(ranking.kinds)

    def warn_of_one_kind(self, kinds: set[int]) -> None:
        """Say once that labels of one kind alone (1 unsafe, 0 safe) give no AUROC."""
        if len(kinds) == 1 and self.stage not in self._one_kind and not self.trainer.sanity_checking:
            self._one_kind.add(self.stage)
            log.warning("%s: no AUROC, as its labels make no row %s", self.stage, "safe" if 1 in kinds else "unsafe")

    def unsafe_score(self, scores: Tensor) -> Tensor:
        """The policy's unsafe score `[B]` of output scores `[B, N]`."""
        unsafe = self.judge.unsafe_score(self.judge.category_scores(scores.float().cpu().numpy()))
        return torch.from_numpy(unsafe).to(self.device)

    def pixels(self, batch: Batch) -> Tensor:
        """The images `[B, 3, S, S]` of a batch. Raises BadDataError for a row without one."""
        if "pixels" not in batch or not batch["image_present"].all():
            raise BadDataError(f"{self.model.card.name} needs an image in every row of the manifest")
        return batch["pixels"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the card, the policy and the tokenizer, so that `zoo release` needs nothing but the checkpoint."""
        super().on_save_checkpoint(checkpoint)
        data = getattr(self.trainer, "datamodule", None)
        training = Training(
            recipe=str(self.hparams.get("recipe") or ""),
            data=str(data.manifest) if isinstance(data, ManifestData) else "",
            epochs=self.trainer.fit_loop.epoch_progress.current.ready,  # begun: the same during an epoch and after it
            steps=self.global_step,
            seed=int(torch.initial_seed()) if torch.initial_seed() < 2**32 else None,
            safety_zoo=zoo.__version__,
            split=data.split_rule if isinstance(data, ManifestData) else None,
        )
        checkpoint[CHECKPOINT_KEY] = {
            "card": self.model.card.replace(training=training).to_dict(),
            "policy": self.policy.to_dict(),
            "tokenizer": self.model.tokenizer_json,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the tokenizer of the checkpoint: ids must mean what they meant in training.

        Raises BadDataError for the checkpoint of another model. Warns of data that are split by another rule.
        """
        stored = checkpoint.get(CHECKPOINT_KEY)
        if stored is None:
            raise BadDataError("this checkpoint was not written by safety-zoo: it carries no card")
        card = ModelCard.from_dict(stored["card"], "the card of the checkpoint")
        for name in ("architecture", "hparams", "labels", "score", "image", "text"):
            given, own = getattr(card, name), getattr(self.model.card, name)
            if given != own:
                raise BadDataError(
                    f"the checkpoint holds {card.name} with {name} {given}; this recipe builds {self.model.card.name} "
                    f"with {own}"
                )
        data, used = getattr(self.trainer, "datamodule", None), card.training.split
        rule = data.split_rule if isinstance(data, ManifestData) else None
        if rule is not None and used is not None and rule != used:
            log.warning(
                "rows that name no split: split by %s, in training by %s: tests may see trained rows", rule, used
            )
        super().on_load_checkpoint(checkpoint)
        if stored["tokenizer"] is not None:
            self.model.tokenizer_json = stored["tokenizer"]
            self._codec = self.model.codec()


def _begun(start: ZooModel, name: str) -> ZooModel:
    """A loaded model under the name of what it is to become: another tag of its architecture, or the same."""
    given, wanted = start.card, model_entry(name).card
    if given.architecture != wanted.architecture or model_entry(given.name).builder != model_entry(name).builder:
        raise BadArgumentError(f"init_from is a {given.name}, the recipe trains {name}: another architecture")
    text = given.text
    if text is not None and wanted.text is not None:
        text = dataclasses.replace(text, deobfuscate=wanted.text.deobfuscate)
    start.card = given.replace(
        name=name, summary=wanted.summary, limits=wanted.limits, text=text, measurements=(), files={}
    )
    return start
