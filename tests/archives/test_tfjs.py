"""The TensorFlow.js reader on a made-up model small enough to check by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.archives.tfjs import read_tfjs
from zoo.errors import BadInputError

KERNEL = np.arange(6, dtype="<f4").reshape(2, 3) - 2.5
CODES = np.array([0, 1, 255], dtype=np.uint8)
QUANTISATION = {"dtype": "uint8", "scale": 0.5, "min": -1.0}


def _manifest() -> dict[str, Any]:
    dense = {"class_name": "Dense", "config": {"name": "dense", "units": 3, "activation": "relu"}}
    weights = [
        {"name": "dense/kernel", "shape": [2, 3], "dtype": "float32"},
        {"name": "dense/bias", "shape": [3], "dtype": "float32", "quantization": dict(QUANTISATION)},
    ]
    return {
        "modelTopology": {"model_config": {"class_name": "Model", "config": {"layers": [dense]}}},
        "weightsManifest": [{"paths": ["a.bin", "b.bin"], "weights": weights}],
    }


def _write(folder: Path, manifest: dict[str, Any]) -> Path:
    """Write the model with its 27 weight bytes cut in the middle of a number, as real shards may be."""
    blob = KERNEL.tobytes() + CODES.tobytes()
    (folder / "model.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "a.bin").write_bytes(blob[:10])
    (folder / "b.bin").write_bytes(blob[10:])
    return folder


def test_float_and_quantised_weights_are_read_across_shards(tmp_path: Path) -> None:
    weights = read_tfjs(_write(tmp_path, _manifest()))
    assert list(weights) == ["dense/kernel", "dense/bias"]
    np.testing.assert_array_equal(weights["dense/kernel"], KERNEL)
    np.testing.assert_array_equal(weights["dense/bias"], np.array([-1.0, -0.5, 126.5], dtype=np.float32))
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}


def test_sequential_models_are_read_and_graph_models_refused(tmp_path: Path) -> None:
    manifest = _manifest()
    topology = manifest["modelTopology"]["model_config"]
    topology["config"] = topology["config"]["layers"]
    assert list(read_tfjs(_write(tmp_path, manifest))) == ["dense/kernel", "dense/bias"]
    manifest["modelTopology"] = {"node": []}
    with pytest.raises(BadInputError, match=r"is not a TensorFlow\.js layers model"):
        read_tfjs(_write(tmp_path, manifest))


def test_missing_folder_and_missing_model_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no folder .*absent"):
        read_tfjs(tmp_path / "absent")
    with pytest.raises(BadInputError, match=r"no model\.json"):
        read_tfjs(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    (_write(tmp_path, _manifest()) / "b.bin").unlink()
    with pytest.raises(BadInputError, match=r"no weight shard 'b\.bin'"):
        read_tfjs(tmp_path)


@pytest.mark.parametrize(("extra", "message"), [(-1, "holds 26 bytes.*'dense/bias'"), (1, "holds 28.*take 27")])
def test_shard_of_the_wrong_size_is_refused(tmp_path: Path, extra: int, message: str) -> None:
    shard = _write(tmp_path, _manifest()) / "b.bin"
    data = shard.read_bytes()
    shard.write_bytes(data + b"\0" if extra > 0 else data[:extra])
    with pytest.raises(BadInputError, match=message):
        read_tfjs(tmp_path)


def test_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 27)
    manifest = _manifest()
    manifest["weightsManifest"][0]["paths"] = ["../secret.bin"]
    with pytest.raises(BadInputError, match="lies outside"):
        read_tfjs(_write(folder, manifest))


@pytest.mark.parametrize("place", ["stored", "real"])
def test_unknown_dtype_is_named(tmp_path: Path, place: str) -> None:
    manifest = _manifest()
    bias = manifest["weightsManifest"][0]["weights"][1]
    (bias["quantization"] if place == "stored" else bias)["dtype"] = "bfloat7"
    with pytest.raises(BadInputError, match=r"'dense/bias'.*'bfloat7'; expected"):
        read_tfjs(_write(tmp_path, manifest))


def test_a_weight_listed_twice_is_refused(tmp_path: Path) -> None:
    manifest = _manifest()
    manifest["weightsManifest"][0]["weights"][1]["name"] = "dense/kernel"
    with pytest.raises(BadInputError, match="'dense/kernel' twice"):
        read_tfjs(_write(tmp_path, manifest))


def test_negative_shape_is_refused(tmp_path: Path) -> None:
    manifest = _manifest()
    manifest["weightsManifest"][0]["weights"][1]["shape"] = [-3]
    with pytest.raises(BadInputError, match=r"shape \[-3\]"):
        read_tfjs(_write(tmp_path, manifest))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"modelTopology": null}'])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match="is not"):
        read_tfjs(tmp_path)
