"""Parts of a model that are not trained, and activations that are computed again to save memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel

from zoo.errors import BadArgumentError, close_match
from zoo.models.base import ZooModel


def freeze_parts(model: ZooModel, frozen: Sequence[str], unfrozen: Sequence[str] = ()) -> None:
    """Freeze the parameters under `frozen` modules, except those under `unfrozen` ones; the longest name counts.

    Frozen modules get no gradients and stay in evaluation mode: no dropout, no new running statistics. Raises
    BadInputError for a name that is not a module or parameter of the model.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    known = {name for name in (*modules, *parameters) if name}
    for name in (*frozen, *unfrozen):
        if name not in known:
            raise BadArgumentError(f'freeze: {model.card.name} has no part "{name}"' + close_match(name, known))
    for name, parameter in parameters.items():
        if _is_frozen(name, frozen, unfrozen):
            parameter.requires_grad_(False)
    _keep_in_eval(model, (name for name in modules if _is_frozen(name, frozen, unfrozen)))


def freeze_norms(model: ZooModel) -> None:
    """Keep the running statistics of all two-dimensional batch norms, those of convolutional backbones.

    Scale and shift are still trained. Raises BadInputError for a model without such layers.
    """
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        raise BadArgumentError(f"freeze_norm: {model.card.name} has no batch norm in a convolutional backbone")
    _keep_in_eval(model, norms)


def checkpoint_gradients(model: ZooModel) -> None:
    """Let transformers' towers compute their activations again in the backward pass: less memory, the same gradients.

    Raises BadInputError for a model without a tower that can.
    """
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    towers = [part for part in parts if part.supports_gradient_checkpointing]
    if not towers:
        raise BadArgumentError(f"gradient_checkpointing: {model.card.name} has no transformer that can do it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the new name is not in all versions that we allow
        for tower in towers:
            tower.gradient_checkpointing_enable({"use_reentrant": False})


def _keep_in_eval(model: ZooModel, names: Iterable[str]) -> None:
    model.stays_in_eval |= frozenset(names)
    model.train(model.training)


def _is_frozen(name: str, frozen: Sequence[str], unfrozen: Sequence[str]) -> bool:
    def longest(prefixes: Sequence[str]) -> int:
        return max((len(p) for p in prefixes if name == p or name.startswith(p + ".")), default=-1)

    return longest(frozen) > longest(unfrozen)
