"""The detector: a released SafeCLIP on top of CLS tokens that a vision-language model has computed anyway."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from zoo.contract.policy import AnyPolicy, Policy, read_policy
from zoo.contract.verdict import Verdict
from zoo.errors import BadArgumentError, GuardError
from zoo.judging.base import Seen
from zoo.judging.judge import Judge
from zoo.keys import refuse_unsigned
from zoo.models.base import ZooModel
from zoo.models.clip import ClipImageTower, DualEncoder
from zoo.models.served import text_bank
from zoo.release.store import load_release

Tiles = Literal["max", "mean", "base"]
_SEVERITY = {"safe": 0, "review": 1, "unsafe": 2}


def load_detector(
    source: str | Path, policy: Policy | str | Path | None = None, *, layer: int | None = None
) -> Detector:
    """The detector of a release or registered `safeclip_*` model, with its own policy or another (or the file of one).

    Raises what `load_release` and `Detector` raise.
    """
    refuse_unsigned(source)
    release = load_release(source)
    chosen = read_policy(policy) if isinstance(policy, (str, Path)) else policy or release.policy
    return Detector(release.model, chosen, layer=layer)


class Detector(nn.Module):
    """Visual projection, text bank and temperature of a SafeCLIP, with a policy (arXiv 2503.00037).

    `layer` is the index of the hidden state whose CLS token is read, negative, in the CLIP that the model's card
    describes (default: the card's; LLaVA's projector reads -2); `index` is the same counted from the embeddings, so
    that it also fits a tower that was cut off behind that layer. `post_layernorm` applies CLIP's final LayerNorm.

    `tiles` combines an image's tiles where a model cuts it up: `max` lets the worst tile decide (a flagged one before
    any other, then the highest unsafe score), `mean` averages the phrase scores, `base` reads the whole view alone.

    The text bank is embedded here, once; the towers are not kept. Everything is float32, for models of any precision.
    Raises BadInputError for a model without CLIP towers or a layer that it does not have, BadPolicyError, and
    TamperedFileError with a key configured, as no model in memory is signed.
    """

    text_bank: Tensor

    def __init__(
        self,
        model: ZooModel,
        policy: AnyPolicy,
        *,
        layer: int | None = None,
        post_layernorm: bool | None = None,
        tiles: Tiles = "max",
    ) -> None:
        super().__init__()
        tower = getattr(model, "image_tower", None)
        if not isinstance(model, DualEncoder) or not isinstance(tower, ClipImageTower):
            raise BadArgumentError(
                f"{model.card.name} cannot be a guard's detector: a guard's detector is a safeclip_* model, with the "
                "tower of a CLIP"
            )
        refuse_unsigned(model.card.name)
        if tiles not in get_args(Tiles):
            raise BadArgumentError(f"tiles must be one of {', '.join(get_args(Tiles))}, got {tiles!r}")
        depth = int(model.card.hparams["vision_layers"])
        self.layer = int(model.card.hparams["layer"]) if layer is None else layer
        if not -depth - 1 <= self.layer <= -1:
            raise BadArgumentError(
                f"layer must lie in [{-depth - 1}, -1] for a CLIP of {depth} layers, got {self.layer}"
            )
        self.index = depth + 1 + self.layer
        self.card, self.policy, self.tiles = model.card, policy.single(), tiles
        self.judge = Judge(self.card, self.policy)
        self.visual_projection = copy.deepcopy(tower.visual_projection).float().requires_grad_(False)
        normed = tower.post_layernorm if post_layernorm is None else post_layernorm
        norm = copy.deepcopy(tower.vision_model.post_layernorm) if normed else nn.Identity()
        self.post_layernorm = norm.float().requires_grad_(False)
        self.register_buffer("text_bank", text_bank(model, self.policy).float() * model.scale().detach().float())
        built = len(tower.vision_model.encoder.layers)
        self.compared_layers = min(built, self.index)
        self.tower_weights = tower_sample(tower.vision_model, self.compared_layers)
        self.to(model.logit_scale.device).eval()

    @property
    def width(self) -> int:
        """Width of the CLS tokens that it projects."""
        return int(self.visual_projection.in_features)

    @torch.no_grad()
    def forward(self, cls: Tensor) -> Tensor:
        """Phrase scores `[N, P]` in [0, 1], float32, of hidden CLS tokens `[N, W]` in any float type."""
        if self.text_bank.device != cls.device:
            self.to(cls.device)
        with torch.autocast(cls.device.type, enabled=False):
            embedding = self.visual_projection(self.post_layernorm(cls.float()))
            return (nn.functional.normalize(embedding, dim=-1) @ self.text_bank.T).softmax(dim=-1)

    def verdicts(self, scores: Tensor, tiles: list[int], unseen: Sequence[Seen] | None = None) -> list[Verdict]:
        """The verdict on each image, from the phrase scores of its tiles; `unseen` by image, None: not known.

        Raises GuardError if one cannot be judged.
        """
        table = scores.cpu().numpy()
        if not np.isfinite(table).all():
            rows = np.flatnonzero(~np.isfinite(table).all(axis=1)).tolist()
            raise GuardError(
                f"the detector's scores of tiles {rows} are NaN: the vision tower gave no finite CLS token"
            )
        ends, gaps = np.cumsum(tiles), unseen or [None] * len(tiles)
        return [self._image(table[end - count : end], gap) for end, count, gap in zip(ends, tiles, gaps, strict=True)]

    def _image(self, table: NDArray[np.float32], unseen: Seen) -> Verdict:
        if self.tiles == "mean":
            table = table.mean(axis=0, keepdims=True)
        elif self.tiles == "base":
            table = table[:1]
        verdicts = self.judge.verdicts(table, unseen=[unseen] * len(table))
        for verdict in verdicts:
            if verdict.status != "ok":
                raise GuardError(f"an image could not be judged: {verdict.detail}")
        return max(verdicts, key=lambda one: (_SEVERITY[one.decision] if one.is_flagged else 0, self.judge.rank(one)))


#: Up to this relative difference weights count as the same: a half unit in bfloat16's last place, and some room.
SAME_WEIGHTS = 2.0**-8


@dataclass(frozen=True)
class Features:
    """The result of one vision pass: per image the `[T_i, H]` features that the language model reads (a list, or one
    tensor `[I, T, H]`, as the model returned them), and per tile the CLS token, `cls` `[N, W]`.

    `tiles[i]` is how many of the N rows belong to image i; `consumed` the inputs that the pass has used up.
    """

    pooled: list[Tensor] | Tensor
    cls: Tensor
    tiles: list[int]
    consumed: tuple[str, ...]

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
    """The CLIP vision tower of a vision-language model. Raises BadInputError with the reason if it has none."""
    name, tower = type(model).__name__, getattr(model.base_model, "vision_tower", None)
    if tower is None:
        raise BadArgumentError(f"{name} has no vision tower; the guard reads the CLS token of a CLIP (as in LLaVA)")
    if not isinstance(tower, CLIPVisionModel):
        raise BadArgumentError(
            f"{name}: its vision tower is {type(tower).__name__}, not a CLIP; the detector projects CLIP's CLS token, "
            "which other towers (SigLIP) do not have"
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
    the guard. Raises GuardError if the tower does not return the layer, or if tiles and images do not add up.
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
