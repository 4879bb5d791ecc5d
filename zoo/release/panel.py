"""Trained and imported models that share an image tower, put on one tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.contract.card import VISION, Reading, panel_card, reading_of
from zoo.contract.policy import Combine, Policy, panel_policy, read_policy
from zoo.errors import BadArgumentError, BadDataError, close_match
from zoo.models.clip import ClipImageTower, DualEncoder
from zoo.models.heads import EmbeddingClassifier, Panel
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
    towers = [name.removesuffix(".panel") for name in list_models("*.panel")]
    if tower not in towers:
        raise BadArgumentError(f'no tower is named "{tower}"' + close_match(tower, towers))
    releases = _named([_load(member) for member in members])
    readings, state = _merged(releases)
    card = panel_card(f"{tower}.panel", {name: release.card for name, release in releases.items()}, readings)
    _same_sizes(tower, card.hparams)
    panel = Panel(card)
    for name, release in releases.items():
        _same_settings(name, release.model, panel)
    panel.load_state_dict(state)
    if card.text is not None:
        panel.tokenizer_json = _tokenizer(releases)
    policy = panel_policy({name: release.policy.single() for name, release in releases.items()}, combine)
    return Release(panel.eval(), card, policy)


def _load(member: Member) -> Release:
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


_PROJECTION = "image_tower.visual_projection.weight"


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


def _merged(releases: dict[str, Release]) -> tuple[dict[str, Reading], dict[str, Tensor]]:
    """How each head reads the tower, and the weights of the panel: what several members hold must be the same."""
    import torch

    readings: dict[str, Reading] = {}
    projections: dict[Reading, Tensor] = {}
    state: dict[str, Tensor] = {}
    unused: dict[str, Tensor] = {}  # a final LayerNorm counts only where it is used
    owners: dict[str, str] = {}
    for place, (name, release) in enumerate(releases.items()):
        reading = reading_of(release.card)
        for key, value in release.model.state_dict().items():
            part, _, rest = key.partition(".")
            if part in ("head", "logit_scale"):
                state[f"heads.{place}.{rest or part}"] = value
            elif key == _PROJECTION:
                while not torch.equal(projections.setdefault(reading, value), value):
                    reading = replace(reading, projection=reading.projection + 1)
                readings[name] = reading
            elif "vision_model.post_layernorm" in key and not reading.post_layernorm:
                unused[key] = value
            elif key.startswith(("image_tower.vision_model.", "text_tower.")):
                owner = owners.setdefault(key, name)
                if not torch.equal(state.setdefault(key, value), value):
                    raise BadDataError(
                        f"{owner} and {name} have different {part.replace('_', ' ')}s ({key}): with one for both, one "
                        "of them would judge embeddings that it was not trained for"
                    )
    for number, reading in enumerate(sorted(projections)):  # as `panel_card` numbers them
        state[f"image_tower.projections.{number}.weight"] = projections[reading]
    return readings, unused | state


def _tokenizer(releases: dict[str, Release]) -> str | None:
    """The one tokenizer of the zero-shot members. Raises BadDataError when they have several."""
    known = {release.model.tokenizer_json: name for name, release in releases.items() if release.card.text is not None}
    if len(known) > 1:
        raise BadDataError(f"{' and '.join(known.values())} have different tokenizers, and a panel has one")
    return next(iter(known))


def _same_sizes(tower: str, hparams: dict[str, object]) -> None:
    expected = model_card(f"{tower}.panel").hparams
    for key in VISION:
        if hparams[key] != expected[key]:
            raise BadArgumentError(f"the members do not fit {tower}: {key} is {hparams[key]}, expected {expected[key]}")
