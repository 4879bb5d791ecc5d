"""MobileNetV1 as Keras published it and NSFWJS on MobileNetV2, and how Keras weights are renamed for torch.

Sources: MobileNetV1 0.75 at 224 px by Google (Apache-2.0); infinitered/nsfwjs (MIT), the model trained by GantMan,
published for TensorFlow.js. Keras pads stride-2 convolutions below and to the right only, and has a batch-norm
epsilon of 1e-3: both are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import MobileNetV1Config, MobileNetV1Model, MobileNetV2Config, MobileNetV2Model

from zoo.contract.card import ModelCard
from zoo.errors import BadDataError
from zoo.models.base import Normalise, ZooModel, image_of
from zoo.registry import model_card

Weights = Mapping[str, NDArray[np.float32]]

#: What Keras' MobileNets have in common, as transformers configures it.
_KERAS: dict[str, Any] = {"image_size": 224, "tf_padding": True, "hidden_act": "relu6", "layer_norm_eps": 1e-3}
_BATCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def mobilenet_v1_config(depth_multiplier: float, min_depth: int = 8) -> MobileNetV1Config:
    """The configuration of a Keras MobileNetV1 at 224 px.

    `depth_multiplier` scales every channel count (0.75 is the published model: 768 features). No count falls below
    `min_depth`.
    """
    return MobileNetV1Config(depth_multiplier=depth_multiplier, min_depth=min_depth, **_KERAS)


def draw_weights(backbone: nn.Module) -> None:
    """Draw convolutions after Kaiming. Those of transformers are so small that, untrained, all images answer alike."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


def mobilenet_v1_state(weights: Weights) -> dict[str, torch.Tensor]:
    """Rename the Keras weights of a MobileNetV1 for `MobileNetV1Model.load_state_dict`.

    The ImageNet classifier `conv_preds` may be in `weights` and is left out. The depth multiplier is read off the
    first layer. Raises BadDataError naming every weight that is missing, left over or of the wrong shape.
    """
    table = conv_table("conv_stem", "conv1", "conv1_bn")
    for block in range(1, 14):
        depthwise, pointwise = f"conv_dw_{block}", f"conv_pw_{block}"
        table |= conv_table(f"layer.{2 * block - 2}", depthwise, f"{depthwise}_bn", depthwise=True)
        table |= conv_table(f"layer.{2 * block - 1}", pointwise, f"{pointwise}_bn")
    _require(weights, ["conv1/kernel"])
    config = mobilenet_v1_config(weights["conv1/kernel"].shape[-1] / 32)
    kept = {name: array for name, array in weights.items() if not name.startswith("conv_preds/")}
    return convert(kept, table, lambda: MobileNetV1Model(config))


def conv_table(prefix: str, conv: str, norm: str, *, depthwise: bool = False) -> dict[str, str]:
    """Map the torch names of one convolution and its batch norm to the Keras names."""
    kernel = "depthwise_kernel" if depthwise else "kernel"
    table = {f"{prefix}.normalization.{ours}": f"{norm}/{theirs}" for ours, theirs in _BATCH_NORM.items()}
    return {f"{prefix}.convolution.weight": f"{conv}/{kernel}"} | table


def convert(weights: Weights, table: dict[str, str], build: Callable[[], nn.Module]) -> dict[str, torch.Tensor]:
    """Transpose the weights named in `table` to torch's layout; all of them and of the built model's must be met."""
    _require(weights, table.values())
    left_over = sorted(set(weights) - set(table.values()))
    if left_over:
        raise BadDataError(f"weights left over: {', '.join(left_over)}; no known layer has them")
    with torch.device("meta"):  # nothing is allocated
        shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    wrong = []
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):  # torch counts batches, Keras does not
            state[name] = torch.zeros(shape, dtype=torch.long)
            continue
        state[name] = _to_torch(weights[table[name]], depthwise=table[name].endswith("/depthwise_kernel"))
        if state[name].shape != shape:
            wrong.append(f"{table[name]} gives {list(state[name].shape)}, expected {list(shape)}")
    if wrong:
        raise BadDataError(f"weights of the wrong shape: {'; '.join(wrong)}")
    return state


def _require(weights: Weights, names: Any) -> None:
    missing = sorted(set(names) - set(weights))
    if missing:
        raise BadDataError(f"weights missing: {', '.join(missing)}")


def _to_torch(array: NDArray[np.float32], *, depthwise: bool) -> torch.Tensor:
    """Turn Keras' [h, w, in, out], depthwise [h, w, channels, 1] or dense [in, out] into torch's layout."""
    if array.ndim == 4:
        array = array.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
    elif array.ndim == 2:
        array = array.T
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


NSFWJS = "nsfwjs_mobilenet_v2.gantman"


class Nsfwjs(ZooModel):
    """`[B, 3, 224, 224]` in [0, 1] to logits `[B, 5]`, in the order of the card's labels.

    `depth_multiplier` scales every channel count of the MobileNetV2, the last one (1,280) included. Counts are rounded
    to multiples of `channel_step` (8 as published) and never fall below it. The published probabilities are the softmax
    of the logits. The dropout rates are the published ones.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        first, second = card.hparams["hidden"]
        self.normalise = Normalise(image_of(card))
        step = card.hparams["channel_step"]
        depth = {"depth_multiplier": card.hparams["depth_multiplier"], "depth_divisible_by": step, "min_depth": step}
        self.backbone = MobileNetV2Model(MobileNetV2Config(**depth, **_KERAS, finegrained_output=False))
        draw_weights(self.backbone)
        self.head = nn.Sequential(
            nn.Linear(self.backbone.conv_1x1.convolution.out_channels, first),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Dropout(0.25),
            nn.Linear(second, len(card.labels)),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of a batch."""
        logits: Tensor = self.head(self.backbone(self.normalise(pixels)).pooler_output)
        return logits


def nsfwjs_state(weights: Weights) -> dict[str, torch.Tensor]:
    """Rename the Keras weights of the NSFWJS MobileNetV2 1.0 for `Nsfwjs.load_state_dict`.

    Raises BadDataError naming every weight that is missing, left over or of the wrong shape.
    """
    table = conv_table("backbone.conv_stem.first_conv", "Conv1", "bn_Conv1")
    table |= _block_table("backbone.conv_stem", "expanded_conv")
    for block in range(1, 17):
        prefix, name = f"backbone.layer.{block - 1}", f"block_{block}"
        table |= conv_table(f"{prefix}.expand_1x1", f"{name}_expand", f"{name}_expand_BN")
        table |= _block_table(prefix, name)
    table |= conv_table("backbone.conv_1x1", "Conv_1", "Conv_1_bn")
    for place, layer in (("head.0", "dense_1"), ("head.3", "dense_2"), ("head.6", "dense_3")):
        table |= {f"{place}.weight": f"{layer}/kernel", f"{place}.bias": f"{layer}/bias"}
    return convert(weights, table, lambda: Nsfwjs(model_card(NSFWJS)))


def _block_table(prefix: str, name: str) -> dict[str, str]:
    """Names of the depthwise and projecting convolutions that every V2 block ends with."""
    depthwise, project = f"{name}_depthwise", f"{name}_project"
    table = conv_table(f"{prefix}.conv_3x3", depthwise, f"{depthwise}_BN", depthwise=True)
    return table | conv_table(f"{prefix}.reduce_1x1", project, f"{project}_BN")
