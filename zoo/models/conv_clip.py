"""A convolutional image tower and a BERT text tower, and CLIPs of them for small data.

`clip_mobilenet_v1.lit` and `clip_efficientnet_lite2.lit`: a published ImageNet network, locked (LiT, Zhai et al. 2022,
arXiv 2111.07991), and MiniLM. `clip_resnet_small.scratch`: a small ResNet and a two-layer BERT from random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, MobileNetV1Model, ResNetConfig, ResNetModel

from zoo.archives.tfjs import read_tfjs
from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError, BadDataError
from zoo.files.hub import HUB, model_folder
from zoo.models.base import Normalise, ZooModel, image_of, read_transformers
from zoo.models.clip import DualEncoder, Encoded
from zoo.models.efficientnet import EfficientNetLite
from zoo.models.mobilenet import draw_weights, mobilenet_v1_config, mobilenet_v1_state


class Projection(nn.Module):
    """`[B, width]` features to `[B, out]`: whitened per feature, then a linear map plus a residual MLP."""

    def __init__(self, width: int, hidden: int, out: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, out)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out))

    def forward(self, features: Tensor) -> Tensor:
        """Project a batch."""
        x = self.dropout(self.norm(features))
        projected: Tensor = self.linear(x) + self.mlp(x)
        return projected


def _projection(card: ModelCard, width: int) -> Projection:
    h = card.hparams
    return Projection(width, h["head_width"], h["embedding_dim"], h["dropout"])


class ConvImageTower(nn.Module):
    """A convolutional backbone, answering as those of transformers, and a projection: `[B, 3, S, S]` to `Encoded`.

    With the hyperparameter `mirror`, features are the mean of the image's and its mirror image's in evaluation:
    a little more accurate, at twice the cost. Without `project` the embedding is the features themselves.
    """

    def __init__(self, card: ModelCard, backbone: nn.Module, width: int, *, project: bool = True) -> None:
        super().__init__()
        self.normalise = Normalise(image_of(card))
        self.backbone, self.width = backbone, width
        self.mirror: bool = card.hparams["mirror"]
        self.projection = _projection(card, width) if project else nn.Identity()

    def forward(self, pixels: Tensor) -> Encoded:
        """Encode a batch of images; the sequence is the last feature map, `[B, H * W, width]`."""
        # Channels last: a third faster on CPUs, and what tensor cores want.
        normal = self.normalise(pixels).contiguous(memory_format=torch.channels_last)
        output = self.backbone(normal)
        features = output.pooler_output.flatten(1)
        if self.mirror and not self.training:
            features = (features + self.backbone(normal.flip(3)).pooler_output.flatten(1)) / 2
        return Encoded(self.projection(features), output.last_hidden_state.flatten(2).transpose(1, 2))


class BertTextTower(nn.Module):
    """A BERT whose token states are averaged and projected: ids and mask `[B, T]` int64 to `Encoded`.

    Without `project` the embedding is the average itself.
    """

    def __init__(self, card: ModelCard, *, project: bool = True) -> None:
        super().__init__()
        h: dict[str, Any] = card.hparams
        config = BertConfig(
            vocab_size=h["vocabulary_size"],
            hidden_size=h["text_width"],
            num_hidden_layers=h["text_layers"],
            num_attention_heads=h["text_heads"],
            intermediate_size=4 * h["text_width"],
            max_position_embeddings=h["text_positions"],
        )
        self.width = config.hidden_size
        self.bert = BertModel(config, add_pooling_layer=False)
        self.projection = _projection(card, h["text_width"]) if project else nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        """Encode a batch of texts."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.to(states.dtype)[:, :, None]
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
        return Encoded(self.projection(mean), states)


def mobilenet_tower(card: ModelCard, *, project: bool = True) -> ConvImageTower:
    """A MobileNetV1 with the sizes of `card.hparams`."""
    config = mobilenet_v1_config(card.hparams["depth_multiplier"], card.hparams["min_depth"])
    backbone = MobileNetV1Model(config)
    draw_weights(backbone)
    return ConvImageTower(card, backbone, backbone.layer[-1].convolution.out_channels, project=project)


