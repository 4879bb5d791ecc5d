"""Texts with what is known of each for each category, and what ranks them: a release, or a frozen baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from transformers import BertConfig

from zoo.contract.card import ModelCard
from zoo.data.manifest import Row, read_manifest
from zoo.errors import BadArgumentError, BadDataError, MissingDependencyError, close_match, quoted
from zoo.evaluation.labelling import with_splits
from zoo.files.hub import model_folder
from zoo.inputs.text import TextCodec
from zoo.keys import refuse_unsigned
from zoo.metrics import average_precision
from zoo.models.base import ZooModel
from zoo.models.classifiers import PromptClassifier
from zoo.models.clip import unit
from zoo.models.conv_clip import BertTextTower, load_pretrained_text
from zoo.registry import create_model
from zoo.release.store import load_release

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

#: What `TextRows.labels` says of a text for a category.
YES, NO, UNKNOWN = 1, 0, -1
#: Strengths of the regularisation that the baseline is fitted with; validation chooses (scikit-learn's C).
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
BASELINE = "minilm:"
#: What sentence-transformers cuts all-MiniLM-L6-v2's texts at.
BASELINE_CONTEXT = 256


@dataclass(frozen=True)
class TextRows:
    """`labels` int `[N, L]`: 1 of the category, 0 not, -1 not judged for it; `sources` name corpora, where known."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    sources: tuple[frozenset[str], ...]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: list[int]) -> TextRows:
        """These rows alone."""
        return TextRows(
            tuple(self.texts[row] for row in rows), self.labels[rows], tuple(self.sources[row] for row in rows)
        )

    def sources_of(self, chosen: NDArray[np.bool_]) -> frozenset[str]:
        """The corpora of the chosen texts `[N]`."""
        return frozenset().union(*(self.sources[row] for row in np.flatnonzero(chosen)))

    def of(self, columns: list[int]) -> TextRows:
        """The same texts with these categories alone."""
        return TextRows(self.texts, self.labels[:, columns], self.sources)


def read_text_rows(
    data: Path, categories: Sequence[str], card: ModelCard | None = None, say: Callable[[str], None] = print
) -> dict[str, TextRows]:
    """The texts of a manifest by split, as `zoo data corpora` writes one; rows without text are skipped.

    Rows without a split get the one that training gave them, if there is a card that names its rule.

    Raises BadInputError as `read_manifest`, for labels that are not among the categories, and for rows without a split.
    """
    kept: dict[str, list[Row]] = {}
    for row in with_splits(read_manifest(data), [card] if card else [], data, say):
        if row.text is None:
            continue
        for name in (*row.labels, *(row.judged or ())):
            if name not in categories:
                raise BadDataError(
                    f"{data}, line {row.line}: the model has no output {quoted(name)}" + close_match(name, categories)
                )
        if row.split is None:
            raise BadDataError(f"{data}, line {row.line}: names no split, and test rows must not be trained on")
        kept.setdefault(row.split, []).append(row)
    return {
        split: TextRows(
            tuple(row.text or "" for row in rows),
            np.array([[_known(row, name) for name in categories] for row in rows], dtype=np.int64),
            tuple(frozenset(filter(None, (row.record.get("source") or "").split("|"))) for row in rows),
        )
        for split, rows in kept.items()
    }


def style_tests(rows: TextRows, categories: Sequence[str]) -> frozenset[str]:
    """The categories whose texts and counter-examples share no source: telling the sources apart is enough there.

    A bag of words tells the prompts of one site from captions almost perfectly. Without sources nothing is known, so no
    category is a test of style.
    """
    pairs = [(rows.sources_of(own == YES), rows.sources_of(own == NO)) for own in rows.labels.T]
    named = zip(categories, pairs, strict=True)
    return frozenset(name for name, (of, against) in named if of and against and not of & against)


def _known(row: Row, name: str) -> int:
    if name in row.labels:
        return YES
    return NO if row.judged is None or name in row.judged else UNKNOWN


class Ranker(Protocol):
    """Anything that scores texts for each category."""

    name: str

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Scores `[N, L]`, any finite numbers, higher is likelier."""


class ReleaseRanker:
    """A classifier of texts, by its logits, which do not saturate. Raises BadInputError for another kind of model.

    `columns` are the outputs that count, all of them at first.
    """

    def __init__(self, source: str) -> None:
        refuse_unsigned(source)
        self.model: ZooModel = load_release(source).model
        card = self.model.card
        if not card.reads_text or card.image is not None:
            raise BadArgumentError(f"{source} is a {card.name}, which does not judge texts alone")
        self.name, self.labels = card.name, card.labels
        self.columns = list(range(len(card.labels)))
        self._codec = self.model.codec()

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Logits `[N, L]` of the labels that count."""
        return encode_texts(self._codec, self.model, texts)[:, self.columns]


