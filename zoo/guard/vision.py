"""The vision side of a vision-language model: its CLIP tower, one pass over the images, and which tile is whose."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from zoo.errors import BadArgumentError, GuardError

#: Up to this relative difference weights count as the same: a half unit in bfloat16's last place, and some room.
SAME_WEIGHTS = 2.0**-8


@dataclass(frozen=True)
class Features:
    """What one vision pass gave: per image the `[T_i, H]` features that the language model reads (a list, or one
    tensor `[I, T, H]`, as the model returned them), and per tile the CLS token, `cls` `[N, W]`.

    `tiles[i]` is how many of the N rows belong to image i; `consumed` the inputs that the pass has used up.
    """

    pooled: list[Tensor] | Tensor
    cls: Tensor
    tiles: list[int]
    consumed: tuple[str, ...]

    @property
    def lengths(self) -> list[int]:
        """How many image tokens each image fills."""
        return [len(image) for image in self.pooled]

    def encoder_outputs(self, images: list[int] | None = None) -> dict[str, BaseModelOutputWithPooling]:
        """`mm_encoder_outputs` for `forward` or `generate`; new each time, as beams change it in place."""
        pooled = self.pooled
        if images is not None:
            pooled = pooled[images] if isinstance(pooled, Tensor) else [pooled[index] for index in images]
        return {"image": BaseModelOutputWithPooling(pooler_output=pooled)}


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `torch.compile`'s or PEFT's wrapper. Raises BadInputError for anything else."""
    inner: Any = getattr(model, "_orig_mod", model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    if not isinstance(inner, PreTrainedModel):
        raise BadArgumentError(f"the guard wraps a transformers vision-language model, got {type(inner).__name__}")
    return inner


def clip_tower(model: PreTrainedModel) -> CLIPVisionModel:
    """The CLIP vision tower of a vision-language model. Raises BadInputError saying why there is none to read."""
    name, tower = type(model).__name__, getattr(model.base_model, "vision_tower", None)
    if tower is None:
        raise BadArgumentError(f"{name} has no vision tower; the guard reads the CLS token of a CLIP (as in LLaVA)")
    if not isinstance(tower, CLIPVisionModel):
        raise BadArgumentError(
            f"{name}: its vision tower is {type(tower).__name__}, no CLIP; without CLIP's CLS token (SigLIP has none) "
            "there is nothing that the detector could project"
        )
    pre_encoded = "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters
    if not pre_encoded or not hasattr(model.base_model, "get_image_features"):
        raise BadArgumentError(
            f"{name}: its forward takes no mm_encoder_outputs, so images would have to be encoded twice"
        )
    return tower


def encode(model: PreTrainedModel, inputs: Mapping[str, Any], layer: int) -> Features:
    """Run the vision tower once, as `generate` would with the same inputs, and keep the CLS tokens of one layer.

    `layer` is the absolute index of the hidden state (0 the embeddings). Gradients flow where they would without
    the guard. Raises GuardError when the layer does not come out, or tiles and images do not add up.
    """
    base: Any = model.base_model
    accepted = inspect.signature(base.get_image_features).parameters
    given = {key: inputs[key] for key in accepted if key != "kwargs" and inputs.get(key) is not None}
    read = given.get("vision_feature_layer", model.config.vision_feature_layer)
    layers = [read] if isinstance(read, int) else list(read)
    # In place of the model's own selection of hidden states: one more of the same pass, and the same numbers.
    output = base.get_image_features(**given, output_hidden_states=[*layers, layer], return_dict=True)
    states = output.hidden_states
    if states is None or layer >= len(states) or states[layer] is None:
        raise GuardError(f"the vision tower gave no hidden state {layer}, so nothing can be judged")
    cls = states[layer][:, 0]
    tiles = _tiles(model, inputs, len(output.pooler_output), len(cls))
    return Features(output.pooler_output, cls, tiles, tuple(given))


def _tiles(model: PreTrainedModel, inputs: Mapping[str, Any], images: int, rows: int) -> list[int]:
    """How many rows of the vision pass each image has: one, or its any-resolution tiles, the base view first."""
    if rows == images:
        return [1] * images
    config, sizes = model.config, inputs.get("image_sizes")
    count = getattr(importlib.import_module(type(model).__module__), "image_size_to_num_patches", None)
    pinpoints = getattr(config, "image_grid_pinpoints", None)
    tiles: list[int] = []
    if count is not None and pinpoints and sizes is not None:
        tiles = [int(count(size, pinpoints, config.vision_config.image_size)) for size in sizes]
    if len(tiles) != images or sum(tiles) != rows:
        raise GuardError(
            f"{rows} tiles of {images} images do not add up (expected {tiles or 'one each'}): it is not clear which "
            f"tile of {type(model).__name__} belongs to which image"
        )
    return tiles


def tower_sample(tower: CLIPVisionModel, layers: int) -> dict[str, Tensor]:
    """Up to 256 values of every weight that a CLS token of hidden state `layers` depends on, on the CPU."""
    prefixes = ("embeddings.", "pre_layrnorm.", *(f"encoder.layers.{index}." for index in range(layers)))
    sample = {}
    for name, weight in tower.named_parameters():
        if name.startswith(prefixes) and not weight.is_meta:
            flat = weight.detach().flatten()
            sample[name] = flat[:: max(1, len(flat) // 256)][:256].float().cpu()
    config = tower.config
    sample["config"] = torch.tensor([config.num_attention_heads, config.patch_size, config.image_size]).float()
    return sample


def same_tower(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether two samples are of the same weights, up to the rounding of bfloat16."""
    return ours.keys() == theirs.keys() and all(
        value.shape == theirs[name].shape
        and float((value - theirs[name]).norm()) <= SAME_WEIGHTS * float(value.norm()) + 1e-6
        for name, value in ours.items()
    )
