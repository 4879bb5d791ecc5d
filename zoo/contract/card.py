"""ModelCard: what a model reads and answers, where it comes from, and how it was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.errors import BadArgumentError

Resize = Literal["shortest_edge_crop", "squash"]
Interpolation = Literal["bicubic", "bilinear", "bilinear_align_corners"]
Score = Literal["softmax", "sigmoid", "by_head"]
Task = Literal["zero_shot", "classification", "panel"]


@dataclass(frozen=True, config=schema.STRICT)
class ImageInput:
    """Images as the model reads them: `[B, 3, size, size]` float32 RGB in [0, 1], normalised inside the model.

    `shortest_edge_crop` scales the short side to `size` and crops the centre (CLIP); `squash` ignores the
    aspect ratio (NSFWJS). `mean` and `std` are per channel, on pixels in [0, 1].

    `margin` is the share of the width on the left and right, and of the height above and below, that is cut off before
    a `squash`: 1/16 is what resizing to 256 and cropping the centre 224 leaves out. `recompress` is the quality of a
    JPEG that the resized pixels are saved as and read back from, None for none.
    """

    size: PositiveInt
    resize: Resize
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    recompress: Annotated[int, Field(ge=1, le=100)] | None = None

    def __post_init__(self) -> None:
        if self.margin and (self.resize != "squash" or self.interpolation == "bilinear_align_corners"):
            raise ValueError(f"margin is for squash, bicubic or bilinear; got {self.resize}, {self.interpolation}")


@dataclass(frozen=True, config=schema.STRICT)
class TextInput:
    """Texts as the model reads them: at most `context_length` tokens of the release's tokenizer.json.

    With `deobfuscate`, look-alike letters, leetspeak and spaced-out words are read as what they resemble, first.
    `languages` are those of the texts that the model learned from, by ISO 639-1: a text in another one is said to be
    unseen. None means that any will do.

    A batch is filled up to `context_length`, or with `variable_length` to its longest text: for models whose answer
    does not depend on what the mask hides. Of `tfidf` features the model reads the terms of a text with their weights,
    in place of a mask: all that there are, so that `context_length` is the number of terms in the vocabulary.
    """

    context_length: Annotated[int, Field(ge=3)]  # start, a token, end
    lowercase: bool = True
    deobfuscate: bool = False
    languages: tuple[Annotated[str, Field(pattern="^[a-z]{2,3}$")], ...] = ("en",)
    features: Literal["tokens", "tfidf"] = "tokens"
    variable_length: bool = False

    def __post_init__(self) -> None:
        if self.features == "tfidf" and not self.variable_length:
            raise ValueError("texts have as many terms as they have: features tfidf need variable_length: true")

    @property
    def mask_name(self) -> str:
        """The name of the array beside `input_ids`: int64 1 and 0, or the float32 weights of terms, 0 for none."""
        return "attention_mask" if self.features == "tokens" else "term_weights"


@dataclass(frozen=True, config=schema.STRICT)
class Measurement:
    """One measured figure, with what it was measured on and the command that gives it again.

    `threat` names the attack and its budget where the figure is one of robustness, else it is empty.
    `bounds` is the interval around `value` at `confidence`, `data_sha256` and `split` say which rows were measured;
    each is empty if that was not recorded.
    """

    metric: str
    value: float
    data: str
    count: int
    command: str
    threat: str = ""
    bounds: tuple[float, float] | None = None
    confidence: float | None = None
    data_sha256: str = ""
    split: str = ""

    def __post_init__(self) -> None:
        schema.check_bounds(self.value, self.bounds, self.confidence)


@dataclass(frozen=True, config=schema.STRICT)
class SplitRule:
    """How training assigned rows without a split in the manifest: the name of the rule, its seed, the shares of train,
    val and test. `zoo.data.splits` computes the same splits again for an evaluation.
    """

    rule: str = "copies-3"
    seed: int = 0
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or not sum(self.shares) > 0:
            raise ValueError(f"shares must be 0 or more, one above 0, got {self.shares}")


@dataclass(frozen=True, config=schema.STRICT)
class Training:
    """How the weights were made. `recipe` is empty for weights that others published.

    `split` is the rule that assigned rows without a split, None if the manifest named the split of all rows.
    """

    recipe: str = ""
    data: str = ""
    epochs: int = 0
    steps: int = 0
    seed: int | None = None
    safety_zoo: str = ""
    split: SplitRule | None = None


@dataclass(frozen=True, config=schema.STRICT)
class ModelCard(schema.PlainData):
    """Everything that travels with the weights, unchanged, from the registry to the runtime.

    `labels` are the outputs of a classifier, in order; empty for a zero-shot model, whose outputs are the
    phrases of the policy, and for a panel, whose heads have cards of their own. `requires` names the inputs without
    which the model gives no answer. `hparams` rebuild the architecture. `files` are the sha256 of the other files of a
    release.

    >>> card = zoo.ModelCard.read(Path("my_release/card.json"))
    >>> card.name, card.task, card.image.size
    ('safeclip_tiny.zeroshot', 'zero_shot', 64)
    """

    _where = "card"
    _reads = (1,)

    name: str
    task: Task
    summary: str
    score: Score
    score_meaning: str
    image: ImageInput | None
    text: TextInput | None
    labels: tuple[str, ...]
    requires: tuple[Literal["image", "text"], ...]
    licence: str
    source: str
    hparams: dict[str, Any] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    training: Training = field(default_factory=Training)
    measurements: tuple[Measurement, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    schema_version: schema.VersionTwo = 2

    def __post_init__(self) -> None:
        if self.name.count(".") != 1 or not all(self.name.split(".")):
            raise ValueError(f'name must be "architecture.tag", got "{self.name}"')
        if self.task == "classification" and not self.labels:
            raise ValueError("a classification card must list its labels")
        if self.task != "classification" and self.labels:
            raise ValueError(f"a {self.task} card has no labels of its own, got {self.labels}")
        if (self.task == "panel") != (self.score == "by_head"):
            raise ValueError(f'score "by_head" is for panels, and theirs alone; task {self.task}, score {self.score}')
        missing = [kind for kind in self.requires if getattr(self, kind) is None]
        if missing:
            raise ValueError(f'requires {missing}, but describes no such input: fill in "{missing[0]}"')
        for name, card in self.heads.items():
            for what, (ours, theirs) in _other_settings(self, card).items():
                raise ValueError(f"{what} of the shared image tower is {ours}, and head {name} needs {theirs}")

    @property
    def architecture(self) -> str:
        """The part of the name before the dot: `safeclip_vit_b32`."""
        return self.name.split(".")[0]

    @property
    def tag(self) -> str:
        """The part of the name after the dot: `zeroshot`."""
        return self.name.split(".")[1]

    @property
    def reads_text(self) -> bool:
        """Whether a text can be judged. A zero-shot model has a text tower for the policy, and judges images."""
        return self.text is not None and self.task == "classification"

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the arrays of one batch, in the order of the model's arguments (see `ServedModel`)."""
        names: list[str] = []
        if self.image is not None:
            names.append("image")
        if self.reads_text and self.text is not None:
            names += ["input_ids", self.text.mask_name]
        if self.image is not None and "image" not in self.requires:
            names.append("image_present")
        return tuple(names)

    @property
    def heads(self) -> dict[str, ModelCard]:
        """The cards of a panel's heads, by their names in the panel, in the order of its outputs."""
        heads = self.hparams.get("heads", []) if self.task == "panel" else []
        return {head["name"]: ModelCard.from_dict(head["card"], f"head {head['name']}") for head in heads}

    @property
    def bank_names(self) -> tuple[str, ...]:
        """The names of the text banks that follow the inputs, one for each set of phrases that is compared."""
        if self.task == "panel":
            zero_shot = [number for number, card in enumerate(self.heads.values()) if card.task == "zero_shot"]
            return tuple(f"text_bank_{number}" for number in zero_shot)
        return ("text_bank",) if self.task == "zero_shot" else ()

    def refuse_panel(self, instead: str) -> None:
        """Raise BadArgumentError for a panel's card. The message says what to do `instead` and names the heads."""
        if self.task == "panel":
            raise BadArgumentError(f"{self.name} is a panel: {instead} ({', '.join(self.heads)})")

    def replace(self, **changes: Any) -> ModelCard:
        """Return a copy with these fields changed, checked like any other card."""
        return dataclasses.replace(self, **changes)

    def measured(self, new: Sequence[Measurement]) -> ModelCard:
        """Return a copy with these figures; those of the same metric, data and threat are replaced."""
        again = {(one.metric, one.data, one.threat) for one in new}
        kept = [old for old in self.measurements if (old.metric, old.data, old.threat) not in again]
        return self.replace(measurements=(*kept, *new))

    @classmethod
    def read(cls, path: Path, content: bytes | None = None) -> ModelCard:
        """Read `card.json`, or its `content`. Raises BadInputError (missing, not JSON) or BadCardError."""
        return cls.from_dict(schema.read_json(path, content), str(path))


