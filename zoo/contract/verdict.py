"""Verdict: the one answer that the zoo gives, from every model, runtime and command."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from zoo.contract import schema

Status = Literal["ok", "unreadable", "missing_input", "invalid_scores"]
Decision = Literal["safe", "review", "unsafe", "unknown"]


@dataclass(frozen=True, config=schema.STRICT)
class Unseen:
    """How much of an input no model looked at: `amount` of `total`, or of an unknown total when that is None.

    A share has the total 1: `Unseen(0.41, 1)`; a count its own: `Unseen(5, 6)` for 5 of 6 frames.
    """

    amount: float
    total: float | None = None

    def __post_init__(self) -> None:
        if self.amount <= 0 or (self.total is not None and self.amount > self.total):
            raise ValueError(f"what is unseen is above 0 and at most the total, got {self.amount} of {self.total}")


@dataclass(frozen=True, config=schema.STRICT)
class Verdict(schema.PlainData):
    """The answer of a model and a policy about one item.

    `decision` is `unknown` whenever `status` is not `ok`: what could not be judged is never called safe.
    `scores` maps each category of the policy to its score in [0, 1]; `category` is the one that decided
    (the highest-scoring one that was flagged; for a safe answer the highest-scoring category).
    `text_truncated` says that a part of the text was cut off and so not judged. `detail` explains a status.
    A panel's scores and category are those of its heads (their risks, see `PanelPolicy`); `heads` holds the verdict
    of each, and `disagreement` lies between 0 (all heads agree) and 1 (half of them flag the item).
    `unseen` says by cause (`border`, `frames`) what no model looked at. None means that this was not measured, as
    now by every scorer; an empty mapping means that the whole input was seen.

    >>> verdict = Verdict("ok", "safe", "neutral", {"neutral": 0.9}, "mine@1#0a1b2c3d", "safeclip_tiny.zeroshot")
    >>> verdict.is_safe
    True
    """

    _where = "verdict"
    _reads = (1,)

    status: Status
    decision: Decision
    category: str | None
    scores: dict[str, float]
    policy: str
    model: str
    source: str = ""
    text_truncated: bool = False
    detail: str = ""
    heads: dict[str, Verdict] = field(default_factory=dict)
    disagreement: float | None = None
    unseen: dict[str, Unseen] | None = None
    schema_version: schema.VersionTwo = 2

    def __post_init__(self) -> None:
        if (self.status == "ok") == (self.decision == "unknown"):
            raise ValueError(f'status "{self.status}" does not go with decision "{self.decision}"')

    @property
    def is_safe(self) -> bool:
        """True only for an item that was read, judged and found safe."""
        return self.status == "ok" and self.decision == "safe"


def unjudged(status: Status, detail: str, *, policy: str, model: str, source: str = "") -> Verdict:
    """Return the verdict of an item that could not be judged: decision `unknown`, no scores."""
    return Verdict(status, "unknown", None, {}, policy, model, source, detail=detail)
