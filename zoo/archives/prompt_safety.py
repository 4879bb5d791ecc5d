"""The texts' default: MiniLM from its archive, and the layers on it that were trained here, which the package holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from zoo.archives.archive import Weights, checked
from zoo.archives.jailguard import MINILM, TOKENIZER, minilm
from zoo.contract.card import ModelCard

#: Written by tests/benchmarks/prompt_safety.py.
LAYERS = Path(__file__).with_suffix(".safetensors")


def convert(card: ModelCard, members: Mapping[str, bytes]) -> Weights:
    """The weights of `prompt_safety_minilm.zoo`. Raises BadDataError for layers of other names or shapes."""
    from safetensors.numpy import load_file

    h = card.hparams
    shapes = {
        "layers.0.weight": (len(card.labels), h["text_width"]),
        "layers.0.bias": (len(card.labels),),
        "words.weight": (h["vocabulary_size"], len(card.labels)),
    }
    layers = checked(card.name, load_file(LAYERS), shapes)
    return Weights(minilm(members[MINILM], "text_tower.bert.") | layers, members[TOKENIZER].decode("utf-8"))
