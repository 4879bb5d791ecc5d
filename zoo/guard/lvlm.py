"""Loading a vision-language model, with its processor and the template of its prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from zoo.contract.verdict import Cause, Unseen
from zoo.errors import BadArgumentError, BadDataError
from zoo.files.hub import model_folder
from zoo.inputs.image import Decoded
from zoo.inputs.views import unseen_of

#: LLaVA-1.5's, for processors without a chat template.
TEMPLATE = "USER: {image}\n{question} ASSISTANT:"


def chat_prompt(processor: Any, question: str, images: int = 1) -> str:
    """The prompt of a question behind some images, in the processor's chat template."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(turns, add_generation_prompt=True))


#: Image processors of which it is known what they leave out, whatever their back end.
_PROCESSORS = {"CLIPImageProcessor", "LlavaImageProcessor", "LlavaNextImageProcessor"}


def unseen_by_tower(image_processor: Any, picture: Decoded) -> dict[Cause, Unseen]:
    """What of a picture the vision tower is not given where this processor of transformers prepares `picture.image`.

    The border is what its centre crop leaves out; a processor that is not known may leave out everything. The rest is
    what `picture` says: other frames, damage, what is hidden on white, colours.
    """
    left_out = _border(image_processor, *picture.size)
    if left_out is None:
        note = f"what {type(image_processor).__name__} crops is not known"
        return unseen_of(picture, 0.0) | {"border": Unseen(1, note=note)}
    return unseen_of(picture, left_out)


def _border(image_processor: Any, width: int, height: int) -> float | None:
    """The share of a picture's area that no pixel of the processor shows; None where that is not known."""
    names = {kind.__name__.removesuffix("Pil").removesuffix("Fast") for kind in type(image_processor).__mro__}
    size = {key: value for key, value in dict(image_processor.size).items() if value} if names & _PROCESSORS else {}
    if size.keys() not in ({"shortest_edge"}, {"height", "width"}):
        return None
    if getattr(image_processor, "image_grid_pinpoints", None):
        width = height = 1  # tiles of any resolution are squares that show it all: a crop is of each
    padded = getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square")
    canvas = (max(width, height),) * 2 if padded else (width, height)
    resized = canvas
    if image_processor.do_resize:
        short = size.get("shortest_edge")
        scaled = [short * side // min(canvas) for side in canvas] if short else [size["width"], size["height"]]
        resized = (scaled[0], scaled[1])
    shown = 1.0
    if image_processor.do_center_crop:
        crop = dict(image_processor.crop_size)
        for kept, whole, side, own in zip(
            (crop["width"], crop["height"]), resized, canvas, (width, height), strict=True
        ):
            shown *= min(1.0, min(kept, whole) * side / (whole * own))
    return 1 - shown if 1 - shown > 1e-9 else 0.0


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
