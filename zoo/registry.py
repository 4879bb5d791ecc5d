"""Models by name: `architecture.tag`. Listing and describing need no torch; building imports it."""

from __future__ import annotations

import fnmatch
import importlib
import logging
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from zoo.assets import find_asset
from zoo.contract.card import ModelCard
from zoo.contract.policy import AnyPolicy, Policy, panel_policy
from zoo.errors import BadArgumentError, UnknownModelError, close_match, training_needed

if TYPE_CHECKING:
    from zoo.archives.archive import Archived
    from zoo.models.base import ZooModel

Builder = Callable[[ModelCard], "ZooModel"]

_Named = TypeVar("_Named", bound="str | Builder")

log = logging.getLogger("zoo.registry")

#: The `pretrained` of a model whose weights are drawn from seed 0: the same on every machine, for tests.
RANDOM = "random"


#: What judges pictures, and texts, where no model is named.
DEFAULT_MODEL, DEFAULT_TEXT_MODEL = "opennsfw.yahoo", "prompt_safety_minilm.zoo"


@dataclass(frozen=True)
class ModelEntry:
    """One registered model: its card (without files), its builder, and the source of its weights.

    `builder` is a callable from card to module, or its "module:name", which is imported when it is first built.
    `pretrained` is the Hugging Face Hub id of a CLIP, `random`, an `Archived`, or None without downloadable weights.
    `policy` is the path of the policy that judges the model unless another is given; it is empty for a panel, whose
    heads have theirs.
    """

    card: ModelCard
    builder: str | Builder
    policy: str
    pretrained: str | Archived | None = None


#: What a score means where a recipe chooses it.
_MEANING = {
    "softmax": "probability of each label; they add up to 1",
    "sigmoid": "probability of each label by itself",
}

_entries: dict[str, ModelEntry] = {}
_loaded = False


def register_model(
    card: ModelCard, *, policy: str, builder: str | Builder | None = None, pretrained: str | Archived | None = None
) -> Callable[[Builder], Builder]:
    """Register a model under `card.name`: at once with `builder`, otherwise as a decorator of the builder.

    A builder takes the card (hyperparameters in `card.hparams`) and returns an untrained `ZooModel`.
    Raises BadArgumentError when the name is taken.

    zoo/models/README.md has an example with a network, a card and a policy of its own.

    >>> card = zoo.model_card("vision_regnet_tiny.plain").replace(name="my_net.small")
    >>> @zoo.register_model(card, policy="my_policy.yaml")
    ... def build(card):
    ...     return zoo.models.classifiers.ImageClassifier(card)
    >>> zoo.list_models("my_net.*")
    ['my_net.small']
    """

    def decorate(function: _Named) -> _Named:
        _load()  # a shipped model keeps its name; the later one is refused
        if card.name in _entries:
            raise BadArgumentError(f'a model named "{card.name}" is already registered')
        _entries[card.name] = ModelEntry(card, function, policy, pretrained)
        return function

    if builder is not None:
        decorate(builder)
    return decorate


#: A classifier of images, made here.
_USUAL: dict[str, Any] = {
    "task": "classification",
    "image": None,
    "text": None,
    "labels": (),
    "requires": ("image",),
    "licence": "Apache-2.0",
    "source": "safety-zoo",
}


def register(name: str, *, builder: str, policy: str, pretrained: str | Archived | None = None, **card: Any) -> None:
    """Register a model by its builder and the fields of its card, as far as they are not the usual ones."""
    register_model(ModelCard(name=name, **_USUAL | card), builder=builder, policy=policy, pretrained=pretrained)


def list_models(pattern: str = "*", *, tag: str | None = None, task: str | None = None) -> list[str]:
    """Names that match a wildcard pattern, sorted; `tag` and `task` narrow the list.

    >>> zoo.list_models("safeclip_vit_l14*", tag="zeroshot")
    ['safeclip_vit_l14.zeroshot', 'safeclip_vit_l14_336.zeroshot']
    """
    _load()
    cards = [_entries[name].card for name in fnmatch.filter(_entries, pattern)]
    return sorted(card.name for card in cards if tag in (None, card.tag) and task in (None, card.task))


def model_entry(name: str) -> ModelEntry:
    """The entry of that exact name. Raises UnknownModelError with the close matches."""
    _load()
    if name not in _entries:
        own = " (see `zoo list`; the module of a model of your own must be imported first)"
        raise UnknownModelError(f'no model is named "{name}"' + close_match(name, _entries) + own)
    return _entries[name]


def default_policy(entry: ModelEntry) -> AnyPolicy:
    """The shipped policy of a registered model; for a panel that of each head, combined by `any`."""
    if entry.card.task != "panel":
        return Policy.read(find_asset(entry.policy))
    heads = {name: Policy.read(find_asset(model_entry(card.name).policy)) for name, card in entry.card.heads.items()}
    return panel_policy(heads, "any")


