"""A classifier of prompts: a BERT whose token states are averaged, and one output for each category."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.contract.card import ModelCard
from zoo.models.base import ZooModel
from zoo.models.conv_clip import BertTextTower


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
