"""What an exported bundle holds: graphs with symbolic sides and standard operators, hashes, nothing half-written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import export.make
import export.onnx.export
import export.onnx.graph
from export.bundle.manifest import OPSET, TEXT_ENCODER, contract
from export.bundle.store import read_bundle
from export.onnx.export import export_onnx
from export.runtime.engine import open_best
from tests.every_model import EVERY_MODEL
from zoo.contract.card import ModelCard
from zoo.contract.policy import read_policy
from zoo.errors import BadInputError, IncompatibleBundleError, UnknownModelError
from zoo.files.held import hashes
from zoo.files.writing import MANIFEST
from zoo.models.served import text_banks
from zoo.release.store import load_release

CLIP, NSFWJS = "test_safeclip.random", "test_nsfwjs.random"
MODELS = EVERY_MODEL
MODEL = "onnx-fp32.onnx"


def _graphs(folder: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    for path in sorted(folder.glob("*.onnx")):
        yield path.name, onnx.load(path)


def _sides(value: onnx.ValueInfoProto) -> tuple[str | int, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(side.dim_param if side.HasField("dim_param") else side.dim_value for side in dims)


@pytest.mark.parametrize("name", MODELS)
def test_the_graphs_are_standard_onnx_in_one_file(bundles: dict[str, Path], name: str) -> None:
    for graph, proto in _graphs(bundles[name]):
        onnx.checker.check_model(proto, full_check=True)
        assert {entry.domain for entry in proto.opset_import} <= {"", "ai.onnx"}, graph
        assert [entry.version for entry in proto.opset_import] == [OPSET]
        assert not proto.functions
        assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
        assert "Resize" not in {node.op_type for node in proto.graph.node}
        assert all(weight.data_location == onnx.TensorProto.DEFAULT for weight in proto.graph.initializer)
    assert not list(bundles[name].glob("*.data"))


@pytest.mark.parametrize("name", MODELS)
def test_batch_height_and_width_are_symbolic(bundles: dict[str, Path], name: str) -> None:
    proto = onnx.load(bundles[name] / MODEL)
    inputs = {value.name: _sides(value) for value in proto.graph.input}
    image = read_bundle(bundles[name]).card.image
    if image is not None:
        sides = ("height", "width") if image.recompress is None else (image.size, image.size)
        assert inputs["image"] == ("batch", *sides, 3)
    batches = {sides[0] for key, sides in inputs.items() if not key.startswith("text_bank")}
    assert batches == {"batch"}  # one symbol for them all
    for value in proto.graph.output:
        assert _sides(value)[0] == "batch"
    manifest = read_bundle(bundles[name]).manifest
    assert {spec.name: spec.shape for spec in manifest.inputs} == inputs
    assert [spec.name for spec in manifest.outputs] == [value.name for value in proto.graph.output]


def test_the_text_encoder_takes_any_number_of_phrases(bundles: dict[str, Path]) -> None:
    proto = onnx.load(bundles[CLIP] / TEXT_ENCODER)
    assert {_sides(value) for value in proto.graph.input} == {("batch", 24)}


@pytest.mark.parametrize("name", MODELS)
def test_the_manifest_vouches_for_every_file(bundles: dict[str, Path], name: str) -> None:
    manifest = read_bundle(bundles[name]).manifest
    found = hashes(bundles[name])
    del found[MANIFEST]
    assert manifest.files == found
    (engine,) = manifest.engines
    assert (manifest.source, engine.name, engine.opset, engine.verification) == (name, "onnx-fp32", OPSET, None)
    assert set(engine.matmuls) == {"fp32"}
    assert engine.versions["torch"] == torch.__version__


def test_the_default_text_bank_is_that_of_the_policy(bundles: dict[str, Path]) -> None:
    release = load_release(CLIP)
    proto = onnx.load(bundles[CLIP] / MODEL)
    (stored,) = [numpy_helper.to_array(w) for w in proto.graph.initializer if w.name == "text_bank"]
    (wanted,) = text_banks(release.model, release.judge)
    assert np.array_equal(stored, wanted.numpy())


@pytest.mark.parametrize("phrases", [1, 3, 100])
def test_a_bank_of_another_size_is_taken(bundles: dict[str, Path], phrases: int) -> None:
    engine = open_best(read_bundle(bundles[CLIP]), threads=1)
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    default = engine({"image": image})
    bank = np.random.default_rng(1).normal(size=(phrases, 16)).astype(np.float32)
    other = engine.with_banks({"text_bank": bank / np.linalg.norm(bank, axis=1, keepdims=True)})
    scores = other({"image": image})
    assert scores.shape == (3, phrases)
    assert scores.sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert np.array_equal(engine({"image": image}), default)


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(BadInputError, match="exists and is not empty; name another folder, or overwrite it"):
        export_onnx(NSFWJS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_broken_export_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    out = tmp_path / "bundle"
    old = {MODEL: b"old", MANIFEST: b'{"files": {"%s": ""}}' % MODEL.encode()} if overwrite else {}
    for name, content in old.items():
        out.mkdir(exist_ok=True)
        (out / name).write_bytes(content)

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(export.onnx.export, "save", full)
    with pytest.raises(OSError, match="disk full"):
        export_onnx(CLIP, out, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.*")} == old
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"] * overwrite


def test_a_frozen_side_is_refused(bundles: dict[str, Path]) -> None:
    proto = onnx.load(bundles[NSFWJS] / MODEL)
    card = ModelCard.read(bundles[NSFWJS] / "card.json")
    export.onnx.graph._check_symbolic(proto, contract(card)[0])
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(IncompatibleBundleError, match=r'graph input "image" is \(1, .*the exporter changed it'):
        export.onnx.graph._check_symbolic(proto, contract(card)[0])


def test_an_unknown_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r'did you mean "test_safeclip\.random"'):
        export_onnx("test_safeclip.randon", tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_untrained_architecture_is_exported_with_other_hyperparameters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_onnx(CLIP, tmp_path / "bundle", untrained={"embedding_dim": 8, "image_size": 24})
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.card.image is not None
    assert (bundle.card.image.size, bundle.card.hparams["embedding_dim"]) == (24, 8)
    assert open_best(bundle, threads=1).run({"image": np.zeros((1, 9, 9, 3), np.uint8)})[0].shape[0] == 1
    assert capsys.readouterr().out == ""  # the exporter's own progress does not get through


def test_exporting_leaves_the_model_and_its_attention_as_they_were() -> None:
    release = load_release(CLIP)
    configs: list[Any] = [child.config for child in release.model.modules() if hasattr(child, "config")]
    before = [config._attn_implementation for config in configs]
    plain = export.onnx.graph._ATTENTION
    with export.onnx.graph._plain_attention(release.model):
        assert {config._attn_implementation for config in configs} == {plain}
    assert [config._attn_implementation for config in configs] == before != [plain] * len(before)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", MODELS)
def test_the_policy_of_the_bundle_is_that_of_the_release(bundles: dict[str, Path], name: str) -> None:
    assert read_policy(bundles[name] / "policy.yaml") == load_release(name).policy