def resnet_tower(card: ModelCard, *, project: bool = True) -> ConvImageTower:
    """A ResNet with the sizes of `card.hparams`."""
    widths = list(card.hparams["image_widths"])
    config = ResNetConfig(
        embedding_size=widths[0], hidden_sizes=widths, depths=[1] * len(widths), layer_type="basic", hidden_act="relu"
    )
    return ConvImageTower(card, ResNetModel(config), widths[-1], project=project)


def build_efficientnet(card: ModelCard) -> DualEncoder:
    """`clip_efficientnet_lite2.*` with the sizes of `card.hparams`."""
    backbone = EfficientNetLite(card)
    return DualEncoder(card, ConvImageTower(card, backbone, backbone.width), BertTextTower(card))


def build_mobilenet(card: ModelCard) -> DualEncoder:
    """`clip_mobilenet_v1.*` with the sizes of `card.hparams`."""
    return DualEncoder(card, mobilenet_tower(card), BertTextTower(card))


def build_resnet(card: ModelCard) -> DualEncoder:
    """`clip_resnet_small.*` with the sizes of `card.hparams`."""
    return DualEncoder(card, resnet_tower(card), BertTextTower(card))


def load_pretrained(model: ZooModel, image: str | None, text: str | None, load: Callable[[str], ZooModel]) -> None:
    """Start towers from published weights, `text` from a BERT.

    `image` is a folder with a TensorFlow.js MobileNetV1, or for an EfficientNet-Lite tower what `load` takes: the name
    of a classifier, whose weights are fetched, or a release of one.

    Raises BadInputError when the model has no such tower, or the source holds no such network.
    """
    if image:
        tower = getattr(model, "image_tower", None)
        backbone = tower.backbone if isinstance(tower, ConvImageTower) else None
        if isinstance(backbone, MobileNetV1Model):
            backbone.load_state_dict(mobilenet_v1_state(read_tfjs(Path(image))))
        elif isinstance(backbone, EfficientNetLite):
            _begin(model, backbone, image, load(image))
        else:
            raise BadArgumentError(
                f"{model.card.name} has no MobileNetV1 or EfficientNet-Lite image tower to read {image} into"
            )
    if text:
        load_pretrained_text(model, text)


def _begin(model: ZooModel, backbone: EfficientNetLite, source: str, classifier: ZooModel) -> None:
    """Copy the backbone of a classifier."""
    card, theirs = classifier.card, getattr(classifier, "backbone", None)
    sizes = {name: card.hparams.get(name) for name in ("stem", "stages", "features")}
    if not isinstance(theirs, EfficientNetLite) or sizes != {name: model.card.hparams[name] for name in sizes}:
        raise BadDataError(f"{source}: {card.name} has no image tower like that of {model.card.name}")
    backbone.load_state_dict(theirs.state_dict())
    model.begun_from(f"image tower: {card.name} of {card.source}", card.licence)


def load_pretrained_text(model: ZooModel, source: str) -> None:
    """Read a BERT (`hf-hub:ORG/NAME`, or a directory that transformers wrote) and its tokenizer into the text tower.

    Raises BadInputError when it cannot be fetched, or does not fit the tower.
    """
    tower = getattr(model, "text_tower", None)
    if not isinstance(tower, BertTextTower):
        raise BadArgumentError(f"{model.card.name} has no BERT text tower to read {source} into")
    folder, place = model_folder(source)
    bert, tokenizer = read_transformers(BertModel, folder, source, "the text weights", add_pooling_layer=False)
    try:
        tower.bert.load_state_dict(bert.state_dict())
    except RuntimeError as problem:
        raise BadDataError(f"the text weights {source} do not fit {model.card.name}: {problem}") from None
    model.begun_from(f"text tower: {place if place.startswith(HUB) else f'directory {folder.name}'}")
    model.tokenizer_json = tokenizer
    model.codec()
