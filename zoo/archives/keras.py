"""Keras weights under torch's names and in torch's layouts. numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.archives.archive import Arrays, same_names
from zoo.errors import BadDataError

KerasWeights = Mapping[str, NDArray[np.float32]]

_BATCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def conv_table(prefix: str, conv: str, norm: str, *, depthwise: bool = False, gamma: bool = True) -> dict[str, str]:
    """Map the torch names of one convolution and its batch norm to the Keras names.

    A batch norm without `gamma` is one whose weight is 1.
    """
    kernel = "depthwise_kernel" if depthwise else "kernel"
    parts = {ours: theirs for ours, theirs in _BATCH_NORM.items() if gamma or theirs != "gamma"}
    table = {f"{prefix}.normalization.{ours}": f"{norm}/{theirs}" for ours, theirs in parts.items()}
    return {f"{prefix}.convolution.weight": f"{conv}/{kernel}"} | table


def dense_table(prefix: str, layer: str) -> dict[str, str]:
    """Map the torch names of a linear layer to the Keras names."""
    return {f"{prefix}.weight": f"{layer}/kernel", f"{prefix}.bias": f"{layer}/bias"}


def renamed(weights: KerasWeights, table: Mapping[str, str]) -> Arrays:
    """The weights that a table names, in torch's layout, with the state that torch alone keeps.

    Raises BadDataError naming every weight that is missing or left over.
    """
    same_names(weights, table.values())
    arrays: Arrays = {}
    for ours, theirs in table.items():
        arrays[ours] = _laid_out(weights[theirs], depthwise=theirs.endswith("/depthwise_kernel"))
        if ours.endswith(".running_var"):
            norm = ours.removesuffix("running_var")
            arrays[f"{norm}num_batches_tracked"] = np.zeros((), np.int64)  # torch counts batches, Keras does not
            if f"{norm}weight" not in table:
                arrays[f"{norm}weight"] = np.ones_like(arrays[ours])
    return arrays


def require(weights: KerasWeights, names: Iterable[str]) -> None:
    """Raise BadDataError naming every weight that is missing."""
    if missing := sorted(set(names) - set(weights)):
        raise BadDataError(f"weights missing: {', '.join(missing)}")


def _laid_out(array: NDArray[np.float32], *, depthwise: bool) -> NDArray[Any]:
    """Turn Keras' [h, w, in, out], depthwise [h, w, channels, 1] or dense [in, out] into torch's layout."""
    if array.ndim == 4:
        array = array.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
    elif array.ndim == 2:
        array = array.T
    return np.array(array, dtype=np.float32, order="C")
