"""Every model of the tests, and a ViT-B/32, to real TensorRT engines. TensorRT for RTX builds them without a GPU."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from export.bundle.manifest import COUNTED_AS, Engine, Precision
from export.bundle.store import read_bundle
from export.onnx.export import export_onnx
from export.runtime.engine import obstacle, open_best
from export.runtime.tensorrt import read_report
from export.tensorrt.build import CAPABILITIES, PlanOptions, build
from export.tensorrt.export import export_tensorrt, profiles_of
from tests.every_model import EVERY_MODEL
from zoo.errors import BadInputError, IncompatibleBundleError, TamperedFileError

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed (extra tensorrt-rtx)"),
]
RTX = "tensorrt_rtx"
CLIP, CONVOLUTIONS, TEXTS = "test_safeclip.random", "test_clip_resnet.random", "test_multimodal_nsfw.fusion"


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_every_model_builds_in_float32(bundles: dict[str, Path], name: str) -> None:
    bundle = read_bundle(bundles[name])
    engine = bundle.manifest.engine("onnx-fp32")
    graph = bundle.folder / engine.files[0]
    built = build(graph, profiles_of(graph, batch=(1, 8, 64), image=(64, 224, 1024)), PlanOptions(package=RTX))
    assert built.report.capabilities == CAPABILITIES
    assert built.report.products == engine.matmuls  # none lost, none in another precision
    assert set(built.report.profiles) == {spec.name for spec in bundle.manifest.inputs}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        (CLIP, "bf16"),
        pytest.param(CONVOLUTIONS, "fp16", marks=pytest.mark.slow),
        pytest.param(TEXTS, "fp16", marks=pytest.mark.slow),
    ],
)
def test_half_precision_is_in_the_finished_engine(tmp_path: Path, name: str, precision: Precision) -> None:
    manifest = export_tensorrt(name, tmp_path / "bundle", precision=precision, plan=PlanOptions(package=RTX))
    (engine,) = manifest.engines
    assert engine.share(COUNTED_AS[precision]) > 0.5
    assert 0 < engine.matmuls["fp32"] < engine.matmuls[COUNTED_AS[precision]]  # the resize and the similarity stay
    bundle = read_bundle(tmp_path / "bundle")
    report = read_report(bundle.folder / engine.files[0])
    assert report.products == engine.matmuls
    assert engine.versions[RTX] == report.version


def test_a_plan_joins_the_bundle_and_is_passed_over_where_it_cannot_run(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export_onnx(CLIP, out)
    export_tensorrt(CLIP, out, precision="fp32", batch=(1, 2, 4), plan=PlanOptions(package=RTX, text_bank="constant"))
    bundle = read_bundle(out)
    engine: Engine = bundle.manifest.engine("tensorrt-fp32")
    assert (engine.batch, engine.runs_on) == ((1, 2, 4), ("cuda",))
    assert [name.rpartition(".")[2] for name in engine.files] == ["plan", "json", "log"]
    report = read_report(bundle.folder / engine.files[0])
    side = bundle.card.image.size if bundle.card.image else 0
    assert report.profiles == {"image": ((1, side // 2, side // 2, 3), (2, side, side, 3), (4, 1024, 1024, 3))}
    reason = obstacle(bundle, engine, "cuda")
    if reason is not None:  # no GPU here
        assert open_best(bundle, threads=1).spec.name == "onnx-fp32"
        with pytest.raises(IncompatibleBundleError, match="tensorrt-fp32"):
            open_best(bundle, engine="tensorrt-fp32", threads=1)
    changed = (bundle.folder / engine.files[0]).read_bytes()[:-1] + b"!"
    (bundle.folder / engine.files[0]).write_bytes(changed)
    with pytest.raises(TamperedFileError, match=r"it was changed; .*zoo export"):
        read_bundle(out)


def test_dynamic_int8_is_refused_before_anything_is_exported(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="use int8_qdq with `calibrate`"):
        export_tensorrt(CLIP, tmp_path / "bundle", precision="int8")
    assert not (tmp_path / "bundle").exists()


def test_a_build_that_fails_leaves_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="builds for no SM90"):
        export_tensorrt(CLIP, tmp_path / "bundle", plan=PlanOptions(capability=["SM90"], package=RTX))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="takes minutes on one core")
def test_vit_b32_builds_for_ampere_and_ada_in_half_precision(tmp_path: Path) -> None:
    name = "safeclip_vit_b32.zeroshot"
    plan = PlanOptions(image=(224, 224, 224), package=RTX)
    manifest = export_tensorrt(name, tmp_path / "bundle", precision="fp16", batch=(1, 8, 64), plan=plan, untrained={})
    (engine,) = manifest.engines
    assert engine.matmuls == {"fp16": 90, "fp32": 3}  # float32: the resize, twice, and the similarity
    report = read_report(tmp_path / "bundle" / engine.files[0])
    assert report.capabilities == CAPABILITIES
    assert 160e6 < report.plan_bytes < 180e6  # 330 MB in float32
