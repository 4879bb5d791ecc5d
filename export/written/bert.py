"""The graph of `SentenceClassifier`: a BERT on texts of any length, its states averaged, and layers on that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from export.written.graph import Graph
from zoo.contract.card import ModelCard

Arrays = Mapping[str, NDArray[Any]]

#: transformers' own for BERT, in LayerNorm and in `functional.normalize`.
_EPS = 1e-12
#: What is added to the similarity with a token that the mask hides.
_HIDDEN = -10_000.0


def write(card: ModelCard, arrays: Arrays) -> onnx.ModelProto:
    """The graph of a `SentenceClassifier`, or of a `SentenceAndWords`, with these arrays."""
    graph = Graph(card)
    mask = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    states = encoder(graph, arrays, "text_tower.bert.", mask)
    hidden = graph.add("LpNormalization", mean_of_tokens(graph, states, mask), axis=-1, p=2)
    layers = len(card.hparams["hidden"])
    for number in range(layers + 1):
        hidden = graph.gemm(hidden, arrays[f"layers.{2 * number}.weight"], arrays[f"layers.{2 * number}.bias"])
        hidden = graph.add("Relu", hidden) if number < layers else hidden
    if "words.weight" in arrays:
        hidden = graph.add("Add", hidden, _words(graph, arrays["words.weight"], mask))
    return graph.finish(hidden)


def _words(graph: Graph, weights: NDArray[Any], mask: str) -> str:
    """The weights `[V, L]` of a text's tokens, each once, added up over the root of their number less 2: `[B, L]`."""
    across, down = (graph.add("Unsqueeze", "input_ids", np.array([axis])) for axis in (1, 2))
    alike = graph.add("Cast", graph.add("Equal", down, across), to=TensorProto.FLOAT)
    before = graph.add("Trilu", alike, np.array(-1), upper=0)
    again = graph.add("ReduceMax", before, np.array([2]), keepdims=0)
    first = graph.add("Mul", mask, graph.add("Sub", np.array(1, dtype=np.float32), again))
    total = sum_of_tokens(graph, graph.add("Gather", weights, "input_ids"), first)
    two = graph.add("Sub", graph.add("ReduceSum", first, np.array([1]), keepdims=1), np.array(2, dtype=np.float32))
    return graph.add("Div", total, graph.add("Sqrt", graph.add("Max", two, np.array([1], dtype=np.float32))))


def mean_of_tokens(graph: Graph, states: str, mask: str) -> str:
    """The mean `[B, W]` of the states `[B, T, W]` of the tokens whose mask `[B, T]` is 1."""
    return graph.add("Div", sum_of_tokens(graph, states, mask), number_of_tokens(graph, mask))


def sum_of_tokens(graph: Graph, states: str, mask: str) -> str:
    """The sum `[B, W]` of the states `[B, T, W]` of the tokens whose mask `[B, T]` is 1."""
    row = graph.add("Unsqueeze", mask, np.array([1]))
    return graph.add("Squeeze", graph.add("MatMul", row, states), np.array([1]))


def number_of_tokens(graph: Graph, mask: str) -> str:
    """How many tokens there are, `[B, 1]`, at least 1."""
    return graph.add("Max", graph.add("ReduceSum", mask, np.array([1]), keepdims=1), np.array([1], dtype=np.float32))


def encoder(graph: Graph, arrays: Arrays, prefix: str, mask: str) -> str:
    """The last states `[B, T, W]` of transformers' `BertModel` with these arrays, for a float mask `[B, T]`."""
    table = arrays[f"{prefix}embeddings.position_embeddings.weight"]
    table = table + arrays[f"{prefix}embeddings.token_type_embeddings.weight"][0]  # one sentence
    length = graph.add("Shape", "input_ids", start=1, end=2)
    places = graph.add("Slice", table, np.array([0]), length, np.array([0]))
    words = graph.add("Gather", arrays[f"{prefix}embeddings.word_embeddings.weight"], "input_ids")
    states = _norm(graph, arrays, f"{prefix}embeddings.LayerNorm", graph.add("Add", words, places))
    one = np.array(1, dtype=np.float32)
    hidden = graph.add("Sub", one, graph.add("Unsqueeze", mask, np.array([1, 2])))
    hidden = graph.add("Mul", hidden, np.array(_HIDDEN, dtype=np.float32))
    for number in range(graph.card.hparams["text_layers"]):
        states = _layer(graph, arrays, f"{prefix}encoder.layer.{number}.", states, hidden)
    return states


def _layer(graph: Graph, arrays: Arrays, prefix: str, states: str, hidden: str) -> str:
    heads = graph.card.hparams["text_heads"]
    width = graph.card.hparams["text_width"] // heads
    by_head = np.array([0, 0, heads, width])

    def projected(what: str, order: tuple[int, ...]) -> str:
        of = _linear(graph, arrays, f"{prefix}attention.self.{what}", states)
        return graph.add("Transpose", graph.add("Reshape", of, by_head), perm=order)

    query, key = projected("query", (0, 2, 1, 3)), projected("key", (0, 2, 3, 1))
    alike = graph.add("Div", graph.add("MatMul", query, key), np.array(np.sqrt(width), dtype=np.float32))
    shares = graph.add("Softmax", graph.add("Add", alike, hidden), axis=-1)
    read = graph.add("MatMul", shares, projected("value", (0, 2, 1, 3)))
    together = graph.add("Reshape", graph.add("Transpose", read, perm=(0, 2, 1, 3)), np.array([0, 0, heads * width]))
    read = _linear(graph, arrays, f"{prefix}attention.output.dense", together)
    states = _norm(graph, arrays, f"{prefix}attention.output.LayerNorm", graph.add("Add", read, states))
    wide = graph.add("Gelu", _linear(graph, arrays, f"{prefix}intermediate.dense", states))
    thought = _linear(graph, arrays, f"{prefix}output.dense", wide)
    return _norm(graph, arrays, f"{prefix}output.LayerNorm", graph.add("Add", thought, states))


def _linear(graph: Graph, arrays: Arrays, prefix: str, of: str) -> str:
    """A linear layer on `[B, T, in]`."""
    return graph.add("Add", graph.add("MatMul", of, arrays[f"{prefix}.weight"].T), arrays[f"{prefix}.bias"])


def _norm(graph: Graph, arrays: Arrays, prefix: str, of: str) -> str:
    scale, bias = arrays[f"{prefix}.weight"], arrays[f"{prefix}.bias"]
    return graph.add("LayerNormalization", of, scale, bias, axis=-1, epsilon=_EPS)
