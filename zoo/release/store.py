"""Releases: model.safetensors, card.json, policy.yaml, tokenizer.json in a directory or on the Hub, hashes checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.contract.card import ModelCard
from zoo.contract.panel import AnyPolicy
from zoo.errors import BadCardError, BadDataError
from zoo.files import check_hashes, hashes, new_directory
from zoo.judging.panel import AnyJudge, bind

if TYPE_CHECKING:
    from zoo.models.base import ZooModel

WEIGHTS, CARD, POLICY, TOKENIZER = "model.safetensors", "card.json", "policy.yaml", "tokenizer.json"
HUB = "hf-hub:"


@dataclass(frozen=True)
class Release:
    """A model with weights (in evaluation mode), its card and the policy that judges it, bound to each other once.

    Raises BadPolicyError when policy and model do not fit.
    """

    model: ZooModel
    card: ModelCard
    policy: AnyPolicy
    judge: AnyJudge = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "judge", bind(self.card, self.policy))


def write_release(model: ZooModel, policy: AnyPolicy, out: Path, *, overwrite: bool = False) -> ModelCard:
    """Write a release directory and return its card, hashes filled in.

    Everything is written beside `out` and moved there at the end, so that a broken run leaves no release.
    Raises BadPolicyError when the policy does not fit the model, BadInputError when `out` is taken.
    """
    from safetensors.torch import save_file

    bind(model.card, policy)
    with new_directory(out, overwrite=overwrite, ours=(CARD, WEIGHTS, POLICY, TOKENIZER)) as folder:
        tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        save_file(tensors, folder / WEIGHTS)
        (folder / POLICY).write_text(policy.to_yaml(), encoding="utf-8")
        if model.tokenizer_json is not None:
            (folder / TOKENIZER).write_text(model.tokenizer_json, encoding="utf-8")
        card = model.card.replace(files=hashes(folder))
        write_card(card, folder)
    return card


def checked_card(folder: Path) -> ModelCard:
    """Read a release's card and compare every file with its sha256; raises TamperedFileError on a difference."""
    if not (folder / CARD).is_file():
        raise BadDataError(f"{folder}: holds no {CARD}, so it is no release (made by `zoo release CKPT --out DIR`)")
    card = ModelCard.read(folder / CARD)
    for required in (WEIGHTS, POLICY, *((TOKENIZER,) if card.text else ())):
        if required not in card.files:
            raise BadCardError(f'{folder / CARD}: field "files" names no {required}')
    check_hashes(folder, card.files)
    return card


def write_card(card: ModelCard, folder: Path) -> None:
    """Write `card.json` into a folder."""
    card.write_json(folder / CARD, indent=2)
