"""Loading a vision-language model, with its processor and the template of its prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from zoo.errors import BadArgumentError, BadDataError
from zoo.files.hub import model_folder

#: LLaVA-1.5's, for processors without a chat template.
TEMPLATE = "USER: {image}\n{question} ASSISTANT:"


def chat_prompt(processor: Any, question: str, images: int = 1) -> str:
    """The prompt of a question behind some images, in the processor's chat template."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(turns, add_generation_prompt=True))


@dataclass(frozen=True)
class VisionLanguageModel:
    """A transformers model in evaluation mode, its processor, and the template of its prompts.

    `template` has the fields `{image}` and `{question}`; None means the processor's own chat template.
    """

    model: Any
    processor: Any
    template: str | None

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return torch.device(self.model.device)

    def prompt(self, question: str) -> str:
        """The prompt of one question about one image. Raises BadInputError for a question with an image token in it."""
        token = self.processor.image_token
        if token in question:
            raise BadArgumentError(f'the question holds the image token "{token}": leave it out')
        if self.template is not None:
            return self.template.replace("{image}", token).replace("{question}", question)
        return chat_prompt(self.processor, question)

    def inputs(self, image: Image.Image, question: str) -> dict[str, Any]:
        """The processor's tensors for one image and question, on the model's device."""
        prompt, tokenizer = self.prompt(question), self.processor.tokenizer
        # A chat template may write the first token itself: the tokenizer must not repeat it.
        begun = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
        tensors = self.processor(images=[image], text=[prompt], return_tensors="pt", add_special_tokens=not begun)
        return dict(tensors.to(self.device))


def load_lvlm(
    source: str | Path,
    *,
    template: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    model_type: str | None = None,
) -> VisionLanguageModel:
    """Load a model that AutoModelForImageTextToText knows, from safetensors alone.

    Args:
        source: a directory, or `hf-hub:ORG/NAME`.
        template: of the prompts, with `{question}` and `{image}` (or the image token); the model's own when None.
        device: where the model is put.
        dtype: "bfloat16" for example; "auto" is the checkpoint's own.
        model_type: the only `config.model_type` that is accepted; any when None.

    Raises BadInputError saying what is wrong.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadArgumentError(f"device {device}: torch {torch.__version__} sees no CUDA GPU here")
    classes, what = (AutoModelForImageTextToText, AutoProcessor), "a vision-language model"
    model, processor = load_pretrained(source, *classes, what, dtype=dtype, model_type=model_type)
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_token"):
        raise BadDataError(f"{source}: holds no processor of images and texts, but a {type(processor).__name__}")
    return VisionLanguageModel(model.to(device).eval(), processor, _checked(template, processor))


def load_pretrained(
    source: str | Path, model_class: Any, reader_class: Any, what: str, *, dtype: str, model_type: str | None = None
) -> tuple[Any, Any]:
    """A model of transformers from safetensors alone, and its tokenizer or processor; arguments as of `load_lvlm`.

    `model_class` and `reader_class` are transformers' auto classes, `what` calls the model by name in a message. Raises
    BadInputError for a source that cannot be loaded, or whose weights are incomplete.
    """
    from transformers import AutoConfig

    folder, _ = model_folder(source)
    try:
        kind = AutoConfig.from_pretrained(folder).model_type
        if model_type not in (None, kind):
            raise ValueError(f"it is a {kind}, and a {model_type} is needed")
        model, report = model_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
        reader = reader_class.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as problem:
        reason = str(problem).replace(str(folder), str(source))
        raise BadArgumentError(f"{source}: cannot be loaded as {what}: {reason}") from None
    if report["missing_keys"]:  # transformers would leave them at random with no more than a warning
        absent = ", ".join(sorted(report["missing_keys"])[:4])
        raise BadDataError(f"{source}: its weights are incomplete, without {absent}")
    return model, reader


def _checked(template: str | None, processor: Any) -> str | None:
    if template is None:
        return None if processor.chat_template else TEMPLATE
    whole = template.replace("\\n", "\n").replace("{image}", processor.image_token)
    for part in ("{question}", processor.image_token):
        if whole.count(part) != 1:
            raise BadArgumentError(
                f"prompt template of {len(template)} characters: needs {part} once; such as {TEMPLATE!r}, \\n being a "
                "line break"
            )
    return whole
