"""Classifiers of one input: small images by the RegNet of transformers, texts by a BERT or by their terms."""

from __future__ import annotations

import json
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import RegNetConfig, RegNetModel

from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError
from zoo.inputs.terms import Terms
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


class SentenceClassifier(ZooModel):
    """Judges texts by a small network on a sentence's embedding of unit length; logits `[B, len(card.labels)]`.

    `card.hparams`: those of `BertTextTower`, and the widths `hidden` of the layers between, with a ReLU behind each.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.text_tower = BertTextTower(card, project=False)
        widths = [self.text_tower.width, *card.hparams["hidden"], len(card.labels)]
        layers = [part for before, after in pairwise(widths) for part in (nn.Linear(before, after), nn.ReLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[B, L]` of token ids and their mask, both int64 `[B, T]`."""
        embedding = self.text_tower(input_ids, attention_mask).embedding
        logits: Tensor = self.layers(functional.normalize(embedding, dim=-1))
        return logits


class SentenceAndWords(SentenceClassifier):
    """`SentenceClassifier`, and a weight for each token; logits `[B, len(card.labels)]`.

    The weights of a text's tokens, each counted once, are added up over the root of their number, which leaves out the
    two that begin and end a text: a slur in a long text still counts, where the mean of the states hides it.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.words = nn.Embedding(card.hparams["vocabulary_size"], len(card.labels))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[B, L]` of token ids and their mask, both int64 `[B, T]`."""
        weights = self.words(input_ids)
        again = (input_ids[:, :, None] == input_ids[:, None]).tril(-1).any(dim=2)
        first = attention_mask.to(weights.dtype) * again.logical_not().to(weights.dtype)
        total: Tensor = (first[:, None] @ weights)[:, 0] / (first.sum(dim=1, keepdim=True) - 2).clamp(min=1.0).sqrt()
        return total + super().forward(input_ids, attention_mask)


class TermClassifier(ZooModel):
    """Judges texts by a linear layer on their TF-IDF features; logits `[B, len(card.labels)]`.

    With the hyperparameter `folds` F there are F layers, and the score is the mean of their probabilities (as that of
    scikit-learn's CalibratedClassifierCV). `vocabulary_size` counts the terms.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        size, self.folds = card.hparams["vocabulary_size"], card.hparams["folds"]
        columns = len(card.labels) * self.folds
        self.weight = nn.Parameter(torch.empty(size, columns).normal_())
        self.bias = nn.Parameter(torch.zeros(columns))
        # A model that was not trained has no words.
        terms = Terms(tuple(f"word_{number}" for number in range(size)), (1.0,) * size, pairs=False, ascii_words=False)
        self.tokenizer_json = json.dumps(terms.to_dict())

    def forward(self, input_ids: Tensor, term_weights: Tensor) -> Tensor:
        """Logits `[B, L]` of terms, int64 `[B, T]`, and their weights, float32 `[B, T]`, 0 where there is no term."""
        rows = functional.embedding(input_ids, self.weight)
        total = (term_weights.to(rows.dtype)[:, None] @ rows)[:, 0] + self.bias
        if self.folds == 1:
            return total
        folds = total.reshape(-1, len(self.card.labels), self.folds)
        # The logit of a mean of probabilities, by logarithms: neither may become 0.
        return functional.logsigmoid(folds).logsumexp(dim=2) - functional.logsigmoid(-folds).logsumexp(dim=2)
