"""NSFWJS: MobileNetV2 and three dense layers over drawing, hentai, neutral, porn, sexy.

Source: infinitered/nsfwjs (MIT), the model trained by GantMan, published for TensorFlow.js.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import MobileNetV2Config, MobileNetV2Model

from zoo.contract.card import ModelCard
from zoo.inputs.resize import Normalise
from zoo.models.base import ZooModel
from zoo.models.mobilenet import BATCH_NORM_EPSILON, IMAGE_SIZE, Weights, conv_table, convert, draw_weights, shapes
from zoo.registry import model_card

NAME = "nsfwjs_mobilenet_v2.gantman"


class Nsfwjs(ZooModel):
    """`[B, 3, 224, 224]` in [0, 1] to logits `[B, 5]`, in the order of the card's labels.

    The published probabilities are their softmax. The dropout rates are the published ones.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        assert card.image is not None  # the catalogue's cards have one
        first, second = card.hparams["hidden"]
        self.normalise = Normalise(card.image)
        config = mobilenet_v2_config(card.hparams["depth_multiplier"], card.hparams["channel_step"])
        self.backbone = MobileNetV2Model(config)
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


def mobilenet_v2_config(depth_multiplier: float = 1.0, channel_step: int = 8) -> MobileNetV2Config:
    """Return the configuration of a Keras MobileNetV2 at 224 px.

    `depth_multiplier` scales every channel count, the last one (1,280) included; counts are rounded to
    multiples of `channel_step` (8 as published) and never fall below it. A test model, 0.01 and 2, has 4,000
    parameters.
    """
    return MobileNetV2Config(
        depth_multiplier=depth_multiplier,
        depth_divisible_by=channel_step,
        min_depth=channel_step,
        finegrained_output=False,
        image_size=IMAGE_SIZE,
        tf_padding=True,
        hidden_act="relu6",
        layer_norm_eps=BATCH_NORM_EPSILON,
    )


def nsfwjs_state(weights: Weights) -> dict[str, torch.Tensor]:
    """Rename the Keras weights of the NSFWJS MobileNetV2 1.0 for `Nsfwjs.load_state_dict`.

    Raises `BadInputError` naming every weight that is missing, left over or of the wrong shape.
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
    return convert(weights, table, shapes(Nsfwjs, model_card(NAME)))


def _block_table(prefix: str, name: str) -> dict[str, str]:
    """Names of the depthwise and projecting convolutions that every V2 block ends with."""
    depthwise, project = f"{name}_depthwise", f"{name}_project"
    table = conv_table(f"{prefix}.conv_3x3", depthwise, f"{depthwise}_BN", depthwise=True)
    return table | conv_table(f"{prefix}.reduce_1x1", project, f"{project}_BN")