def model_card(name: str, **hparams: Any) -> ModelCard:
    """The card of a registered model with some hyperparameters changed.

    `image_size`, `context_length`, `labels` and `score` (softmax, or sigmoid for labels that do not exclude each
    other) change the card's inputs and outputs. Every other name must be in the card's `hparams`. Measurements, which
    are of published weights, are left out. Raises UnknownModelError, BadArgumentError naming the unknown
    hyperparameter, or BadCardError naming the value that a card does not allow.

    >>> card = zoo.model_card("vision_regnet_tiny.plain", image_size=64, labels=("cat", "dog"))
    >>> card.image.size, card.labels, card.licence
    (64, ('cat', 'dog'), 'Apache-2.0')
    """
    data = model_entry(name).card.to_dict()
    data["measurements"] = []
    if "image_size" in hparams and data["image"]:
        data["image"]["size"] = hparams.pop("image_size")
    if "context_length" in hparams and data["text"]:
        data["text"]["context_length"] = hparams.pop("context_length")
    if "labels" in hparams and data["labels"]:
        data["labels"] = hparams.pop("labels")
    if "score" in hparams and data["labels"] and hparams["score"] in _MEANING:
        data["score"] = hparams.pop("score")
        data["score_meaning"] = _MEANING[data["score"]]
    for key in hparams:
        if key not in data["hparams"]:
            raise BadArgumentError(f'{name} has no hyperparameter "{key}"' + close_match(key, data["hparams"]))
    data["hparams"] |= hparams
    return ModelCard.from_dict(data, name)


def build(card: ModelCard) -> ZooModel:
    """Build the untrained module that a card describes. Raises UnknownModelError for an unregistered name."""
    builder = model_entry(card.name).builder
    with training_needed():
        made: Builder = pkgutil.resolve_name(builder) if isinstance(builder, str) else builder
        return made(card)


def create_model(name: str, **hparams: Any) -> ZooModel:
    """Build a registered architecture, untrained (random weights, in evaluation mode).

    Raises what `model_card` raises.

    >>> model = zoo.create_model("vision_regnet_tiny.plain", labels=("cat", "dog"))
    >>> model(torch.rand(5, 3, 32, 32)).shape
    torch.Size([5, 2])
    """
    return build(model_card(name, **hparams)).eval()


def model_table(names: list[str]) -> str:
    """A Markdown table of these models: name, task, image side, where weights come from, summary."""
    rows = ["| model | task | image | weights | what it is |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        entry = model_entry(name)
        side = f"{entry.card.image.size} px" if entry.card.image else "-"
        weights = _weights(entry)
        rows.append(f"| `{name}` | {entry.card.task} | {side} | {weights} | {entry.card.summary} |")
    return "\n".join(rows)


def _weights(entry: ModelEntry) -> str:
    """Where the weights of a model come from, in Markdown."""
    if entry.pretrained is None or entry.pretrained == RANDOM:
        return entry.pretrained or "train or import"
    return f"`{entry.pretrained}`" if isinstance(entry.pretrained, str) else str(entry.pretrained)


def import_models(module: str) -> None:
    """Import a module by its dotted name, so that it registers its models.

    Raises BadArgumentError naming the module when it does not exist or raises; then none of its models stays.
    """
    _load()
    try:
        with _all_or_none():
            importlib.import_module(module)
    except (Exception, SystemExit) as problem:
        dotted = module.removesuffix(".py").replace("/", ".")
        hint = "" if dotted == module else f"; give the dotted name, not the file: {dotted}"
        raise BadArgumentError(f'the module "{module}" cannot be imported: {_reason(problem)}{hint}') from problem


def load_plugins(group: str, use: Callable[[Any], object] = lambda loaded: None) -> None:
    """Load what installed packages announce as entry points of this group, and hand each to `use`.

    A plugin that raises is named in a warning and skipped: it must not take every other command with it.
    """
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            use(entry.load())
        except (Exception, SystemExit) as problem:
            package = entry.dist.name if entry.dist else "an unknown package"
            log.warning('the plugin "%s" of %s (%s) is skipped: %s', entry.name, package, group, _reason(problem))


def _load() -> None:
    """Register the models of the zoo, then those of installed packages: once, when the registry is first asked."""
    global _loaded
    if _loaded:
        return
    _loaded = True  # before the imports, because what they import asks the registry too
    try:
        with _all_or_none():
            importlib.import_module("zoo.models.catalogue")
    except BaseException:
        _loaded = False
        for name in [name for name in sys.modules if name.startswith("zoo.models.catalogue")]:
            del sys.modules[name]  # the next try must run all of them again
        raise
    load_plugins("safety_zoo.models")


@contextmanager
def _all_or_none() -> Iterator[None]:
    """Take back what was registered within the block when the block raises."""
    before = dict(_entries)
    try:
        yield
    except BaseException:
        _entries.clear()
        _entries.update(before)
        raise


def _reason(problem: BaseException) -> str:
    """The kind and message of an error, in one line."""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"
