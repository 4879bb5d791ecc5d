"""The guard: a vision-language model that looks at its images before it answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from zoo.contract.policy import Policy
from zoo.errors import BadArgumentError, GuardError
from zoo.guard.answers import Answer, Corrected, GuardedOutput, Screening, control_tokens, generate_or_refuse
from zoo.guard.detector import Detector, clip_tower, encode, load_detector, same_tower, tower_sample, unwrap
from zoo.guard.insertion import INSTRUCTION, Inserter, Splice, image_spans, insertion_point, layout, splice_batch
from zoo.guard.lvlm import chat_prompt, unseen_by_tower
from zoo.guard.refusals import REFUSAL, refusal_for
from zoo.inputs.image import LARGEST, Decoded, ImageSource, decode_with_notes
from zoo.judging.base import Seen

Correction = Literal["instruct", "refuse", "flag"]
Picture = ImageSource

#: Inputs that the guard cannot inspect, so it refuses them.
_UNSEEN = {
    "inputs_embeds": "images in embeddings cannot be found: give input_ids and pixel_values",
    "mm_encoder_outputs": "these features were encoded elsewhere: give pixel_values",
    "inputs": "give the ids as input_ids",
}

log = logging.getLogger("zoo.guard")


class Guard:
    """Judges every image in the vision pass that the language model needs anyway, and corrects the prompt if need be.

    ```python
    from transformers import AutoProcessor, LlavaForConditionalGeneration
    import zoo

    model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
    processor = AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")
    guard = zoo.Guard(model, processor, "safeclip_vit_l14_336.zeroshot")
    inputs = guard.inputs(["photo.jpg"], ["USER: <image>\\nWhat is this? ASSISTANT:"])
    output = guard.generate(**inputs, max_new_tokens=100)
    print(output.text[0], output.flagged[0], output.verdicts[0])
    ```

    After SafeCLIP (Zhao et al., EMNLP Findings 2025, arXiv 2503.00037): the CLS token that LLaVA throws away is
    projected into CLIP's text space and compared with a policy's phrases. The cost is one projection and one product
    with the text bank for each image (each tile, where a model cuts images up). The vision tower runs once, the text
    tower at construction alone. Where no image is flagged the model answers bit for bit as without a guard.

    `correction` says what happens to a row with an image in which a category that blocks or asks for review is flagged:
    `instruct` inserts `instruction` as a line of its own after the run of adjacent images with the row's last flagged
    image, keeping the user's words, and the language model decides; `refuse` answers `refusal` without running the
    language model on that row; `flag` answers as usual and reports. A verdict that is `review` for what is unseen alone
    changes no answer: the language model is not given that either. A prompt that grows counts against `max_length`
    (use `max_new_tokens`), and a refusal is never cut short.

    It fails closed: what cannot be judged raises, and nothing is answered. `model` may be any transformers model with
    a CLIP vision tower that takes encoded images (LLaVA, LLaVA-NeXT, VipLLaVA, ...), also compiled, half precision,
    or inside PEFT; `detector` a release or registered name of a `safeclip_*` model, or a `Detector`. `tower_matches`
    tells whether the detector belongs to the vision tower that the model has; if not, a warning is logged.

    Raises BadInputError if these do not fit together, and what `load_release` raises.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        detector: str | Path | Detector,
        *,
        policy: Policy | str | Path | None = None,
        correction: Correction = "instruct",
        instruction: str = INSTRUCTION,
        refusal: str = REFUSAL,
    ) -> None:
        if correction not in get_args(Correction):
            raise BadArgumentError(f"correction must be one of {', '.join(get_args(Correction))}, got {correction!r}")
        self.model, self.processor = model, processor
        self._inner = unwrap(model)
        tower = clip_tower(self._inner)
        if isinstance(detector, Detector) and policy is not None:
            raise BadArgumentError("a Detector has its policy already: give the policy to it, not to the guard")
        self.detector = detector if isinstance(detector, Detector) else load_detector(detector, policy)
        self.correction, self.refusal = correction, refusal
        refusal_for([], refusal)
        self._image_token_id = _image_token_id(self._inner, processor)
        self.inserter = Inserter(processor.tokenizer, self._image_token_id, instruction)
        self._check_tower(tower)

    def _check_tower(self, tower: Any) -> None:
        width, depth, ours = tower.config.hidden_size, len(tower.encoder.layers), self.detector
        if ours.width != width:
            raise BadArgumentError(
                f"{ours.card.name} projects CLS tokens of width {ours.width}, but the vision tower of "
                f"{type(self._inner).__name__} is {width} wide: take the detector of the same CLIP"
            )
        if ours.index > depth:
            raise BadArgumentError(
                f"the detector reads hidden state {ours.index} (layer {ours.layer} of {ours.card.name}), but the "
                f"vision tower of {type(self._inner).__name__} ends at {depth}"
            )
        self.tower_matches = same_tower(ours.tower_weights, tower_sample(tower, ours.compared_layers))
        if not self.tower_matches:
            log.warning(
                "%s comes from another vision tower than that of %s: its thresholds were not measured there",
                ours.card.name,
                type(self._inner).__name__,
            )

    def screen(self, *, unseen: Sequence[Seen] | None = None, **inputs: Any) -> Screening:
        """Run the vision tower on `pixel_values` and judge every image; other inputs as the processor gives them.

        `unseen` says of each image, in the order of the prompts, what the tower is not given (`inputs` knows); pixels
        do not tell that, so without it the verdicts' `unseen` is None.

        Raises BadInputError for inputs whose images could not be seen, GuardError when an image cannot be judged.
        """
        ids, cached = self._check(inputs), _cached(inputs)
        is_image = (ids[:, cached:] == self._image_token_id).cpu()
        pixels = inputs.get("pixel_values")
        if pixels is None or len(pixels) == 0:
            if is_image.any():
                raise BadArgumentError(f"{int(is_image.sum())} image tokens in input_ids, but no pixel_values")
            nothing: list[Any] = [[] for _ in ids]
            return Screening(nothing, None, nothing, cached)
        features = encode(self._inner, inputs, self.detector.index)
        spans = image_spans(is_image, [len(image) for image in features.pooled])
        if unseen is not None and len(unseen) != len(features.tiles):
            raise BadArgumentError(f"`unseen` is of {len(unseen)} images, and pixel_values of {len(features.tiles)}")
        judged = iter(self.detector.verdicts(self.detector(features.cls), features.tiles, unseen))
        verdicts = [[next(judged) for _ in row] for row in spans]
        return Screening(verdicts, features, spans, cached)

    def correct(self, inputs: Mapping[str, Any], screening: Screening | None = None) -> Corrected:
        """Inputs for `model(**inputs)` or `model.generate(**inputs)`: screened, and instructed where need be.

        Under `instruct` the instruction is inserted into flagged rows of `input_ids`; `attention_mask`, `position_ids`
        and `labels` (-100 on what is inserted) follow, and the padding stays on its side. Under `flag` only the
        pixels are replaced by their features. Under `refuse` a flagged row raises GuardError: it has no inputs.
        """
        screening = self.screen(**inputs) if screening is None else screening
        inputs = {key: value for key, value in inputs.items() if key != "unseen"}
        rows = screening.flagged_rows
        if self.correction == "refuse" and rows:
            raise GuardError(f"rows {rows} are refused: only Guard.generate can answer them")
        prepared = dict(inputs)
        if screening.features is not None:
            prepared = {key: value for key, value in inputs.items() if key not in screening.features.consumed}
            prepared["mm_encoder_outputs"] = screening.features.encoder_outputs()
        if self.correction == "flag" or not rows:
            return Corrected(prepared, screening, [False] * len(screening.verdicts))
        return Corrected(self._insert(prepared, screening), screening, screening.flagged)

    def _insert(self, inputs: Mapping[str, Any], screening: Screening) -> dict[str, Any]:
        pad, end = control_tokens(self._inner, self.processor.tokenizer, inputs)
        plan = layout(inputs, screening.cached, pad, end)
        body, labels = inputs["input_ids"][:, screening.cached :], inputs.get("labels")
        splices: list[Splice | None] = [None] * len(body)
        for row in screening.flagged_rows:
            stop = plan.content[row][1]
            known = None if labels is None else labels[row, -plan.width :].tolist()
            at = insertion_point(screening.spans[row], [verdict.is_flagged for verdict in screening.verdicts[row]])
            splices[row] = self.inserter.splice(body[row, :stop].tolist(), at, known)
        return splice_batch(inputs, splices, plan, pad)

    @torch.no_grad()
    def generate(self, *, unseen: Sequence[Seen] | None = None, **inputs: Any) -> GuardedOutput:
        """The model's own `generate` (inputs of the processor and any generation argument), guarded.

        `unseen` is as of `screen`.

        A streamer also gets a refusal. If the guard fails, the streamer is ended before the error is raised, so that
        its readers do not wait. Raises what `screen` raises; GuardError for a batch that cannot be refused in part.
        """
        streamer = inputs.get("streamer")
        try:
            screening = self.screen(unseen=unseen, **inputs)
            if self.correction == "refuse" and any(screening.flagged):
                return self._refuse(inputs, screening)
            corrected = self.correct(inputs, screening)
        except BaseException:
            if streamer is not None:
                streamer.end()
            raise
        output = self.model.generate(**corrected.inputs)  # type: ignore[operator]
        sequences = output if isinstance(output, Tensor) else output.sequences
        return self._output(sequences, screening, corrected.corrected, output, corrected.inputs)

    def _refuse(self, inputs: Mapping[str, Any], screening: Screening) -> GuardedOutput:
        texts = {row: refusal_for(screening.verdicts[row], self.refusal) for row in screening.flagged_rows}
        sequences, output = generate_or_refuse(
            self.model, self._inner, self.processor.tokenizer, inputs, screening, texts
        )
        return self._output(sequences, screening, screening.flagged, output, inputs)

    def _output(
        self, sequences: Tensor, screening: Screening, corrected: list[bool], output: Any, inputs: Mapping[str, Any]
    ) -> GuardedOutput:
        length = inputs["input_ids"].shape[1]
        text = self.processor.tokenizer.batch_decode(sequences[:, length:], skip_special_tokens=True)
        _, end = control_tokens(self._inner, self.processor.tokenizer, inputs)
        return GuardedOutput(sequences, text, screening.verdicts, screening.flagged, corrected, output, length, end)

    def answer(
        self, images: Sequence[Picture | Sequence[Picture] | None], prompts: Sequence[str], **options: Any
    ) -> list[Answer]:
        """Answer prompts about images, as `inputs` takes them; `options` go to `generate`.

        Raises BadInputError, GuardError.
        """
        if options.get("num_return_sequences", 1) != 1:
            raise BadArgumentError("answer gives one answer a prompt; use generate for num_return_sequences")
        output = self.generate(**self.inputs(images, prompts), **options)
        rows = zip(output.text, output.verdicts, output.flagged, output.corrected, strict=True)
        return [Answer(text.strip(), verdicts, flagged, changed) for text, verdicts, flagged, changed in rows]

    def inputs(self, images: Sequence[Picture | Sequence[Picture] | None], prompts: Sequence[str]) -> dict[str, Any]:
        """The processor's tensors of a left-padded batch, and `unseen`: what of each image the tower is not given.

        They are for `generate`, `correct` and `screen`. Images are one or several or none (None) for each prompt, each
        whatever `zoo.inputs.image.decode` takes. A prompt without the image token is put into the processor's chat
        template. Raises BadInputError.
        """
        if len(images) != len(prompts):
            raise BadArgumentError(f"{len(images)} images (or groups of images) for {len(prompts)} prompts")
        groups = [_group(group) for group in images]
        texts = [self._prompt(prompt, len(group)) for prompt, group in zip(prompts, groups, strict=True)]
        pictures = [picture for group in groups for picture in group]
        tensors = self.processor(
            images=[picture.image for picture in pictures] or None,
            text=texts,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self._inner.device)
        return {**tensors, "unseen": [unseen_by_tower(self.processor.image_processor, one) for one in pictures]}

    def _prompt(self, prompt: str, images: int) -> str:
        token = self.processor.tokenizer.convert_ids_to_tokens(self._image_token_id)
        if prompt.count(token) == images:
            return prompt
        if token in prompt:
            raise BadArgumentError(
                f'prompt of {len(prompt)} characters with {prompt.count(token)} "{token}" for {images} images'
            )
        if not self.processor.chat_template:
            raise BadArgumentError(
                f'prompt of {len(prompt)} characters without "{token}", and the processor has no chat template'
            )
        return chat_prompt(self.processor, prompt, images)

    def _check(self, inputs: Mapping[str, Any]) -> Tensor:
        for name, value in inputs.items():
            other_pixels = name.startswith("pixel_values") and name != "pixel_values"
            if value is not None and (name in _UNSEEN or other_pixels):
                reason = _UNSEEN.get(name, "only images are judged, as pixel_values, and no videos")
                raise BadArgumentError(f"the guard takes no {name}: {reason}")
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            given = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
            raise BadArgumentError(f"input_ids must be a tensor [B, T], got {given}")
        return ids


def _image_token_id(model: Any, processor: Any) -> int:
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise BadArgumentError(f"the guard needs the processor of the model, got {type(processor).__name__}")
    wanted, given = int(model.config.image_token_id), getattr(processor, "image_token_id", None)
    if given is not None and given != wanted:
        raise BadArgumentError(
            f"the processor's image token is {given}, the model's is {wanted}: they do not belong together"
        )
    return wanted


def _cached(inputs: Mapping[str, Any]) -> int:
    """How many leading columns of `input_ids` an earlier turn has left in the cache (as `generate` counts them)."""
    cache, mask = inputs.get("past_key_values"), inputs.get("attention_mask")
    if cache is None or (mask is not None and mask.shape[1] != inputs["input_ids"].shape[1]):
        return 0  # a mask that is longer than the ids: they are the new ones alone
    return int(cache.get_seq_length())


def _group(group: Picture | Sequence[Picture] | None) -> list[Decoded]:
    if group is None:
        return []
    several: Sequence[Any] = group if isinstance(group, (list, tuple)) else [group]
    return [decode_with_notes(one, need=LARGEST) for one in several]
