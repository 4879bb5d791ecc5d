"""MobileNetV1 as Keras published it and NSFWJS on MobileNetV2, and how Keras weights are renamed for torch.

Sources: MobileNetV1 0.75 at 224 px by Google (Apache-2.0); infinitered/nsfwjs (MIT), the model trained by GantMan,
published for TensorFlow.js. Keras pads stride-2 convolutions below and to the right only, and has a batch-norm
epsilon of 1e-3: both are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MobileNetV1Config, MobileNetV1Model, MobileNetV2Config, MobileNetV2Model

from zoo.archives.keras import KerasWeights, conv_table, renamed, require
from zoo.archives.nsfwjs import mobilenet_table
from zoo.contract.card import ModelCard
from zoo.errors import BadDataError
from zoo.models.base import Normalise, ZooModel, image_of
from zoo.registry import model_card

#: What Keras' MobileNets have in common, as transformers configures it.
_KERAS: dict[str, Any] = {"image_size": 224, "tf_padding": True, "hidden_act": "relu6", "layer_norm_eps": 1e-3}


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


def mobilenet_v1_state(weights: KerasWeights) -> dict[str, torch.Tensor]:
    """Rename the Keras weights of a MobileNetV1 for `MobileNetV1Model.load_state_dict`.

    The ImageNet classifier `conv_preds` may be in `weights` and is left out. The depth multiplier is read off the
    first layer. Raises BadDataError naming every weight that is missing, left over or of the wrong shape.
    """
    table = conv_table("conv_stem", "conv1", "conv1_bn")
    for block in range(1, 14):
        depthwise, pointwise = f"conv_dw_{block}", f"conv_pw_{block}"
        table |= conv_table(f"layer.{2 * block - 2}", depthwise, f"{depthwise}_bn", depthwise=True)
        table |= conv_table(f"layer.{2 * block - 1}", pointwise, f"{pointwise}_bn")
    require(weights, ["conv1/kernel"])
    config = mobilenet_v1_config(weights["conv1/kernel"].shape[-1] / 32)
    kept = {name: array for name, array in weights.items() if not name.startswith("conv_preds/")}
    return convert(kept, table, lambda: MobileNetV1Model(config))


def convert(weights: KerasWeights, table: dict[str, str], build: Callable[[], nn.Module]) -> dict[str, torch.Tensor]:
    """The weights named in `table` as the state of the built model; all of them and of the model's must be met."""
    arrays = renamed(weights, table)
    with torch.device("meta"):  # nothing is allocated
        shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    wrong = [
        f"{table[name]} gives {list(arrays[name].shape)}, expected {list(shape)}"
        for name, shape in shapes.items()
        if arrays[name].shape != shape
    ]
    if wrong:
        raise BadDataError(f"weights of the wrong shape: {'; '.join(wrong)}")
    return {name: torch.from_numpy(arrays[name]) for name in shapes}


NSFWJS = "nsfwjs_mobilenet_v2.gantman"


def nsfwjs_head(card: ModelCard, features: int) -> nn.Sequential:
    """The three linear layers of NSFWJS, whose dropout rates are the published ones."""
    first, second = card.hparams["hidden"]
    return nn.Sequential(
        nn.Linear(features, first),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(second, len(card.labels)),
    )


class Nsfwjs(ZooModel):
    """`[B, 3, 224, 224]` in [0, 1] to logits `[B, 5]`, in the order of the card's labels.

    `depth_multiplier` scales every channel count of the MobileNetV2, the last one (1,280) included. Counts are rounded
    to multiples of `channel_step` (8 as published) and never fall below it. The published probabilities are the softmax
    of the logits.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.normalise = Normalise(image_of(card))
        step = card.hparams["channel_step"]
        depth = {"depth_multiplier": card.hparams["depth_multiplier"], "depth_divisible_by": step, "min_depth": step}
        self.backbone = MobileNetV2Model(MobileNetV2Config(**depth, **_KERAS, finegrained_output=False))
        draw_weights(self.backbone)
        self.head = nsfwjs_head(card, self.backbone.conv_1x1.convolution.out_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of a batch."""
        logits: Tensor = self.head(self.backbone(self.normalise(pixels)).pooler_output)
        return logits


def nsfwjs_state(weights: KerasWeights) -> dict[str, torch.Tensor]:
    """Rename the Keras weights of the NSFWJS MobileNetV2 1.0 for `Nsfwjs.load_state_dict`.

    Raises BadDataError naming every weight that is missing, left over or of the wrong shape.
    """
    return convert(weights, mobilenet_table(), lambda: Nsfwjs(model_card(NSFWJS)))
