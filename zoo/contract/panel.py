"""A panel as plain data: the policies of its heads, and which heads read which hidden layer of the one image tower."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.contract.card import ModelCard
from zoo.contract.policy import Policy, PolicyFile
from zoo.errors import BadArgumentError, BadPolicyError, close_match

Combine = Literal["any", "majority", "mean", "max"]


@dataclass(frozen=True, config=schema.STRICT)
class HeadPolicy:
    """The policy of one head, by the head's name in the panel."""

    head: str
    policy: Policy


@dataclass(frozen=True, config=schema.STRICT)
class PanelPolicy(PolicyFile):
    """The policies of a panel's heads and how their verdicts make one.

    A head flags an item when its verdict is `unsafe` or `review`. Its risk in [0, 1] puts its scores on one scale: 0.5
    at the threshold, linear on either side. `combine` is
    `any`: unsafe when one head says so, else review when one head says so;
    `majority`: the same of more than half of the heads;
    `mean`: flagged when the mean risk is above 0.5, and then as the flagging heads say (unsafe before review);
    `max`: what the head of the highest risk says.
    """

    name: str
    version: str
    summary: str
    combine: Combine
    heads: tuple[HeadPolicy, ...]
    schema_version: schema.VersionTwo = 2

    def __post_init__(self) -> None:
        names = [entry.head for entry in self.heads]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            raise ValueError(f"a panel policy names each head once, got {twice or names}")


AnyPolicy: TypeAlias = Policy | PanelPolicy


def read_policy(path: Path) -> AnyPolicy:
    """Read a policy file, of one model or, where it has `heads`, of a panel. Raises as `Policy.read`."""
    data = schema.read_yaml(path)
    if isinstance(data, dict) and "heads" in data:
        return PanelPolicy.from_dict(data, str(path))
    return Policy.from_dict(data, str(path))


def panel_policy(heads: dict[str, Policy], combine: Combine) -> PanelPolicy:
    """The policy of a panel of these heads. Raises BadInputError for an unknown `combine`."""
    known = Combine.__args__  # type: ignore[attr-defined]
    if combine not in known:
        raise BadArgumentError(f'no way to combine heads is named "{combine}"' + close_match(combine, known))
    summary = f"{len(heads)} heads on one image tower, combined by {combine}"
    return PanelPolicy("panel", "1", summary, combine, tuple(HeadPolicy(*item) for item in heads.items()))


def one_policy(policy: AnyPolicy) -> Policy:
    """The policy of one model. Raises BadPolicyError for that of a panel."""
    if isinstance(policy, PanelPolicy):
        raise BadPolicyError(f'policy "{policy.name}" is that of a panel (it has `heads:`): give one of its heads\'')
    return policy


#: The hyperparameters that make two CLIP vision towers the same architecture.
VISION = ("patch_size", "vision_width", "vision_layers", "vision_heads", "embedding_dim")
#: The same of text towers.
TEXT = ("text_width", "text_layers", "text_heads", "vocabulary_size", "start_token", "end_token", "embedding_dim")


@dataclasses.dataclass(frozen=True, order=True)
class Reading:
    """One way to read the tower's CLS token: the hidden state (0 is the embeddings'), and the final LayerNorm or not.

    `projection` numbers the projections of readings that are otherwise alike.
    """

    layer: int
    post_layernorm: bool
    projection: int = 0


def reading_of(card: ModelCard) -> Reading:
    """How a model with a CLIP tower reads it: a zero-shot one as its card says, a classifier at the end."""
    depth = int(card.hparams["vision_layers"])
    layer, post_layernorm = card.hparams.get("layer", -1), card.hparams.get("post_layernorm", True)
    return Reading(depth + 1 + int(layer), bool(post_layernorm))


def panel_card(name: str, heads: dict[str, ModelCard], readings: dict[str, Reading] | None = None) -> ModelCard:
    """The card of a panel of these heads, by their names in it. Raises BadInputError where no one tower fits all."""
    if not heads:
        raise BadArgumentError("a panel needs at least one head")
    first_name, first = next(iter(heads.items()))
    for other_name, card in heads.items():
        for what, wanted, found in (
            ("image input", first.image, card.image),
            *((key, first.hparams.get(key), card.hparams.get(key)) for key in VISION),
        ):
            if wanted is None or wanted != found:
                raise BadArgumentError(
                    f"{first_name} and {other_name} have no image tower in common: {what} is {wanted} and {found}"
                )
    texts = {name: card for name, card in heads.items() if card.task == "zero_shot"}
    shapes = {(card.text, *(card.hparams.get(key) for key in TEXT)) for card in texts.values()}
    if len(shapes) > 1:
        raise BadArgumentError(f"{', '.join(texts)} have text towers of different shapes")
    by_head = readings or {head: reading_of(card) for head, card in heads.items()}
    distinct = sorted(set(by_head.values()))
    shared = {key: first.hparams[key] for key in VISION}
    if texts:
        shared |= {key: next(iter(texts.values())).hparams[key] for key in TEXT}
    return ModelCard(
        name=name,
        task="panel",
        summary=f"Panel on one CLIP image tower, heads: {', '.join(heads)}",
        score="by_head",
        score_meaning="each head's own scores, in turn",
        image=first.image,
        text=next(iter(texts.values())).text if texts else None,
        labels=(),
        requires=("image",),
        licence="; ".join(dict.fromkeys(card.licence for card in heads.values())),
        source="; ".join(dict.fromkeys(card.source for card in heads.values())),
        hparams={
            **shared,
            "readings": [{"layer": r.layer, "post_layernorm": r.post_layernorm} for r in distinct],
            "heads": [
                {"name": head, "reading": distinct.index(by_head[head]), "card": card.replace(files={}).to_dict()}
                for head, card in heads.items()
            ],
        },
        limits=tuple(dict.fromkeys(limit for card in heads.values() for limit in card.limits)),
    )