class FrozenBaseline:
    """Logistic regression for each category on mean-pooled, unit-length MiniLM embeddings, which are never trained.

    Fitted on the training rows that were judged for the category; the strength of the regularisation is the one of
    `STRENGTHS` with the highest average precision on validation. Texts are cleaned as for our models, and cut at 256
    tokens. Raises MissingDependencyError without scikit-learn, and BadInputError for weights that cannot be loaded or a
    category that is all of one kind in training.
    """

    def __init__(
        self, source: str, rows: dict[str, TextRows], categories: Sequence[str], progress: bool = False
    ) -> None:
        self.name = f"logistic regression on {Path(source).name} (frozen)"
        self._tower, self._codec = _sentence_encoder(source)
        for split in ("train", "val"):
            if split not in rows:
                raise BadArgumentError(
                    f'the baseline is fitted on train and chosen on val, but the data have no split "{split}"'
                )
        train, val = rows["train"], rows["val"]
        features = [self.embed(part.texts, progress) for part in (train, val)]
        self._models = {
            name: _fitted(features, (train.labels[:, column], val.labels[:, column]), name)
            for column, name in enumerate(categories)
        }
        #: The strength that validation chose for each category.
        self.strengths = {name: float(model.C) for name, model in self._models.items()}

    def embed(self, texts: Sequence[str], progress: bool = False) -> NDArray[np.float64]:
        """Embeddings `[N, D]` of unit length."""
        return encode_texts(self._codec, lambda ids, mask: unit(self._tower(ids, mask).embedding), texts, progress)

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds `[N, L]` of the categories."""
        embedded = self.embed(texts)
        return np.stack([model.decision_function(embedded) for model in self._models.values()], axis=1)


def encode_texts(
    codec: TextCodec,
    module: Callable[[Tensor, Tensor], Tensor],
    texts: Sequence[str],
    progress: bool = False,
    batch_size: int = 64,
) -> NDArray[np.float64]:
    """The outputs `[N, D]` of a module for texts, in batches of similar length, without padding past the longest."""
    tokens = codec.encode(texts)
    lengths = (tokens.mask != 0).sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    parts = []
    starts = range(0, len(order), batch_size)
    for start in track(starts, "Reading texts", transient=True, disable=not progress):
        chosen = order[start : start + batch_size]
        longest = max(int(lengths[chosen[-1]]), 1)
        with torch.inference_mode():
            ids, mask = (torch.from_numpy(part[chosen, :longest]) for part in (tokens.ids, tokens.mask))
            parts.append(module(ids, mask).double().numpy())
    if not parts:
        raise BadArgumentError("no texts to score")
    result = np.concatenate(parts)
    result[order] = result.copy()
    return result


def _sentence_encoder(source: str) -> tuple[BertTextTower, TextCodec]:
    """A published BERT of any size, whose token states are averaged, with its tokenizer."""
    folder, _ = model_folder(source)
    try:
        config = BertConfig.from_pretrained(folder)
    except (OSError, ValueError) as problem:
        reason = str(problem).replace(str(folder), source)
        raise BadDataError(f"baseline {source} cannot be loaded: {reason}") from None
    model = create_model(
        "prompt_minilm.multilabel",
        context_length=min(BASELINE_CONTEXT, config.max_position_embeddings),
        vocabulary_size=config.vocab_size,
        text_width=config.hidden_size,
        text_layers=config.num_hidden_layers,
        text_heads=config.num_attention_heads,
        text_positions=config.max_position_embeddings,
    )
    load_pretrained_text(model, source)
    assert isinstance(model, PromptClassifier)
    return model.text_tower.eval(), model.codec()


def _fitted(
    features: Sequence[NDArray[np.float64]], labels: tuple[NDArray[np.int64], NDArray[np.int64]], name: str
) -> LogisticRegression:
    """The model of one category, of the strength that validation chose."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingDependencyError("the baseline needs scikit-learn: pip install 'safety-zoo[peers]'") from None
    judged = [known != UNKNOWN for known in labels]
    (x, y), (held_x, held_y) = ((f[k], known[k]) for f, known, k in zip(features, labels, judged, strict=True))
    if len(set(y.tolist())) < 2:
        raise BadDataError(f'the training rows of the category "{name}" all have the same label: nothing can be fitted')
    models = [LogisticRegression(C=strength, max_iter=1000).fit(x, y) for strength in STRENGTHS]
    # Of equal ones the first; without both classes in validation none is better than another.
    return max(models, key=lambda model: average_precision(model.decision_function(held_x), held_y) or 0.0)
