"""Reads a TensorFlow.js layers model (`model.json` and its weight shards) into numpy arrays.

Format: https://www.tensorflow.org/js/guide/save_load and the Keras topology inside `modelTopology`. Only
numpy and json are needed: published weights can be converted on a machine without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.archives.archive import json_of
from zoo.errors import BadArgumentError, BadDataError

FLOAT_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4")}
QUANTISED_DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "uint16": np.dtype("<u2")}


def read_tfjs(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Read the weights, by name, of the TensorFlow.js layers model in `folder`; see `layers_model`.

    Raises `BadInputError` for a missing folder, `model.json` or shard too.
    """
    manifest_file = folder / "model.json"
    if not folder.is_dir():
        raise BadArgumentError(f"no folder {folder}; expected a folder with model.json and its weight shards")
    if not manifest_file.is_file():
        raise BadArgumentError(f"no model.json in {folder}; expected a TensorFlow.js layers model")
    model = json_of(manifest_file.read_bytes(), str(manifest_file))
    return layers_model(model, lambda name: _read_shard(folder, name), str(manifest_file))


def layers_model(model: Any, shard: Callable[[str], bytes], where: str) -> dict[str, NDArray[np.float32]]:
    """The weights, by name, of a layers model: what its `model.json` holds, and its shards by their names in it.

    They are float32 in the Keras layout: convolution [height, width, in, out], depthwise [height, width,
    channels, 1], dense [in, out]. Quantised weights are returned as stored value * scale + min. `where` names the model
    in errors.

    Raises BadDataError for a shard of the wrong size, and a dtype or structure that is not a layers model's.
    """
    try:
        topology = model["modelTopology"]
        if "config" not in topology.get("model_config", topology):
            raise KeyError("config")  # a graph model has none
        weights: dict[str, NDArray[np.float32]] = {}
        for group in model["weightsManifest"]:
            for name, array in _read_group(shard, group):
                if name in weights:
                    raise BadDataError(f"{where} lists the weight {name!r} twice; expected it once")
                weights[name] = array
    except (KeyError, TypeError, AttributeError) as error:
        message = f"{where} is not a TensorFlow.js layers model: {type(error).__name__} {error}"
        raise BadDataError(f"{message}; expected modelTopology and weightsManifest") from error
    return weights


def _read_group(shard: Callable[[str], bytes], group: dict[str, Any]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Cut a manifest group into its weights: its shards form one run of bytes, in which the weights follow in order."""
    blob = b"".join(shard(name) for name in group["paths"])
    shards = ", ".join(group["paths"])
    start = 0
    for spec in group["weights"]:
        stored = _stored_dtype(spec)
        count = _count(spec)
        end = start + count * stored.itemsize
        if end > len(blob):
            raise BadDataError(f"{shards} holds {len(blob)} bytes; {spec['name']!r} ends at {end}")
        values = np.frombuffer(blob, stored, count, start).reshape(spec["shape"])
        yield spec["name"], _dequantise(values, spec)
        start = end
    if start != len(blob):
        raise BadDataError(f"{shards} holds {len(blob)} bytes; the weights listed for it take {start}")


def _read_shard(folder: Path, name: str) -> bytes:
    path = folder / name
    # The manifest is a downloaded file: it must not be able to name a file elsewhere on the disk.
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadDataError(f"weight shard {name!r} lies outside {folder}; expected a file inside it")
    if not path.is_file():
        raise BadDataError(f"no weight shard {name!r} in {folder}; model.json lists it")
    return path.read_bytes()


def _count(spec: dict[str, Any]) -> int:
    shape = spec["shape"]
    if not isinstance(shape, list) or any(not isinstance(size, int) or size < 0 for size in shape):
        raise BadDataError(f"weight {spec['name']!r} has shape {shape!r}; expected a list of sizes")
    return int(np.prod(shape, dtype=np.int64))


def _stored_dtype(spec: dict[str, Any]) -> np.dtype[Any]:
    """The type of the bytes on disk: the quantised type of a quantised weight."""
    real = _known_dtype(spec, spec["dtype"], FLOAT_DTYPES)
    quantisation = spec.get("quantization")
    return real if quantisation is None else _known_dtype(spec, quantisation["dtype"], QUANTISED_DTYPES)


def _known_dtype(spec: dict[str, Any], name: str, known: dict[str, np.dtype[Any]]) -> np.dtype[Any]:
    if name not in known:
        raise BadDataError(f"weight {spec['name']!r} is stored as {name!r}; expected {', '.join(known)}")
    return known[name]


def _dequantise(values: NDArray[Any], spec: dict[str, Any]) -> NDArray[np.float32]:
    quantisation = spec.get("quantization")
    if quantisation is None:
        return values.astype(np.float32)  # a copy: the buffer's view is read-only
    # TensorFlow.js computes in double precision and rounds once, on storing.
    real: NDArray[np.float64] = values * np.float64(quantisation["scale"]) + np.float64(quantisation["min"])
    return real.astype(np.float32)
