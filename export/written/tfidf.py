"""The graph of `TermClassifier`: rows of terms, weighed and added up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.written.graph import Graph
from zoo.contract.card import ModelCard


def write(card: ModelCard, arrays: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The graph of a model with `weight` `[V, L * F]` and `bias` `[L * F]`, of L labels and F folds."""
    graph = Graph(card)
    rows = graph.add("Gather", arrays["weight"], "input_ids")
    weights = graph.add("Unsqueeze", "term_weights", np.array([1], dtype=np.int64))
    total = graph.add("Add", graph.add("Squeeze", graph.add("MatMul", weights, rows), np.array([1])), arrays["bias"])
    if card.hparams["folds"] == 1:
        return graph.finish(total)
    folds = graph.add("Reshape", total, np.array([-1, len(card.labels), card.hparams["folds"]], dtype=np.int64))
    for_it, against = (graph.add("ReduceLogSumExp", one, np.array([2]), keepdims=0) for one in _chances(graph, folds))
    return graph.finish(graph.add("Sub", for_it, against))


def _chances(graph: Graph, folds: str) -> tuple[str, str]:
    """The logarithms of each fold's probability, and of the probability against."""
    against = graph.add("Neg", graph.add("Softplus", folds))
    return graph.add("Add", against, folds), against
