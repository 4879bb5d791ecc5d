"""Running plans: what is refused where it cannot run is tested anywhere, the rest (marker gpu) needs a GPU."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from export.bundle.manifest import Engine
from export.runtime.cuda import LocalGpu, cudart, local_gpu
from export.runtime.tensorrt import (
    TensorRTEngine,
    check_gpu,
    check_machine,
    check_refit,
    check_shape,
    filled,
    read_report,
)
from export.tensorrt.package import PlanReport
from zoo.errors import BadCardError, BadInputError, IncompatibleBundleError, MissingDependencyError, TamperedFileError

pytestmark = pytest.mark.tensorrt
MEND = "zoo export tensorrt --model releases/x --out bundles/x --replace"


def _mend(**changes: object) -> str:
    """The command, and the options that it is to have in place of its own."""
    return " ".join([MEND, *(f"{name}={value}" for name, value in changes.items())])


REPORT = PlanReport(
    package="tensorrt_rtx",
    version="1.2.3.4",
    capabilities=("SM80", "SM86"),
    profiles={"image": ((1, 64, 64, 3), (8, 224, 224, 3), (64, 1024, 1024, 3))},
    products={"fp16": 90, "fp32": 3},
    layers={"gemm": 58},
    refittable=(),
    stripped=False,
    plan_bytes=1,
    activation_bytes=1,
    seconds=0.1,
)
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
needs_cuda = pytest.mark.skipif(find_spec("cuda") is None, reason="cuda-bindings is not installed (extra cuda)")


def _has_gpu() -> bool:
    try:
        local_gpu()
    except (IncompatibleBundleError, MissingDependencyError):
        return False
    return True


@needs_rtx
def test_a_plan_of_another_version_is_refused_with_the_command_that_mends_it() -> None:
    with pytest.raises(IncompatibleBundleError, match=rf"by tensorrt_rtx 1\.2\.3\.4, and .* is installed: {MEND}"):
        check_machine(REPORT, _mend)


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_a_plan_of_the_other_package_is_refused_with_its_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"tensorrt is not installed.*safety-zoo\[tensorrt\]"):
        check_machine(dataclasses.replace(REPORT, package="tensorrt"), _mend)


def test_a_batch_smaller_than_a_plan_takes_is_filled_up() -> None:
    feeds = {"image": np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2), "image_present": np.array([True, True, False])}
    full = filled(feeds, 5)
    assert {name: value.shape for name, value in full.items()} == {"image": (5, 2, 2), "image_present": (5,)}
    assert all(np.array_equal(full[name][:3], value) for name, value in feeds.items())
    assert np.array_equal(full["image"][3:], [feeds["image"][2]] * 2)
    assert filled(feeds, 3) is feeds


def test_a_plan_for_other_gpus_is_refused_with_the_command_that_mends_it() -> None:
    check_gpu(REPORT, LocalGpu("an RTX card", "SM86"), _mend)
    with pytest.raises(IncompatibleBundleError, match=f"card is SM89: {MEND} capability=.'SM89',.$"):
        check_gpu(REPORT, LocalGpu("an RTX card", "SM89"), _mend)


@needs_rtx
@needs_cuda
@pytest.mark.skipif(_has_gpu(), reason="there is a GPU")
def test_without_a_gpu_cuda_says_so() -> None:
    from export.tensorrt.package import load_package

    here = dataclasses.replace(REPORT, version=load_package("tensorrt_rtx").version)
    with pytest.raises(IncompatibleBundleError, match=r"cudaGetDeviceCount.* answered cudaError\w+; has this"):
        check_machine(here, _mend)


@pytest.mark.skipif(find_spec("cuda") is not None, reason="cuda-bindings is installed")
def test_without_cuda_bindings_the_extra_is_named() -> None:
    with pytest.raises(MissingDependencyError, match=r"safety-zoo\[cuda\]"):
        cudart()


def test_a_plan_without_its_report_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "x.plan"
    with pytest.raises(TamperedFileError, match=r"x\.plan: missing"):
        read_report(plan)
    plan.write_bytes(b"plan")
    with pytest.raises(TamperedFileError, match=r"x\.json: missing"):
        read_report(plan)
    plan.with_suffix(".json").write_text(json.dumps({**REPORT.to_dict(), "versoin": 1}), encoding="utf-8")
    with pytest.raises(BadCardError, match=r'versoin.*did you mean "version"'):
        read_report(plan)
    plan.with_suffix(".json").write_text(json.dumps(REPORT.to_dict()), encoding="utf-8")
    assert read_report(plan) == REPORT


@pytest.mark.parametrize(
    ("shape", "wider"),
    [
        ((65, 224, 224, 3), r"batch=\(1, 8, 65\) image=\(64, 224, 1024\)"),
        ((1, 32, 224, 3), r"batch=\(1, 8, 64\) image=\(32, 224, 1024\)"),
        ((1, 224, 2000, 3), r"batch=\(1, 8, 64\) image=\(64, 224, 2000\)"),
        ((1, 224, 224), ""),
        ((1, 224, 224, 4), ""),
    ],
)
def test_a_shape_outside_the_profile_is_refused_with_the_profile(shape: tuple[int, ...], wider: str) -> None:
    for least_or_largest in (REPORT.profiles["image"][0], REPORT.profiles["image"][2]):
        check_shape("image", least_or_largest, REPORT.profiles, _mend)
    with pytest.raises(BadInputError, match=rf"takes \[1, 64, 64, 3\] to \[64, 1024, 1024, 3\]: {MEND} ?{wider}$"):
        check_shape("image", shape, REPORT.profiles, _mend)


def test_an_input_that_the_plan_does_not_have_is_refused() -> None:
    with pytest.raises(BadInputError, match=r'no input "text_bank", it reads \[\'image\'\]'):
        check_shape("text_bank", (40, 512), REPORT.profiles, _mend)


def test_a_refitted_bank_keeps_its_shape() -> None:
    check_refit("text_bank", (40, 512), (40, 512), _mend)
    with pytest.raises(IncompatibleBundleError, match=rf"of \[40, 512\].*\[12, 512\].*{MEND} text_bank=input$"):
        check_refit("text_bank", (12, 512), (40, 512), _mend)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of the tiny SafeCLIP, with what lies beside it."""
    from export.bundle.manifest import BATCHES
    from export.onnx.export import write_onnx
    from export.tensorrt.build import PlanOptions
    from export.tensorrt.export import build_graph, write_plan
    from zoo.release.store import load_release

    folder = tmp_path_factory.mktemp("plan")
    release = load_release("test_safeclip.random")
    graph = folder / "graph.onnx"
    write_onnx(release, "fp32", graph)
    built = build_graph(graph, release.card, BATCHES["latency"], PlanOptions())
    write_plan(built, graph, release.card, folder / "engine")
    return folder / "engine.plan"


