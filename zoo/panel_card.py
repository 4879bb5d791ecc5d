"""The card of a panel: which heads read which hidden layer of the one image tower. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.card import ModelCard
from zoo.errors import BadInputError

#: The hyperparameters that make two CLIP vision towers the same architecture.
VISION = ("patch_size", "vision_width", "vision_layers", "vision_heads", "embedding_dim")
#: The same of text towers.
TEXT = ("text_width", "text_layers", "text_heads", "vocabulary_size", "start_token", "end_token", "embedding_dim")


@dataclass(frozen=True, order=True)
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
        raise BadInputError("a panel needs at least one head")
    first_name, first = next(iter(heads.items()))
    for other_name, card in heads.items():
        for what, wanted, found in (
            ("image input", first.image, card.image),
            *((key, first.hparams.get(key), card.hparams.get(key)) for key in VISION),
        ):
            if wanted is None or wanted != found:
                raise BadInputError(
                    f"{first_name} and {other_name} have no image tower in common: {what} is {wanted} and {found}"
                )
    texts = {name: card for name, card in heads.items() if card.task == "zero_shot"}
    shapes = {(card.text, *(card.hparams.get(key) for key in TEXT)) for card in texts.values()}
    if len(shapes) > 1:
        raise BadInputError(f"{', '.join(texts)} have text towers of different shapes")
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