#: The hyperparameters that make two CLIP vision towers the same architecture.
VISION = ("patch_size", "vision_width", "vision_layers", "vision_heads", "embedding_dim")


#: The activation of OpenAI's CLIPs. A card names another one as `hidden_act`, such as the `gelu` of LAION's.
QUICK_GELU = "quick_gelu"


def _tower_settings(card: ModelCard) -> dict[str, object]:
    """Everything that a CLIP's image tower computes by beside its weights."""
    sizes = {key: card.hparams.get(key) for key in VISION}
    return {"image input": card.image, **sizes, "hidden_act": card.hparams.get("hidden_act", QUICK_GELU)}


def _other_settings(one: ModelCard, other: ModelCard) -> dict[str, tuple[object, object]]:
    """The settings of the image tower in which two cards differ, or that neither has."""
    ours, theirs = _tower_settings(one), _tower_settings(other)
    return {what: (ours[what], theirs[what]) for what in ours if ours[what] is None or ours[what] != theirs[what]}


#: The hyperparameters that make two CLIP text towers the same architecture.
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
    """The card of a panel of these heads, by their names in it. Raises BadArgumentError if they share no tower."""
    if not heads:
        raise BadArgumentError("a panel needs at least one head")
    first_name, first = next(iter(heads.items()))
    for other_name, card in heads.items():
        for what, (wanted, other) in _other_settings(first, card).items():
            raise BadArgumentError(
                f"{first_name} and {other_name} have no image tower in common: {what} is {wanted} and {other}"
            )
    texts = {name: card for name, card in heads.items() if card.task == "zero_shot"}
    shapes = {(card.text, *(card.hparams.get(key) for key in TEXT)) for card in texts.values()}
    if len(shapes) > 1:
        raise BadArgumentError(f"{', '.join(texts)} have text towers of different shapes")
    by_head = readings or {head: reading_of(card) for head, card in heads.items()}
    distinct = sorted(set(by_head.values()))
    shared = {key: first.hparams[key] for key in (*VISION, "hidden_act") if key in first.hparams}
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
