"""The trained model that engines are compared with."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from zoo.judging.panel import AnyJudge
from zoo.judging.scorer import Feeds
from zoo.models.base import ZooModel
from zoo.models.served import ServedRun, text_banks

Answers = tuple[NDArray[np.float32], NDArray[np.float32]]


class Reference:
    """A model under a policy, in eager torch, that works out each batch once.

    All engines of one model are compared on much the same inputs, and the model takes longer over them than they do.
    """

    def __init__(self, model: ZooModel, judge: AnyJudge) -> None:
        self._run = ServedRun(model, text_banks(model, judge)).run
        self._known: dict[bytes, Answers] = {}

    def run(self, feeds: Feeds) -> Answers:
        """Logits and scores `[B, N]` of one batch, not to be written to; the feeds are those of `card.input_names`."""
        key = hashlib.sha256()
        for name, value in sorted(feeds.items()):
            key.update(f"{name} {value.dtype} {value.shape}".encode())
            key.update(np.ascontiguousarray(value).data)
        found = self._known.get(key.digest())
        if found is None:
            found = self._known[key.digest()] = self._run(feeds)
        return found
