"""Two models for one item: one judges its picture, the other its text. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Self

from zoo.contract.schema import repeated
from zoo.contract.verdict import Decision, Verdict
from zoo.errors import BadArgumentError
from zoo.inputs.image import ImageSource
from zoo.judging.scorer import Scorer

_SEVERITY: tuple[Decision, ...] = ("safe", "review", "unsafe", "unknown")


class Pair:
    """A scorer of pictures and one of texts, which judge each item together; used as a `Scorer`, and closed as one.

    The graver decision counts: `unknown` where one part could not be judged, then `unsafe`, `review`, `safe`. Scores
    are those of both; `heads` holds the verdict of each model. An item without a text, or without a picture, gets the
    verdict of the one model. Raises BadArgumentError for scorers that read something else, or share a category.
    """

    def __init__(self, image: Scorer, text: Scorer) -> None:
        if image.card.requires != ("image",) or text.card.requires != ("text",):
            raise BadArgumentError(
                f"a pair is a model of pictures and one of texts, got {image.card.name} and {text.card.name}"
            )
        self.scorers = (image, text)
        self.score_names = tuple(name for one in self.scorers for name in one.score_names)
        if twice := repeated(self.score_names):
            raise BadArgumentError(f"{self.name}: both have the category {twice}")
        self.batch_size = image.batch_size

    @property
    def name(self) -> str:
        """The names of both models, as verdicts have it."""
        return " + ".join(one.name for one in self.scorers)

    @property
    def policy_id(self) -> str:
        """Those of both policies, as verdicts have it."""
        return " + ".join(one.policy_id for one in self.scorers)

    @property
    def weights(self) -> str:
        """A hash of the weights of both."""
        return _both([one.weights for one in self.scorers])

    @property
    def why(self) -> str:
        """Which engines run, where, and why those."""
        return "\n".join(f"{one.name}: {one.why}" for one in self.scorers)

    def verdict(self, image: ImageSource | None = None, text: str | None = None) -> Verdict:
        """Judge one item, as `Scorer.verdict`."""
        return next(self.stream([image], [text]))[0]

    def stream(self, images: Sequence[ImageSource | None], texts: Sequence[str | None]) -> Iterator[list[Verdict]]:
        """The verdicts of items, in lists of a batch each. An item without anything has none, and its verdict says so.

        Raises as `Scorer.stream`.
        """
        items = list(zip(images, texts, strict=True))
        seen, read = [image for image, text in items if image is not None or text is None], [*filter(_given, texts)]
        parts: list[Iterator[Verdict]] = [
            chain.from_iterable(self.scorers[0].stream(seen)),
            chain.from_iterable(self.scorers[1].stream(None, read)),
        ]
        verdicts = (self._judged(*item, *parts) for item in items)
        while batch := list(islice(verdicts, self.batch_size)):
            yield batch

    def _judged(
        self, image: ImageSource | None, text: str | None, seen: Iterator[Verdict], read: Iterator[Verdict]
    ) -> Verdict:
        if text is None:
            return next(seen)
        return next(read) if image is None else self._together(next(seen), next(read))

    def _together(self, seen: Verdict, read: Verdict) -> Verdict:
        heads = dict(zip([one.name for one in self.scorers], (seen, read), strict=True))
        decision = max((seen.decision, read.decision), key=_SEVERITY.index)
        decider = max(
            (one for one in heads.values() if one.decision == decision),
            key=lambda one: one.scores[one.category] if one.category else -1.0,
        )
        return replace(
            decider,
            scores=seen.scores | read.scores if decision != "unknown" else {},
            policy=self.policy_id,
            model=self.name,
            source=seen.source,
            detail="; ".join(f"{name}: {one.detail}" for name, one in heads.items() if one.detail),
            heads=heads,
            unseen=(seen.unseen or {}) | (read.unseen or {}),
            weights=_both([seen.weights, read.weights]),
            engine=", ".join(dict.fromkeys(one.engine for one in heads.values())),
        )

    def close(self) -> None:
        """Close both scorers."""
        for one in self.scorers:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _given(text: Any) -> bool:
    return text is not None


def _both(weights: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(weights).encode()).hexdigest()
