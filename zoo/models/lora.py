"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) by peft: put on towers for training, merged for a release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from zoo.errors import BadArgumentError, MissingDependencyError, close_match
from zoo.models.base import ZooModel

if TYPE_CHECKING:
    from peft import LoraConfig

#: Keys of `lora` in a recipe and their defaults: the attention projections of transformers' CLIP and LLaMA, as in the
#: paper. BERT calls them query and value.
LORA: dict[str, Any] = {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


def lora_config(lora: Mapping[str, Any], parts: Mapping[str, nn.Module], whole: str) -> LoraConfig:
    """peft's configuration for adapters on linear layers, named by their last name, in `parts` of a model by path.

    Raises BadInputError for an unknown key, or a name that no linear layer of these parts has (`whole` says whose),
    and MissingDependencyError without peft.
    """
    for key in lora:
        if key not in LORA:
            raise BadArgumentError(f'lora: no key "{key}"' + close_match(key, LORA))
    try:
        from peft import LoraConfig
    except ImportError:
        raise MissingDependencyError("LoRA takes pip install 'safety-zoo[finetune]'") from None
    options = LORA | dict(lora)
    layers = (layer for part in parts.values() for layer in part.named_modules())
    linear = {name.rpartition(".")[2] for name, module in layers if isinstance(module, nn.Linear)}
    for target in options["target_modules"]:
        if target not in linear:
            raise BadArgumentError(f'lora: {whole} has no "{target}"' + close_match(target, linear))
    return LoraConfig(
        r=options["r"],
        lora_alpha=options["alpha"],
        lora_dropout=options["dropout"],
        # By path, because other parts may have layers of the same names.
        target_modules=rf"(.*\.)?({'|'.join(parts)})\.(.*\.)?({'|'.join(options['target_modules'])})",
    )


def add_adapters(model: ZooModel, lora: Mapping[str, Any]) -> None:
    """Put adapters on the towers of a model, in place, and freeze the rest of the towers; heads are trained as before.

    Raises as `lora_config` does, and BadInputError for a model without towers.
    """
    trained = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith(_TOWERS)]
    _adapted(model, lora)
    for parameter in trained:
        parameter.requires_grad_(True)  # peft freezes everything except adapters


def merge_adapters(model: ZooModel, lora: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Load a state with adapters into a model that has none, and merge them: plain weights, the same answers.

    Raises as `add_adapters` does, and RuntimeError for a state that does not fit.
    """
    tuner = _adapted(model, lora)
    model.load_state_dict(state)
    tuner.merge_and_unload()


_TOWERS = ("image_tower.", "text_tower.")


def _adapted(model: ZooModel, lora: Mapping[str, Any]) -> Any:
    towers = {name[:-1]: model.get_submodule(name[:-1]) for name in _TOWERS if hasattr(model, name[:-1])}
    if not towers:
        raise BadArgumentError(f"lora: {model.card.name} has neither an image tower nor a text tower")
    config = lora_config(lora, towers, model.card.name)
    from peft import LoraModel

    return LoraModel(model, {"default": config}, "default")
