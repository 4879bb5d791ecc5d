"""A LLaVA of any size with random weights, ready in seconds, for measurements that do not hang on what it knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.assets import find_asset
from zoo.contract.policy import Policy
from zoo.errors import BadInputError
from zoo.guard.detector import Detector
from zoo.guard.guard import Guard
from zoo.guard.texts import INSTRUCTION, REFUSAL
from zoo.models.dual_encoder import DualEncoder
from zoo.models.tiny_llava import tiny_llava_processor, train_llava_tokenizer
from zoo.models.towers import clip_config
from zoo.registry import create_model, model_entry

#: LLaVA-1.5's vision tower, and its projector's input: the last layer but one.
CLIP, FEATURE_LAYER = "safeclip_vit_l14_336.zeroshot", -2
VOCABULARY = 32064
QUESTION = "USER: <image>\nWhat is shown in this image, and where might it have been taken? ASSISTANT:"
#: Room for activations, cache and the rest of the process beside the weights, in bytes.
MARGIN = 2 * 1024**3


@dataclass(frozen=True)
class Size:
    """Sizes of the Llama, by default those of 7 billion parameters; `clip` is the registered model around the tower."""

    layers: int = 32
    width: int = 4096
    heads: int = 32
    hidden: int | None = None
    clip: str = CLIP

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads) < 1 or self.width % (2 * self.heads):
            raise BadInputError(
                f"need at least 1 layer, and a width that is an even multiple of the heads, got {self.layers} layers, "
                f"width {self.width}, {self.heads} heads"
            )

    @property
    def intermediate(self) -> int:
        """Width inside the gated MLP: Llama's 8/3 of the width, rounded up to a multiple of 256, unless given."""
        return self.hidden or -(-8 * self.width // 3 // 256) * 256


def build(size: Size, device: torch.device, dtype: torch.dtype) -> tuple[Any, Guard, int]:
    """The model with random weights, directly in its type, its guard, and how many parameters it has."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.initialization import no_init_weights

    clip = create_model(size.clip)
    if not isinstance(clip, DualEncoder):
        raise BadInputError(f"--clip {size.clip}: the tower of a LLaVA comes from a safeclip_* model")
    processor = tiny_llava_processor(clip, train_llava_tokenizer([INSTRUCTION, REFUSAL, QUESTION], 600))
    vision = clip_config(clip.card).vision_config
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.width,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=4096,
            pad_token_id=processor.tokenizer.pad_token_id,
        ),
        image_token_index=processor.image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
    )
    with torch.device("meta"), no_init_weights():
        parameters = sum(weight.numel() for weight in LlavaForConditionalGeneration(config).parameters())
    check_memory(parameters * dtype.itemsize, device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device, no_init_weights():  # drawing seven billion numbers would take minutes
            model = LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    fill(model)
    # The tower that the detector was made of, as in earnest; the release lacks the layer that is not read.
    tower: Any = clip.image_tower
    model.model.vision_tower.load_state_dict(tower.vision_model.state_dict(), strict=False)
    policy = Policy.read(find_asset(model_entry(size.clip).policy))
    return model, Guard(model, processor, Detector(clip, policy), correction="flag"), parameters


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Give every weight a small value: one block of normal numbers over and over, norms 1, biases 0."""
    block: Tensor | None = None
    for name, weight in model.named_parameters():
        if block is None or block.device != weight.device:
            generator = torch.Generator().manual_seed(0)
            # A prime number of them, so that no two rows of a matrix are equal.
            block = (0.02 * torch.randn(1_000_003, generator=generator)).to(weight.device, weight.dtype)
        if name.endswith("bias"):
            weight.zero_()
        elif weight.ndim == 1 and "norm" in name:
            weight.fill_(1.0)
        else:
            flat = weight.view(-1)
            for start in range(0, len(flat), len(block)):
                part = flat[start : start + len(block)]
                part.copy_(block[: len(part)])


def check_memory(needed: int, device: torch.device) -> None:
    """Raise BadInputError when `needed` bytes of weights, with some room, are not free; better than to be killed."""
    free, where = _free_memory(device)
    if free is not None and needed + MARGIN > free:
        raise BadInputError(
            f"{needed / 1e9:.1f} GB of weights and {MARGIN / 1e9:.1f} GB beside them do not fit into the "
            f"{free / 1e9:.1f} GB that are free ({where}): take fewer --lm-layers, a smaller --lm-width, or bfloat16"
        )


def _free_memory(device: torch.device) -> tuple[int | None, str]:
    """Free bytes and where that stands; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], str(device)
    table = Path("/proc/meminfo")
    if not table.is_file():
        return None, ""
    lines = dict(line.split(":", 1) for line in table.read_text(encoding="ascii").splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0]), "MemAvailable of /proc/meminfo"
