"""TensorRT plans, really built: TensorRT for RTX needs no GPU for that. To run them is test_tensorrt_runtime's."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.tensorrt.build import CAPABILITIES, Built, PlanOptions, build, count_products, read_layers
from export.tensorrt.export import profiles_of
from export.tensorrt.package import LogLine, PlanReport, load_package
from zoo.errors import BadInputError, IncompatibleBundleError, MissingDependencyError

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed (extra tensorrt-rtx)"),
]
RTX = "tensorrt_rtx"
PLAN = PlanOptions(package=RTX)


def _model(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, NDArray[Any]]) -> Path:
    """`x [batch, 32]` and the bank `[phrases, 32]` (default 5 rows, where there is one) to `y`."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])]
    if "bank" in weights:
        inputs.append(helper.make_tensor_value_info("bank", TensorProto.FLOAT, ["phrases", 32]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "columns"])
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "test", inputs, [output], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def similarity(tmp_path: Path) -> Path:
    """A linear layer and the similarity with a bank that has a default, as the models of the zoo end."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="project"),
        helper.make_node("Transpose", ["bank"], ["columns"], perm=[1, 0], name="turn"),
        helper.make_node("MatMul", ["h", "columns"], ["y"], name="compare"),
    ]
    weights = {"w": random.normal(size=(32, 32)), "bank": random.normal(size=(5, 32))}
    return _model(tmp_path / "similarity.onnx", nodes, {k: v.astype(np.float32) for k, v in weights.items()})


def _profiles(graph: Path) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    return profiles_of(graph, batch=(1, 8, 64), image=(64, 224, 1024))


def _built(graph: Path, **options: Any) -> Built:
    """The plan of a graph with one bank."""
    return build(graph, _profiles(graph), dataclasses.replace(PLAN, **options), ["bank"])


def test_profiles_come_from_the_graph_and_its_defaults(similarity: Path) -> None:
    assert _profiles(similarity) == {"x": ((1, 32), (8, 32), (64, 32)), "bank": ((1, 32), (5, 32), (256, 32))}
    chosen = profiles_of(similarity, batch=(2, 2, 2), image=(1, 1, 1))
    assert chosen == {"x": ((2, 32),) * 3, "bank": ((1, 32), (5, 32), (256, 32))}
    with pytest.raises(BadInputError, match="batch: least, usual and largest must rise from 1, got 4:2:8"):
        profiles_of(similarity, batch=(4, 2, 8), image=(1, 1, 1))


def test_one_plan_serves_all_architectures_and_says_what_is_in_it(similarity: Path) -> None:
    built = build(similarity, _profiles(similarity), PLAN)
    assert built.plan[:4] == b"vtrt"
    report = built.report
    assert report.capabilities == CAPABILITIES == ("SM80", "SM86", "SM89")
    assert (report.package, report.version) == (RTX, load_package(RTX).version)
    assert report.products == {"fp32": 2}
    assert report.layers
    assert report.plan_bytes == len(built.plan)
    assert report.profiles["bank"][2] == (256, 32)  # an input, not the constant that the parser makes of it
    assert "Layers:" in built.log
    assert "project" in built.log
    assert PlanReport.from_dict(report.to_dict()) == report


def test_a_bank_can_be_built_in(similarity: Path) -> None:
    report = _built(similarity, text_bank="constant").report
    assert report.products == {"fp32": 2}
    assert report.refittable == ()
    assert list(report.profiles) == ["x"]


def test_a_plan_for_one_architecture_is_not_that_for_another(similarity: Path) -> None:
    one, same, other = (_built(similarity, capability=[name]) for name in ("8.6", "sm86", "SM89"))
    assert one.report.capabilities == same.report.capabilities == ("SM86",)
    assert other.report.capabilities == ("SM89",)
    assert one.plan != other.plan


def test_an_architecture_that_the_package_does_not_know_is_refused(similarity: Path) -> None:
    with pytest.raises(BadInputError, match=r"builds for no SM90.*did you mean"):
        _built(similarity, capability=["SM90"])


def _product(path: Path, kind: type) -> Path:
    nodes = [
        helper.make_node("Cast", ["x"], ["small"], to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)), name="narrow"),
        helper.make_node("MatMul", ["small", "w"], ["h"], name="product"),
        helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT, name="widen"),
    ]
    return _model(path, nodes, {"w": np.eye(32, dtype=kind)})


def test_precision_is_read_from_the_finished_engine(tmp_path: Path) -> None:
    for kind, name in ((np.float16, "fp16"), (np.float32, "fp32")):
        graph = _product(tmp_path / f"{name}.onnx", kind)
        assert build(graph, _profiles(graph), PLAN).report.products == {name: 1}


def test_products_between_quantise_nodes_count_as_int8(tmp_path: Path) -> None:
    scale, zero = np.array(0.05, dtype=np.float32), np.array(0, dtype=np.int8)
    weight = np.random.default_rng(0).integers(-100, 100, (32, 32)).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantise"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="dequantise"),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["w"], name="weights"),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="product"),
    ]
    graph = _model(tmp_path / "q.onnx", nodes, {"scale": scale, "zero": zero, "weight": weight})
    assert build(graph, _profiles(graph), PLAN).report.products == {"int8": 1}


def test_an_engine_that_computes_in_another_precision_than_the_network_asks_is_seen(tmp_path: Path) -> None:
    """The engine's own layers decide: here those of a float32 engine stand beside a network in half precision."""
    trt = load_package(RTX)
    half, full = (_product(tmp_path / f"{kind.__name__}.onnx", kind) for kind in (np.float16, np.float32))
    log = [LogLine("VERBOSE", build(full, _profiles(full), PLAN).log)]
    data = half.read_bytes()
    with trt.listen():
        network = trt.module.Builder(trt.logger).create_network(0)
        parser = trt.module.OnnxParser(network, trt.logger)
        assert parser.parse(data)
        assert count_products(network, read_layers(log)) == {"fp32": 1}


