"""Trained and imported models that share an image tower, put on one tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.contract.card import VISION, ModelCard, Reading, panel_card, reading_of
from zoo.contract.policy import Combine, Policy, panel_policy, read_policy
from zoo.errors import BadArgumentError, BadDataError, close_match
from zoo.registry import list_models, model_card
from zoo.release.store import Release, load_release

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.models.base import ZooModel
    from zoo.models.heads import Panel

#: A head: a release directory, Hub release or registry name; or one of these with a policy (or the file of one).
Member = str | Path | tuple[str | Path, Policy | str | Path]


def create_panel(tower: str, members: Sequence[Member], combine: Combine = "any") -> Release:
    """Put heads and zero-shot policies on one image tower; returns the panel with its policy, to score with or release.

    `tower` is the name of a panel (`zoo list "*.panel"`) without its tag. A member is a release directory, Hub release
    or registry name, or one of these with a policy. The image is encoded once, whatever the number of heads, so all
    members must hold the same tower weights, as far as each reads them, and compute by them alike. Raises BadInputError
    naming two members that do not, and what `load_release` raises.

    >>> panel = zoo.create_panel("clip_tiny", ["my_release", ("my_release", "configs/policy/dogs.yaml")], "majority")
    >>> list(panel.card.heads)
    ['safeclip_tiny.zeroshot/safeclip', 'safeclip_tiny.zeroshot/dogs']
    """
    from zoo.models.heads import Panel

    towers = [name.removesuffix(".panel") for name in list_models("*.panel")]
    if tower not in towers:
        raise BadArgumentError(f'no tower is named "{tower}"' + close_match(tower, towers))
    releases = _named([_load(member) for member in members])
    cards = {name: release.card for name, release in releases.items()}
    states = {name: dict(release.model.state_dict()) for name, release in releases.items()}
    deepest = max(releases, key=lambda name: reading_of(cards[name]).layer, default="")
    for name, state in states.items():
        _same_tower(deepest, states[deepest], name, state)
    readings, projections = _readings(cards, states)
    card = panel_card(f"{tower}.panel", cards, readings)
    _same_sizes(tower, card.hparams)
    panel = Panel(card)
    for name, release in releases.items():
        _same_settings(name, release.model, panel)
    panel.load_state_dict(_panel_state(panel, releases, states, deepest, projections))
    zero_shot = [name for name, head in cards.items() if head.task == "zero_shot"]
    if zero_shot:
        panel.tokenizer_json = releases[zero_shot[0]].model.tokenizer_json
    policy = panel_policy({name: release.policy.single() for name, release in releases.items()}, combine)
    return Release(panel.eval(), card, policy)


def _load(member: Member) -> Release:
    from zoo.models.clip import ClipImageTower, DualEncoder
    from zoo.models.heads import EmbeddingClassifier

    source, policy = member if isinstance(member, tuple) else (member, None)
    release = load_release(source)
    release.card.refuse_panel("name its heads instead")
    if policy is not None:
        chosen = policy if isinstance(policy, Policy) else read_policy(policy).single()
        release = Release(release.model, release.card, chosen)
    model = release.model
    if not isinstance(model, (DualEncoder, EmbeddingClassifier)) or not isinstance(model.image_tower, ClipImageTower):
        raise BadArgumentError(
            f"{source} ({release.card.name}) is not a head on the embedding of a CLIP vision transformer"
        )
    return release


def _named(releases: list[Release]) -> dict[str, Release]:
    """Heads by the names of their models; heads of one model also have the names of their policies."""
    names = [release.card.name for release in releases]
    named: dict[str, Release] = {}
    for release, name in zip(releases, names, strict=True):
        unique = f"{name}/{release.policy.name}" if names.count(name) > 1 else name
        if unique in named:
            raise BadArgumentError(f"the panel has {unique} twice")
        named[unique] = release
    return named


_VISION, _POST, _PROJECTION = "image_tower.vision_model.", "post_layernorm.", "image_tower.visual_projection.weight"


def _same_tower(name: str, state: dict[str, Tensor], other_name: str, other: dict[str, Tensor]) -> None:
    """Raise BadDataError unless two members hold the same vision weights, as far as both hold them."""
    for key, value in other.items():
        if not key.startswith(_VISION) or _POST in key:  # the final LayerNorm counts only where it is used
            continue
        if key not in state or state[key].shape != value.shape or not bool((state[key] == value).all()):
            raise BadDataError(
                f"{name} and {other_name} have different image towers ({key}): on one shared tower, one of them would "
                "judge embeddings that it was not trained for"
            )


def _same_settings(name: str, member: ZooModel, panel: Panel) -> None:
    """Raise BadDataError for towers that would compute something else by the same weights: activation, epsilon."""
    from zoo.models.clip_weights import check_settings

    image: Any = member.image_tower
    shared: Any = panel.image_tower
    check_settings(name, "image tower", image.vision_model.config, shared.vision_model.config)
    if hasattr(panel, "text_tower") and hasattr(member, "text_tower"):
        text: Any = member.text_tower
        shared = panel.text_tower
        check_settings(name, "text tower", text.text_model.config, shared.text_model.config)


def _readings(
    cards: dict[str, ModelCard], states: dict[str, dict[str, Tensor]]
) -> tuple[dict[str, Reading], dict[Reading, dict[str, Tensor]]]:
    """How each head reads the tower, and a member that has the projection (and the final LayerNorm) of each reading."""
    import torch

    chosen: dict[str, Reading] = {}
    owners: dict[Reading, dict[str, Tensor]] = {}
    final = {
        name: [value for key, value in sorted(states[name].items()) if _POST in key and key.startswith(_VISION)]
        for name, card in cards.items()
        if reading_of(card).post_layernorm
    }
    name = next(iter(final), "")
    for other in final:
        if any(not torch.equal(one, two) for one, two in zip(final[name], final[other], strict=True)):
            raise BadDataError(f"{name} and {other} have different image towers (the final LayerNorm)")
    for name, card in cards.items():
        base = reading_of(card)
        for number in range(len(cards)):
            reading = Reading(base.layer, base.post_layernorm, number)
            owner = owners.setdefault(reading, states[name])
            if torch.equal(owner[_PROJECTION], states[name][_PROJECTION]):
                chosen[name] = reading
                break
    return chosen, owners


def _same_sizes(tower: str, hparams: dict[str, object]) -> None:
    expected = model_card(f"{tower}.panel").hparams
    wrong = [key for key in VISION if hparams[key] != expected[key]]
    if wrong:
        key = wrong[0]
        raise BadArgumentError(f"the members do not fit {tower}: {key} is {hparams[key]}, expected {expected[key]}")


def _panel_state(
    panel: Panel,
    releases: dict[str, Release],
    states: dict[str, dict[str, Tensor]],
    deepest: str,
    owners: dict[Reading, dict[str, Tensor]],
) -> dict[str, Tensor]:
    """The weights of the panel, each from the member that has it."""
    state = {key: value for key, value in states[deepest].items() if key.startswith(_VISION)}
    for reading, owner in owners.items():
        if reading.post_layernorm:
            state |= {key: value for key, value in owner.items() if key.startswith(_VISION) and _POST in key}
    for number, reading in enumerate(sorted(owners)):  # as `panel_card` numbers them
        state[f"image_tower.projections.{number}.weight"] = owners[reading][_PROJECTION]
    texts: dict[str, dict[str, Tensor]] = {}
    for number, (name, release) in enumerate(releases.items()):
        for key, value in states[name].items():
            if key.startswith("head."):
                state[f"heads.{number}.{key.removeprefix('head.')}"] = value
        if release.card.task == "zero_shot":
            state[f"heads.{number}.logit_scale"] = states[name]["logit_scale"]
            texts[name] = {key: value for key, value in states[name].items() if key.startswith("text_tower.")}
    first = next(iter(texts), "")
    for name, text in texts.items():
        same = all(bool((value == texts[first][key]).all()) for key, value in text.items())
        if not same or releases[name].model.tokenizer_json != releases[first].model.tokenizer_json:
            raise BadDataError(f"{first} and {name} have different text towers, and a panel has one")
    return state | texts.get(first, {})
