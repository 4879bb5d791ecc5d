"""Policy: categories, the words or labels that define them, thresholds and actions. Never inside the weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import yaml
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from zoo.assets import find_asset
from zoo.contract import schema
from zoo.contract.verdict import Cause, Unseen
from zoo.errors import BadArgumentError, BadPolicyError, close_match

Views = Literal["auto", "centre", "squash", "pad", "tiles"]
Pool = Literal["max", "mean"]


@dataclass(frozen=True, config=schema.STRICT)
class OperatingPoint:
    """A threshold found on data: `metric` (fpr, tpr, precision) held at `target`, with what was measured.

    `bounds` is the interval around `measured` at `confidence`; `data_sha256` and `split` say which rows were measured.
    All four are a record. `views` are those of the policy that it was found with: binding a policy with others to a
    model warns, because more views flag more. `weights_sha256` would restrict where the threshold holds: this version
    does not check it, so it refuses a policy that sets it.
    """

    metric: Literal["fpr", "tpr", "precision"]
    target: float
    measured: float
    data: str
    positives: int
    negatives: int
    bounds: tuple[float, float] | None = None
    confidence: float | None = None
    data_sha256: str = ""
    split: str = ""
    weights_sha256: str = ""
    views: Literal["", Views] = ""

    def __post_init__(self) -> None:
        schema.check_bounds(self.measured, self.bounds, self.confidence)
        if self.weights_sha256:
            raise ValueError('this safety-zoo does not check "weights_sha256" of an operating point: leave it out')


@dataclass(frozen=True, config=schema.STRICT)
class Threshold:
    """A category is flagged when its score is **above** `value`; `chosen` says how that value came about."""

    value: Annotated[float, Field(ge=0, le=1)]
    chosen: Literal["by_hand", "operating_point"] = "by_hand"
    reason: str = ""
    operating_point: OperatingPoint | None = None

    def __post_init__(self) -> None:
        if (self.chosen == "operating_point") != (self.operating_point is not None):
            raise ValueError(f'chosen "{self.chosen}" and operating_point must go together')


@dataclass(frozen=True, config=schema.STRICT)
class Category:
    """One category of content that the policy decides on, or, with action `allow`, the neutral background.

    `descriptors` define it for zero-shot models (short phrases), `labels` for classifiers (their outputs; the
    category's own name when empty). Action `block` makes a flagged item unsafe, `review` sends it to a person.
    """

    name: str
    action: Literal["block", "review", "allow"]
    threshold: Threshold | None = None
    descriptors: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.action == "allow" and self.threshold is not None:
            raise ValueError(f'category "{self.name}" allows, so it has no threshold')
        if self.action != "allow" and self.threshold is None:
            raise ValueError(f'category "{self.name}" needs a threshold, its action is "{self.action}"')
        for kind, words in (("descriptors", self.descriptors), ("labels", self.labels)):
            twice = schema.repeated(words)
            if twice or any(not word.strip() for word in words):
                raise ValueError(f'category "{self.name}" has empty or repeated {kind}: {twice or words}')


#: The share of an input that may go unseen where a policy does not say; 0 for every other cause. A tenth of a picture's
#: area is what a centre crop leaves out of one that is 10:9. Where colours cannot be followed, viewers show the plain
#: pixels too; and they show the still of a motion photo.
TOLERATED: dict[Cause, float] = {"border": 0.1, "colours": 1.0, "film": 1.0}


@dataclass(frozen=True, config=schema.STRICT)
class PolicyFile(schema.YamlData):
    """The part that policies of one model and of a panel share: their identity, how an input is read, and their file.

    `views` says how a picture is brought to the model's square: `centre` as the model's card says (CLIP crops the
    centre), `squash` without regard to the aspect ratio, `pad` with bars of the model's mean colour, `tiles` as
    squares of the short side along the long one that overlap by a fifth of it, and `auto` as the card says where that
    leaves out no more than the tolerated `border`, else as tiles. With `scale` `native` tiles are as large as the
    model's square, in rows and columns, so that nothing is shrunk. A picture has at most `max_views`; an animation or
    video at most `frames`, the first, the last and evenly spaced ones; a text at most `windows`, which overlap and
    begin and end at words. The most severe of them decides (`pool` `max`), or their mean logit (`mean`).

    `frames_per_second` and `scenes` say which frames of a video are enough: one at each so many-th of a second, one
    where the picture changes as a whole, or both; with the first and the last. Where `frames` holds them all, the
    frames between are told and tolerated, unless `unseen` has a share for `frames`.

    `unseen` holds the share of the input that may go unseen, by cause: by default that of `TOLERATED`, else 0. What has
    no share, as damage, counts as 1. An item with more is at best for `review`. `allow` tolerates everything, and
    `auto` is the card's view then.
    """

    _where = "policy"
    _error = BadPolicyError
    _reads = (1,)

    name: str
    version: str
    summary: str
    views: Views = field(default="auto", kw_only=True)
    max_views: PositiveInt = field(default=8, kw_only=True)
    scale: Literal["short", "native"] = field(default="short", kw_only=True)
    frames: PositiveInt = field(default=1, kw_only=True)
    frames_per_second: Annotated[float, Field(gt=0, le=1000)] | None = field(default=None, kw_only=True)
    scenes: bool = field(default=False, kw_only=True)
    windows: PositiveInt = field(default=1, kw_only=True)
    pool: Pool = field(default="max", kw_only=True)
    unseen: Literal["allow"] | dict[Cause, Annotated[float, Field(ge=0, le=1)]] = field(
        default_factory=dict, kw_only=True
    )

    def __post_init__(self) -> None:
        if self.scale == "native" and self.views != "tiles":
            raise ValueError(f"scale: native is of tiles, and the views are {self.views}: say views: tiles, too")
        if self.frames == 1 and (self.frames_per_second or self.scenes):
            asked = "scenes" if self.scenes else f"frames_per_second: {self.frames_per_second:g}"
            raise ValueError(f"{asked} with frames: 1 has one frame judged: say how many at most, as frames: 64")

    @property
    def id(self) -> str:
        """`name@version#hash`: the hash is of the content, so that any change of a threshold shows in verdicts."""
        content = json.dumps(_as_version_1(self.to_dict()), sort_keys=True, ensure_ascii=False)
        return f"{self.name}@{self.version}#{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    @property
    def reading(self) -> dict[str, Any]:
        """How an input is read and what may go unseen: the fields that a panel has, and not its heads."""
        return {name: getattr(self, name) for name in _READING}

    @property
    def looks(self) -> tuple[object, ...]:
        """What decides which parts of an input a model is shown: policies alike in it may share what was read."""
        chosen = self.frames, self.frames_per_second, self.scenes
        return self.views, self.max_views, self.scale, *chosen, self.windows, self.tolerated("border")

    def tolerated(self, cause: Cause) -> float:
        """The share in [0, 1] of an input that may go unseen for this cause."""
        return 1.0 if self.unseen == "allow" else self.unseen.get(cause, TOLERATED.get(cause, 0.0))

    def weigh(self, unseen: Mapping[Cause, Unseen]) -> dict[Cause, Unseen]:
        """What is unseen, each marked whether it is tolerated.

        What comes marked stays so where the policy has no share of its own for its cause.
        """
        own = self.unseen if isinstance(self.unseen, dict) else {}
        return {
            cause: replace(one, tolerated=one.share <= self.tolerated(cause) or (one.tolerated and cause not in own))
            for cause, one in unseen.items()
        }

    def to_yaml(self) -> str:
        """The text of a `policy.yaml` that is read back to an equal policy."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)


#: The fields that version 2 added, with their defaults. A field at its default is left out of the hash, so that an
#: unchanged policy keeps its id. `views` stands in operating points, too.
ADDED: dict[str, tuple[Any, ...]] = {
    "views": ("auto", ""),
    "max_views": (8,),
    "scale": ("short",),
    "frames": (1,),
    "frames_per_second": (None,),
    "scenes": (False,),
    "windows": (1,),
    "pool": ("max",),
    "unseen": ({},),
    "bounds": (None,),
    "confidence": (None,),
    "data_sha256": ("",),
    "split": ("",),
    "weights_sha256": ("",),
}


def _as_version_1(value: Any) -> Any:
    """The plain data of a policy without the added fields that stand at their defaults, for the hash."""
    if isinstance(value, list):
        return [_as_version_1(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _as_version_1(one) for key, one in value.items() if one not in ADDED.get(key, ())}
    return kept | {"schema_version": 1} if "schema_version" in kept else kept


@dataclass(frozen=True, config=schema.STRICT)
class Policy(PolicyFile):
    """The categories, and the rule by which one of them decides.

    `rule` `argmax`: only the highest-scoring category can be flagged (SafeCLIP, arXiv 2503.00037); `each`:
    every category is judged against its own threshold. `pooling` makes a category's score from the scores of
    its phrases or labels: `sum` (probabilities of exclusive outputs), `mean`, `max`, or, for phrases, `logsumexp`:
    a softmax over the categories' log-mean-exp of logits, so that a category gains nothing by having more phrases.
    `temperature` divides a zero-shot model's logits before the softmax: above 1 the scores are more even.
    How an input is read, and how much of it may go unseen, say the fields of `PolicyFile`.

    >>> block = Category("violence", "block", Threshold(0.5), descriptors=("a photo of a fight",))
    >>> policy = Policy("mine", "1", "Fights", (block, Category("other", "allow", descriptors=("a photo",))))
    >>> Policy.from_dict(policy.to_dict()) == policy
    True
    """

    categories: tuple[Category, ...]
    rule: Literal["argmax", "each"] = "each"
    pooling: Literal["sum", "mean", "logsumexp", "max"] = "sum"
    temperature: PositiveFloat = 1.0
    schema_version: schema.VersionTwo = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if twice := schema.repeated(category.name for category in self.categories):
            raise ValueError(f"categories named more than once: {twice}")
        for kind in ("descriptors", "labels"):
            if shared := schema.repeated(word for one in self.categories for word in getattr(one, kind)):
                raise ValueError(f"{kind} that stand in two categories, so that neither decides: {shared}")
        if all(category.action == "allow" for category in self.categories):
            raise ValueError("no category blocks or asks for review, so everything would be called safe")

    @property
    def phrases(self) -> tuple[str, ...]:
        """All phrases for a zero-shot model, category by category. Raises BadPolicyError for a category without one."""
        for category in self.categories:
            if not category.descriptors:
                raise BadPolicyError(
                    f'policy "{self.name}": category "{category.name}" has no descriptors, and a zero-shot model '
                    "knows a category by them alone: add short phrases under `descriptors:`"
                )
        return tuple(phrase for category in self.categories for phrase in category.descriptors)

    def single(self) -> Policy:
        """This policy, which is for one model."""
        return self


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
    All heads see the same input, so the panel's own fields say how it is read; policies of heads have the defaults
    there, or the same as the panel.
    """

    combine: Combine
    heads: tuple[HeadPolicy, ...]
    schema_version: schema.VersionTwo = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        twice = schema.repeated(entry.head for entry in self.heads)
        if twice or not self.heads:
            raise ValueError(f"a panel policy names each head once, got {twice}")
        for entry in self.heads:
            if entry.policy.reading not in (self.reading, _DEFAULT_READING):
                raise ValueError(
                    f'head "{entry.head}" reads the input in its own way ({_changed(entry.policy.reading)}), and all '
                    "heads see the same: say so in the panel's policy"
                )

    def single(self) -> Policy:
        """Raises BadPolicyError: this policy is not for one model."""
        raise BadPolicyError(f'policy "{self.name}" is for a panel (it has `heads:`): give the policy of one head')


#: The fields of `PolicyFile` that say how an input is read.
_READING = ("views", "max_views", "scale", "frames", "frames_per_second", "scenes", "windows", "pool", "unseen")
_DEFAULT_READING = {name: ADDED[name][0] for name in _READING}


def _changed(reading: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in reading.items() if value != _DEFAULT_READING[name])


AnyPolicy: TypeAlias = Policy | PanelPolicy


def read_policy(path: str | Path, content: bytes | None = None) -> AnyPolicy:
    """Read a policy by its path or shipped name, or its `content`: that of a panel if it has `heads`, else of a model.

    Raises BadInputError (missing, not YAML) or BadPolicyError.
    """
    given = content is not None or (isinstance(path, Path) and path.is_file())
    data = schema.read_yaml(Path(path) if given else find_asset(path), content)
    kind: type[AnyPolicy] = PanelPolicy if isinstance(data, dict) and "heads" in data else Policy
    return kind.from_dict(data, str(path))


def panel_policy(heads: dict[str, Policy], combine: Combine) -> PanelPolicy:
    """The policy of a panel of these heads. Raises BadInputError for an unknown `combine`."""
    if combine not in get_args(Combine):
        known = close_match(combine, get_args(Combine))
        raise BadArgumentError(f'no way to combine heads is named "{combine}"{known}')
    summary = f"{len(heads)} heads on one image tower, combined by {combine}"
    own = {head: policy.reading for head, policy in heads.items() if policy.reading != _DEFAULT_READING}
    reading = next(iter(own.values()), _DEFAULT_READING)
    if any(other != reading for other in own.values()):
        ways = "; ".join(f"{head}={_changed(other)}" for head, other in own.items())
        raise BadPolicyError(f"all heads of a panel see the same input, and these policies read it differently: {ways}")
    return PanelPolicy("panel", "1", summary, combine, tuple(HeadPolicy(*item) for item in heads.items()), **reading)