def _load(plan: Path) -> TensorRTEngine:
    spec = Engine("e", "tensorrt", "fp32", (plan.name,), "latency", (1, 8, 64), ("cuda",), {"fp32": 1}, "policy")
    return TensorRTEngine(plan, spec, _mend)


@pytest.mark.gpu
@pytest.mark.skipif(not _has_gpu(), reason="no GPU here")
def test_a_plan_answers_what_onnxruntime_answers(plan: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(plan.with_name("graph.onnx"), providers=["CPUExecutionProvider"])
    loaded = _load(plan)
    random = np.random.default_rng(0)
    for rows, height, width in ((1, 64, 64), (8, 100, 70), (33, 64, 64), (2, 300, 500), (1, 64, 64)):
        image = random.integers(0, 256, (rows, height, width, 3), dtype=np.uint8)
        expected = session.run(["logits", "scores"], {"image": image})
        for ours, theirs in zip(loaded.run({"image": image}), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    loaded.close()


@pytest.mark.gpu
@pytest.mark.skipif(not _has_gpu(), reason="no GPU here")
def test_banks_change_between_calls_of_many_threads(plan: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(plan.with_name("graph.onnx"), providers=["CPUExecutionProvider"])
    loaded = _load(plan)
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    width = loaded.banks["text_bank"].shape[1]
    banks = [random.normal(size=(3 + number, width)).astype(np.float32) for number in range(10)]

    def check(number: int) -> None:
        bank = {"text_bank": banks[number % 10]}
        expected = session.run(["scores"], {"image": image, **bank})[0]
        np.testing.assert_allclose(loaded.with_banks(bank).run({"image": image})[1], expected, atol=1e-4)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(100)))
    own = session.run(["scores"], {"image": image})[0]
    np.testing.assert_allclose(loaded.run({"image": image})[1], own, atol=1e-4)
