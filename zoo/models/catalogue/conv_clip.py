"""CLIPs with a convolutional image tower and a BERT text tower, as data."""

from __future__ import annotations

from typing import Any

from zoo.contract.card import ImageInput, ModelCard, TextInput
from zoo.models.catalogue.clip_sizes import clip_image
from zoo.registry import RANDOM, register_model


def _conv_clip(name: str, builder: str, summary: str, image: ImageInput, context: int, hparams: dict[str, Any]) -> None:
    register_model(
        ModelCard(
            name=name,
            task="zero_shot",
            summary=summary,
            score="softmax",
            score_meaning="share of a phrase among all phrases of the policy; a category's score is their sum",
            image=image,
            text=TextInput(context),
            labels=(),
            requires=("image",),
            licence="Apache-2.0",
            source="safety-zoo",
            hparams=hparams,
            limits=("Trained on little data: for demonstrations, not for production.",),
        ),
        builder=f"zoo.models.conv_clip:{builder}",
        pretrained=RANDOM if name.startswith("test_") else None,
        policy="configs/policy/dogs.yaml",
    )


def bert(vocabulary: int, width: int, layers: int, heads: int, positions: int) -> dict[str, Any]:
    """The hyperparameters of a BERT text tower, as `BertTextTower` reads them."""
    names = ("vocabulary_size", "text_width", "text_layers", "text_heads", "text_positions")
    return dict(zip(names, (vocabulary, width, layers, heads, positions), strict=True))


_head = {"embedding_dim": 512, "head_width": 1024, "dropout": 0.2, "mirror": False}
_small_head = {"embedding_dim": 16, "head_width": 16, "dropout": 0.1, "mirror": True}
_mobilenet_image = ImageInput(224, "shortest_edge_crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_conv_clip(
    "clip_mobilenet_v1.lit",
    "build_mobilenet",
    "CLIP of a locked ImageNet MobileNetV1 0.75 and a trained MiniLM (LiT, arXiv 2111.07991)",
    _mobilenet_image,
    32,
    {**bert(30522, 384, 6, 12, 512), **_head, "mirror": True, "depth_multiplier": 0.75, "min_depth": 8},
)
_conv_clip(
    "clip_resnet_small.scratch",
    "build_resnet",
    "Compact CLIP, ResNet and two-layer BERT, trained from random weights",
    clip_image(80),
    40,
    {**bert(4096, 256, 2, 4, 64), **_head, "embedding_dim": 256, "image_widths": [64, 128, 256, 384]},
)
_conv_clip(
    "test_clip_mobilenet_v1.random",
    "build_mobilenet",
    "Tiny random CLIP with MobileNetV1, for tests",
    _mobilenet_image,
    24,
    {**bert(300, 16, 1, 2, 32), **_small_head, "depth_multiplier": 0.01, "min_depth": 32},
)
_conv_clip(
    "test_clip_resnet.random",
    "build_resnet",
    "Tiny random CLIP with a ResNet, for tests",
    clip_image(32),
    24,
    {**bert(300, 16, 1, 2, 32), **_small_head, "image_widths": [8, 16]},
)