def test_a_log_without_layers_is_an_error() -> None:
    with pytest.raises(IncompatibleBundleError, match="lists no layers"):
        read_layers([LogLine("INFO", "Engine generation completed")])


def test_an_unsupported_operator_is_named_with_its_node(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], name="squeeze_it"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="back"),
    ]
    graph = _model(tmp_path / "dynamic.onnx", nodes, {})
    message = r"node 0 'squeeze_it' \(DynamicQuantizeLinear\): UNSUPPORTED_NODE.*the ONNX checker finds nothing"
    with pytest.raises(IncompatibleBundleError, match=message):
        build(graph, _profiles(graph), PLAN)


def test_a_broken_graph_is_refused_in_the_checkers_words(tmp_path: Path) -> None:
    graph = _model(tmp_path / "broken.onnx", [helper.make_node("MatMul", ["x", "nowhere"], ["y"], name="lost")], {})
    with pytest.raises(IncompatibleBundleError, match=r"(?s)'lost'.*the ONNX checker says: .*nowhere"):
        build(graph, _profiles(graph), PLAN)


def test_what_the_graph_does_not_have_is_refused(similarity: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match='no weights named "bnak"; did you mean "bank"'):
        build(similarity, _profiles(similarity), dataclasses.replace(PLAN, text_bank="refit"), ["bnak"])
    with pytest.raises(BadInputError, match='no shapes for input "bank"'):
        build(similarity, {"x": ((1, 32),) * 3}, PLAN)
    with pytest.raises(BadInputError, match="no such file"):
        build(tmp_path / "none.onnx", {}, PLAN)
    with pytest.raises(BadInputError, match="keeps no timing cache"):
        _built(similarity, timing_cache=tmp_path / "cache")


def test_refitting_and_stripping_need_a_gpu_at_build(similarity: Path) -> None:
    """As measured with TensorRT for RTX 1.7: without a driver it compiles no constants that may change."""
    from export.runtime.cuda import local_gpu

    try:
        local_gpu()
    except (IncompatibleBundleError, MissingDependencyError):
        for wanted in ({"text_bank": "refit"}, {"strip_weights": True}):
            with pytest.raises(IncompatibleBundleError, match="needs a GPU to build plans"):
                _built(similarity, **wanted)
        return
    report = _built(similarity, text_bank="refit").report
    assert report.refittable == ("bank",)
    assert _built(similarity, strip_weights=True).report.stripped


def test_a_missing_package_names_both_extras() -> None:
    with pytest.raises(BadInputError, match='no TensorRT is named "tensorrt_rxt"; did you mean "tensorrt_rtx"'):
        load_package("tensorrt_rxt")
    if find_spec("tensorrt") is None:
        with pytest.raises(MissingDependencyError, match=r"\[tensorrt\].*\[tensorrt-rtx\]"):
            load_package("tensorrt")
        assert load_package() is load_package(RTX)
