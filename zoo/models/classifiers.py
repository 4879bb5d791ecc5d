"""Classifiers of one input: small images by the RegNet of transformers, and prompts by a BERT."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import RegNetConfig, RegNetModel

from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError
from zoo.models.base import Normalise, ZooModel, image_of
from zoo.models.conv_clip import BertTextTower


class ImageClassifier(ZooModel):
    """A RegNetY whose pooled features go through a linear map; logits `[B, len(card.labels)]`.

    `card.hparams`: `widths` and `depths` of the stages, `group_width` of their convolutions. The stem halves the side
    and the first stage keeps it, so that 32 pixels end as 4 x 4 after three stages. Normalisation is inside.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        widths, depths = list(card.hparams["widths"]), list(card.hparams["depths"])
        group = card.hparams["group_width"]
        if len(widths) != len(depths) or any(width % group for width in widths):
            raise BadArgumentError(
                f"{card.name}: widths and depths must be as many, and each width a multiple of the group width, "
                f"got widths {widths}, depths {depths}, group_width {group}"
            )
        config = RegNetConfig(
            embedding_size=widths[0],
            hidden_sizes=widths,
            depths=depths,
            groups_width=group,
            layer_type="y",
            downsample_in_first_stage=False,
        )
        self.normalise = Normalise(image_of(card))
        self.backbone = RegNetModel(config)
        self.classifier = nn.Linear(widths[-1], len(card.labels))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `[B, L]` of images `[B, 3, S, S]` in [0, 1]."""
        # Channels last: a fifth less time for a training step on CPUs, and the same numbers.
        normalised = self.normalise(pixels).contiguous(memory_format=torch.channels_last)
        features = self.backbone(normalised).pooler_output.flatten(1)
        logits: Tensor = self.classifier(features)
        return logits


class PromptClassifier(ZooModel):
    """Judges texts alone; logits `[B, len(card.labels)]`, made to be read with a sigmoid each.

    The average of the token states is how sentence encoders such as MiniLM pool (Reimers & Gurevych 2019, arXiv
    1908.10084), so their weights start where they were trained.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.text_tower = BertTextTower(card, project=False)
        self.dropout = nn.Dropout(card.hparams["dropout"])
        self.classifier = nn.Linear(self.text_tower.width, len(card.labels))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[B, L]` of token ids and their mask, both int64 `[B, T]`."""
        logits: Tensor = self.classifier(self.dropout(self.text_tower(input_ids, attention_mask).embedding))
        return logits
