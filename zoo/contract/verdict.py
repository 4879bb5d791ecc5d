"""Verdict: the one answer that the zoo gives, from every model, runtime and command."""

from __future__ import annotations

from dataclasses import field
from typing import Literal, Self

from pydantic.dataclasses import dataclass

from zoo.contract import schema

Status = Literal["ok", "unreadable", "missing_input", "invalid_scores"]
Decision = Literal["safe", "review", "unsafe", "unknown"]


#: What a model may not have looked at: the border that a view of a picture leaves out, frames of an animation or
#: video, the film of a motion photo, what a damaged file does not show, what a transparent picture hides on white,
#: colours that could not be followed, tokens of a long text, words that are not in the vocabulary, what is in another
#: language.
Cause = Literal["border", "frames", "film", "damaged", "hidden", "colours", "tokens", "words", "language"]


@dataclass(frozen=True, config=schema.STRICT)
class Unseen:
    """How much of an input no model looked at: `amount` of `total`, or of an unknown total when that is None.

    A share has the total 1: `Unseen(0.41, 1)`; a count its own: `Unseen(5, 6)` for 5 of 6 frames. `tolerated` says
    that the policy lets that much pass. `note` says more: what is amiss with a damaged file, which
    language a text is in.
    """

    amount: float
    total: float | None = None
    tolerated: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if self.amount <= 0 or (self.total is not None and self.amount > self.total):
            raise ValueError(f"what is unseen is above 0 and at most the total, got {self.amount} of {self.total}")

    @property
    def share(self) -> float:
        """The share of the input, in [0, 1]; 1 where the total is unknown."""
        return 1.0 if self.total is None else self.amount / self.total

    def __str__(self) -> str:
        if self.note and self.total is None:
            return f"({self.note})"
        note = f" ({self.note})" if self.note else ""
        if self.total == 1:
            return f"{self.amount:.2g}{note}"
        return f"{self.amount:g}" + ("" if self.total is None else f" of {self.total:g}") + note


@dataclass(frozen=True, config=schema.STRICT)
class Place:
    """The part of an input that the model saw in one row: a `view` of a picture, a frame, a window of a text.

    A transparent picture's view says on which ground it lies. `box` is the view's left, top, right and bottom in pixels
    of the upright picture, `characters` the window's first and last (exclusive) in the text as it was given. `frame` is
    the number of the frame or page, from 0, and `seconds` when it is first shown, where the file says that. Each is
    None where the whole picture or text was given at once.
    """

    view: str = ""
    box: tuple[int, int, int, int] | None = None
    characters: tuple[int, int] | None = None
    frame: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, config=schema.STRICT)
class Verdict(schema.PlainData):
    """The answer of a model and a policy about one item.

    `decision` is `unknown` whenever `status` is not `ok`: what could not be judged is never called safe.
    `scores` maps each category of the policy to its score in [0, 1]; `category` is the one that decided
    (the highest-scoring one that was flagged; for a safe answer the highest-scoring category). `detail` explains a
    status, and a review that only what was unseen asks for: `category` is None then, because nothing was flagged.
    A panel's scores and category are those of its heads (their risks, see `PanelPolicy`); `heads` holds the verdict
    of each, and `disagreement` lies between 0 (all heads agree) and 1 (half of them flag the item).
    `unseen` says by cause what no model looked at; an item with more of it than the policy tolerates is never safe.
    None means that this was not measured, as for scores that were computed elsewhere. `place` is the part of the input
    that decided, None when the model saw all that it saw at once. `weights` is the sha256 of the weights and the
    tokenizer that judged, `engine` what ran them and where, such as `onnx-int8 on cpu`; both are empty for scores that
    were computed elsewhere. Two verdicts that say the same are equal, whatever engine gave them.

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
    detail: str = ""
    heads: dict[str, Verdict] = field(default_factory=dict)
    disagreement: float | None = None
    unseen: dict[Cause, Unseen] | None = None
    place: Place | None = None
    weights: str = field(default="", compare=False)
    engine: str = field(default="", compare=False)
    schema_version: schema.VersionTwo = 2

    def __post_init__(self) -> None:
        if (self.status == "ok") == (self.decision == "unknown"):
            raise ValueError(f'status "{self.status}" does not go with decision "{self.decision}"')

    @property
    def is_safe(self) -> bool:
        """True only for an item that was read, judged and found safe."""
        return self.status == "ok" and self.decision == "safe"

    @property
    def is_flagged(self) -> bool:
        """Whether a category was flagged; False for a review that only what was unseen asks for."""
        return self.decision in ("unsafe", "review") and self.category is not None

    @classmethod
    def from_dict(cls, data: object, where: str = "") -> Self:
        """Build it from plain data; raises BadCardError naming each unknown, missing or wrong field."""
        return super().from_dict(_renewed(data), where)


def _renewed(data: object) -> object:
    """Version 1 had `text_truncated`, true or false, where there is `unseen` now."""
    if not isinstance(data, dict):
        return data
    heads = data.get("heads")
    renewed = data | (
        {"heads": {name: _renewed(head) for name, head in heads.items()}} if isinstance(heads, dict) else {}
    )
    if isinstance(data.get("text_truncated"), bool):
        renewed["unseen"] = {"tokens": {"amount": 1}} if renewed.pop("text_truncated") else None
    return renewed


def unjudged(status: Status, detail: str, *, policy: str, model: str, source: str = "") -> Verdict:
    """Return the verdict of an item that could not be judged: decision `unknown`, no scores."""
    return Verdict(status, "unknown", None, {}, policy, model, source, detail=detail)
