"""Training a LLaVA: from a released CLIP and random weights, or fine-tuning a saved one, with LoRA, with the guard."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from rich.progress import track
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from zoo.assets import find_asset
from zoo.contract.policy import Policy
from zoo.contract.verdict import Verdict
from zoo.errors import BadArgumentError, BadDataError, close_match
from zoo.files.writing import native_writer, new_directory
from zoo.guard.collator import Example, GuardedCollator
from zoo.guard.detector import Detector
from zoo.guard.guard import Guard
from zoo.guard.insertion import INSTRUCTION
from zoo.guard.lvlm import chat_prompt, load_lvlm
from zoo.guard.refusals import is_refusal
from zoo.inputs.image import LARGEST, decode
from zoo.models.clip import DualEncoder
from zoo.models.lora import LORA, lora_config
from zoo.models.tiny_llava import build_tiny_llava, tiny_llava_processor, train_llava_tokenizer
from zoo.release.store import load_model
from zoo.training.base import Trainable
from zoo.training.order import gathered
from zoo.training.question_data import Conversation, QuestionData

TOKENIZER_KEY = "safety_zoo_tokenizer"

#: What transformers writes for a model with its processor: a folder of nothing else may be overwritten.
_FILES = (
    "config.json",
    *("generation_config.json", "model*.safetensors", "model.safetensors.index.json", "*processor_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.*", "vocab.*", "merges.txt"),
)


class VisionLanguage(Trainable):
    """Teaches a LLaVA to answer questions about images. Its vision tower stays frozen, and sees each image once.

    The loss is the cross-entropy on the tokens of the answers. Validation asks single questions and generates:
    `val/exact_match` (and `.../KIND`) without the instruction, and with it `val/refused_unsafe`, `val/refused_safe` and
    `val/exact_match_instructed` (safe images only); `val/refused_plain` is the share refused without it, of all.

    Args:
        out: directory for the trained model and its processor, as `save_pretrained` writes them, after the last epoch.
        clip: a `safeclip_*` release to build a tiny LLaVA around (LLaVA's layout; see `zoo.models.tiny_llava`).
        lvlm: directory or `hf-hub:ORG/NAME` of a LlavaForConditionalGeneration to tune. Give either `clip` or `lvlm`.
        language: sizes of the tiny language model, as `build_tiny_llava` takes them; vocabulary_size among them.
        lora: `{r, alpha, dropout, target_modules}`: train low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on these
            modules of the language model and nothing else; merged into the weights before they are written.
        guard: `{detector, policy, instructed}`: a release (and a policy file, if not its own) that judges each training
            image. Flagged conversations are corrected as `zoo.guard.collator` says; a share `instructed` of the others
            (0.25) gets the instruction and keeps its answers, or the model would learn to refuse whenever it is there.
        dtype: of a loaded model, such as "bfloat16"; its own when None.
        overwrite: replace what is in `out`.
        weight_decay: AdamW's, on matrices only.
        max_new_tokens: longest answer that is generated in validation.
        max_cache_gb: most memory for the hidden states of the images.
        kwargs: arguments of `Trainable`.
    """

    def __init__(
        self,
        out: str,
        *,
        clip: str | None = None,
        lvlm: str | None = None,
        language: dict[str, int] | None = None,
        lora: dict[str, Any] | None = None,
        guard: dict[str, Any] | None = None,
        dtype: str | None = None,
        overwrite: bool = False,
        weight_decay: float = 0.05,
        max_new_tokens: int = 40,
        max_cache_gb: float = 8.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight_decay=weight_decay, **kwargs)
        if (clip is None) == (lvlm is None):
            raise BadArgumentError(
                f"give either clip (build a tiny LLaVA) or lvlm (fine-tune one), got {clip=}, {lvlm=}"
            )
        for name, given, known in (("lora", lora, LORA), ("guard", guard, GUARD)):
            for key in given or {}:
                if key not in known:
                    raise BadArgumentError(f'{name}: no key "{key}"' + close_match(key, known))
        if guard is not None and not guard.get("detector"):
            raise BadArgumentError("guard: needs a detector, a safeclip_* release or its directory")
        self.out, self.overwrite, self.max_new_tokens = Path(out), overwrite, max_new_tokens
        self._has_weights = lvlm is not None
        self.lvlm: Any = None
        self.processor: Any = None
        self._peft: tuple[Any, ...] = ()  # in a tuple, or its parameters would count twice
        self._tally: dict[str, list[bool]] = defaultdict(list)

    def forward(self, **inputs: Any) -> Any:
        """The output of the vision-language model, whose inputs these are. Raises BadArgumentError before `setup`."""
        if self.lvlm is None:
            raise BadArgumentError("the vision-language model is built by setup(), which the trainer calls")
        return self.lvlm(**inputs)

    def setup(self, stage: str) -> None:
        """Build or load the model, its tokenizer trained on the training questions; freeze what is not trained."""
        super().setup(stage)
        if self.lvlm is not None:
            return
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        if stage == "fit" and any(isinstance(one, WeightAveraging) for one in callbacks):
            raise BadArgumentError("WeightAveraging copies a model before this one is built: leave it out")
        if stage == "fit" and self.out.exists() and not self.overwrite and any(self.out.iterdir()):
            raise BadArgumentError(f"{self.out}: exists and is not empty; name another out, or set overwrite")
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, QuestionData):
            raise BadArgumentError("VisionLanguage takes its conversations from a zoo.training.QuestionData")
        data.setup(stage)
        h: Any = self.hparams
        if h.clip:
            self.lvlm, self.processor = self._build(data)
        else:
            loaded = load_lvlm(h.lvlm, dtype=h.dtype or "auto", model_type="llava")
            self.lvlm, self.processor = loaded.model, loaded.processor
        self.collator = GuardedCollator(self.processor)
        detector = None
        if h.guard:
            policy = Policy.read(find_asset(h.guard["policy"])) if h.guard.get("policy") else None
            detector = Guard(self.lvlm, self.processor, h.guard["detector"], policy=policy).detector
        self.features = TowerFeatures(self.lvlm, self.processor, detector, h.max_cache_gb)
        self.lvlm.train().model.vision_tower.requires_grad_(False)
        if h.lora:
            # CLIP's vision tower has projections of the same names: only the language model's are meant.
            config = lora_config(h.lora, {"language_model": self.lvlm.model.language_model}, "the language model")
            from peft import get_peft_model

            self._peft = (get_peft_model(self.lvlm, config),)

    def on_fit_start(self) -> None:
        """Encode all images."""
        data: QuestionData = self.trainer.datamodule  # type: ignore[attr-defined]
        self.features.compute(data.images("train", "val"))

    def training_step(self, batch: list[Conversation], batch_idx: int) -> Tensor:
        """One step on a batch of conversations, corrected by the guard if one is given."""
        inputs = self.collator([self._example(row) for row in batch])
        inputs = {key: value.to(self.device) for key, value in inputs.items()}
        images = self.features.outputs([row.image for row in batch])
        loss: Tensor = self.lvlm(**inputs, mm_encoder_outputs=images, use_cache=False).loss
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: list[Conversation], batch_idx: int) -> None:
        """Answer single questions, and keep which answers are right and which are refusals."""
        for row, text in zip(batch, self.answers(batch), strict=True):
            right, refused = text == row.answers[0], is_refusal(text)
            if row.instructed:
                self._tally["refused_unsafe" if row.unsafe else "refused_safe"].append(refused)
                if not row.unsafe:
                    self._tally["exact_match_instructed"].append(right)
            else:
                self._tally["refused_plain"].append(refused)
                self._tally["exact_match"].append(right)
                if row.kind:
                    self._tally[f"exact_match/{row.kind}"].append(right)

    def on_validation_epoch_end(self) -> None:
        """Log the shares."""
        tally: dict[str, list[bool]] = defaultdict(list)
        for name, hits in gathered(list(self._tally.items())):
            tally[name] += hits
        self._tally.clear()
        figures = {f"{self.stage}/{name}": sum(hits) / len(hits) for name, hits in tally.items()}
        self.log_dict(figures)
        self.log(f"{self.stage}/right", figures[f"{self.stage}/exact_match"], prog_bar=True, logger=False)

    @torch.no_grad()
    def answers(self, batch: list[Conversation]) -> list[str]:
        """The answers to the first question of each conversation, generated greedily."""
        images = [row.image for row in batch]
        self.features.compute(images)
        prompts = [self.prompts(row)[0] for row in batch]
        inputs = self.collator.prompts(prompts, [(self.features.tokens,)] * len(batch))
        sequences = self.lvlm.generate(
            **{key: value.to(self.device) for key, value in inputs.items()},
            mm_encoder_outputs=self.features.outputs(images),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
        )
        new = sequences[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]

    def prompts(self, row: Conversation) -> list[str]:
        """The prompt of each question in the model's chat template; the first has the image, and the instruction."""
        prompts = []
        for number, question in enumerate(row.questions):
            prompt = chat_prompt(self.processor, question, images=int(number == 0))
            prompts.append(prompt if number or not row.instructed else self.collator.instruct(prompt, [True]))
        return prompts

    def on_fit_end(self) -> None:
        """Merge the adapters and write the model with its processor to `out`."""
        if self.trainer.fast_dev_run or not self.trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        if self._peft:
            self.lvlm, self._peft = self._peft[0].merge_and_unload(), ()
        with new_directory(self.out, overwrite=True, ours=_FILES) as folder, native_writer(folder):
            self.lvlm.save_pretrained(folder)
            self.processor.save_pretrained(folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the tokenizer, without which the weights mean nothing."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[TOKENIZER_KEY] = self.processor.tokenizer.backend_tokenizer.to_str()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another tokenizer: ids must mean what they meant in training."""
        if checkpoint.get(TOKENIZER_KEY) != self.processor.tokenizer.backend_tokenizer.to_str():
            raise BadDataError("the checkpoint has another tokenizer: it was trained on other questions")
        super().on_load_checkpoint(checkpoint)

    def _example(self, row: Conversation) -> Example:
        verdict = self.features.verdicts.get(row.image)
        if verdict is not None:
            drawn = random.random() < (GUARD | self.hparams["guard"])["instructed"]
            # The collator instructs what is flagged.
            row = row._replace(instructed=not verdict.is_flagged and (row.instructed or drawn))
        turns = tuple(zip(self.prompts(row), row.answers, strict=True))
        return Example(turns, (self.features.tokens,), () if verdict is None else (verdict,))

    def _build(self, data: QuestionData) -> tuple[Any, Any]:
        h: Any = self.hparams
        sizes = {"vocabulary_size": 768, **(h.language or {})}
        clip = load_model(h.clip)
        if not isinstance(clip, DualEncoder):
            raise BadArgumentError(f"clip {h.clip} is a {clip.card.name}, a LLaVA needs a safeclip_* release")
        # The template's own words too, and the instruction as often as a common word: it must not fall to bytes.
        texts = [*data.train_texts(), *[f"USER: \n{INSTRUCTION}\n ASSISTANT:"] * 100]
        tokenizer = self.trainer.strategy.broadcast(train_llava_tokenizer(texts, sizes["vocabulary_size"]))
        processor = tiny_llava_processor(clip, tokenizer, known=[INSTRUCTION])
        try:
            return build_tiny_llava(clip, processor, **sizes), processor
        except TypeError as problem:
            raise BadArgumentError(f"language: {problem}") from None


#: Keys of `guard` and their defaults; `detector` must be given.
GUARD: dict[str, Any] = {"detector": None, "policy": None, "instructed": 0.25}


class TowerFeatures:
    """The hidden states `[T, W]` that a LLaVA's projector reads, and a detector's verdict, for each image file.

    `model` is a LlavaForConditionalGeneration whose tower does not change. BadInputError refuses more than
    `max_gigabytes` of hidden states. LLaVA-1.5 (576 x 1024 in float16) takes 1.2 MB an image.
    """

    def __init__(self, model: Any, processor: Any, detector: Detector | None, max_gigabytes: float = 8.0) -> None:
        self._model, self._processor, self._detector = model, processor, detector
        self.max_gigabytes = max_gigabytes
        self._states: dict[Path, Tensor] = {}
        #: What the detector says of each image; empty without a detector.
        self.verdicts: dict[Path, Verdict] = {}

    @property
    def tokens(self) -> int:
        """How many image tokens an image fills, T."""
        return len(next(iter(self._states.values())))

    @torch.no_grad()
    def compute(self, paths: Sequence[Path], batch_size: int = 64) -> None:
        """Encode the images that are not known yet. Raises BadInputError for one that cannot be read."""
        new = [path for path in dict.fromkeys(paths) if path not in self._states]
        batches = [new[start : start + batch_size] for start in range(0, len(new), batch_size)]
        for batch in track(batches, "Encoding images", transient=True, disable=len(batches) < 2):
            images = [decode(path, need=LARGEST) for path in batch]
            pixels = self._processor.image_processor(images=images, return_tensors="pt")
            states, cls = self._encode(pixels["pixel_values"])
            size = states[0].numel() * states.element_size() * (len(self._states) + len(new)) / 1e9
            if size > self.max_gigabytes:
                raise BadArgumentError(
                    f"the features of {len(new)} images take {size:.1f} GB, more than max_cache_gb {self.max_gigabytes}"
                )
            if self._detector is not None and cls is not None:
                verdicts = self._detector.verdicts(self._detector(cls), [1] * len(batch))
                self.verdicts |= dict(zip(batch, verdicts, strict=True))
            self._states |= dict(zip(batch, states.cpu(), strict=True))

    def outputs(self, paths: Sequence[Path]) -> dict[str, BaseModelOutputWithPooling]:
        """`mm_encoder_outputs` for the model: the projected features of these images, with the projector's gradient."""
        states = torch.stack([self._states[path] for path in paths]).to(self._model.device)
        return {
            "image": BaseModelOutputWithPooling(pooler_output=list(self._model.model.multi_modal_projector(states)))
        }

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Selected hidden states `[B, T, W]` as `LlavaModel.get_image_features` selects them, and CLS `[B, W]`."""
        config, tower = self._model.config, self._model.model.vision_tower
        read = config.vision_feature_layer
        layers = [read] if isinstance(read, int) else list(read)
        wanted = layers if self._detector is None else [*layers, self._detector.index]
        training = tower.training
        tower.eval()
        pixels = pixels.to(tower.device, tower.dtype)
        hidden = tower(pixels, output_hidden_states=wanted, return_dict=True).hidden_states
        tower.train(training)  # as it was: Lightning warns of parts in evaluation mode
        states = torch.cat([hidden[layer] for layer in layers], dim=-1)
        if config.vision_feature_select_strategy == "default":
            states = states[:, 1:]
        return states, None if self._detector is None else hidden[self._detector.index][:, 0]
