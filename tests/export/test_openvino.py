"""OpenVINO engines: every model in float32, scales in 8 bits, policies, and the choice between engines."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from export import runtime
from export.bundle.rebuild import rebuild
from export.bundle.store import Bundle, read_bundle
from export.openvino import export_openvino
from export.runtime.engine import module_of, obstacle, open_best
from export.runtime.openvino import OpenVINOEngine
from export.triton import export_triton
from export.verify.compare import verify
from export.verify.report import Check
from tests.benchmarks.matrix.drawn import draw_inputs
from tests.every_model import OF_EACH_KIND
from tests.verdicts import same_verdict
from zoo.cli import run
from zoo.contract.policy import Policy
from zoo.errors import BadInputError, IncompatibleBundleError, MissingDependencyError, TamperedFileError
from zoo.registry import model_card

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed (extra openvino)")
CLIP, CONVOLUTIONS, FUSION, TEXTS = (
    "test_safeclip.random", "test_clip_resnet.random", "test_multimodal_nsfw.fusion", "test_prompt_bert.random",
)  # fmt: skip


@pytest.fixture(scope="module")
def both(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an ONNX and a verified OpenVINO engine."""
    folder = Path(shutil.copytree(bundles[CLIP], tmp_path_factory.mktemp("both") / "bundle"))
    export_openvino(CLIP, folder, check=Check())
    return folder


def _open(bundle: Bundle, name: str) -> OpenVINOEngine:
    spec = bundle.manifest.engine(name)
    found: OpenVINOEngine = module_of(spec).open_engine(bundle, spec, "cpu", 1)
    return found


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_every_model_passes_the_verification_in_float32(tmp_path: Path, name: str) -> None:
    (engine,) = export_openvino(name, tmp_path / "bundle", check=Check()).engines
    assert engine.verification is not None
    assert engine.verification.flips == engine.verification.flips_at_threshold == 0
    assert set(engine.matmuls) == {"fp32"}
    assert "openvino" in engine.versions


@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize("name", [CLIP, CONVOLUTIONS, FUSION, TEXTS])
def test_scales_in_8_bits(tmp_path: Path, name: str) -> None:
    drawn = draw_inputs(model_card(name), tmp_path / "drawn", 64, unseen=True)
    (engine,) = export_openvino(name, tmp_path / "bundle", precision="int8_qdq", calibrate=drawn).engines
    assert engine.matmuls["int8"] > engine.matmuls.get("fp32", 0)  # the similarity stays, or the last layers
    (report,) = verify(tmp_path / "bundle")
    logits = report.differences["logits"]
    assert logits.max is not None
    assert logits.cosine is not None
    assert 1e-5 < logits.max < 1
    assert logits.cosine > 0.9  # random weights of a few dimensions; trained ones are held against the budget
    assert f"zoo export openvino --model {name} --precision int8_qdq --calibrate {drawn}" in rebuild(
        read_bundle(tmp_path / "bundle").manifest, engine, tmp_path / "bundle"
    )


def test_batches_of_any_size_are_answered_alike(both: Path) -> None:
    bundle = read_bundle(both)
    engine = _open(bundle, "openvino-fp32")
    size = bundle.card.image.size if bundle.card.image else 0
    images = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), dtype=np.uint8)
    whole = engine.run({"image": images})[0]
    for batch in (1, 2, 7, 8, 33):  # 1 and 8 are those that it is compiled for
        parts = [engine.run({"image": images[at : at + batch]})[0] for at in range(0, 64, batch)]
        assert np.abs(np.concatenate(parts) - whole).max() < 1e-5


def test_threads_get_the_answers_to_their_own_images(both: Path) -> None:
    bundle = read_bundle(both)
    engine = _open(bundle, "openvino-fp32")
    size = bundle.card.image.size if bundle.card.image else 0
    images = np.random.default_rng(0).integers(0, 256, (16, 1, size, size, 3), dtype=np.uint8)
    wanted = [engine.run({"image": image})[0] for image in images]
    found: dict[int, list[float]] = {}

    def ask(number: int) -> None:
        found[number] = [float(np.abs(engine.run({"image": images[number]})[0] - wanted[number]).max()) for _ in "abc"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert max(max(differences) for differences in found.values()) < 1e-5


def test_another_policy_needs_no_rebuild(both: Path) -> None:
    bundle = read_bundle(both)
    assert isinstance(bundle.policy, Policy)
    first, *others = bundle.policy.categories
    longer = dataclasses.replace(first, descriptors=(*first.descriptors, "a picture of a red sign", "a dog"))
    policy = dataclasses.replace(bundle.policy, categories=(longer, *others), version="99")
    size = bundle.card.image.size if bundle.card.image else 0
    pictures = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    with (
        runtime.load(both, policy, engine="openvino-fp32", threads=1) as ours,
        runtime.load(both, policy, engine="onnx-fp32", threads=1) as theirs,
        runtime.load(both, engine="openvino-fp32", threads=1) as before,
    ):
        found = ours.verdicts(pictures)
        assert all(same_verdict(one, other, 1e-5) for one, other in zip(found, theirs.verdicts(pictures), strict=True))
        assert [one.scores for one in found] != [one.scores for one in before.verdicts(pictures)]


def test_it_runs_before_onnxruntime_in_the_same_precision(both: Path) -> None:
    running = open_best(read_bundle(both), threads=1)
    assert running.spec.name == "openvino-fp32"
    assert running.why.startswith("openvino-fp32 on cpu by openvino 20")


def test_without_the_package_another_engine_runs_and_says_why(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    bundle = read_bundle(both)
    running = open_best(bundle, threads=1)
    assert running.spec.name == "onnx-fp32"
    assert "not openvino-fp32 on cpu: openvino is not installed: pip install 'safety-zoo[openvino]'" in running.why
    with pytest.raises(MissingDependencyError, match="openvino is not installed"):
        open_best(bundle, engine="openvino-fp32", threads=1)


def test_it_runs_where_there_is_no_onnxruntime(
    both: Path, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with runtime.load(both, threads=1) as scorer:
        assert scorer.engine.spec.name == "openvino-fp32"
        assert scorer.verdict(np.zeros((64, 64, 3), dtype=np.uint8)).status == "ok"
    with pytest.raises(MissingDependencyError, match=r"onnxruntime is not installed: pip install .*\(or \[gpu\]\)\)$"):
        open_best(read_bundle(bundles[CLIP]), threads=1)
    drawn = draw_inputs(model_card(CLIP), tmp_path / "drawn", 4, unseen=True)
    with pytest.raises(MissingDependencyError, match="onnxruntime is not installed"):
        export_openvino(CLIP, tmp_path / "bundle", precision="int8_qdq", calibrate=drawn)


def test_it_is_made_for_cpus(both: Path) -> None:
    bundle = read_bundle(both)
    assert obstacle(bundle, bundle.manifest.engine("openvino-fp32"), "cuda") == "made for cpu"


def test_images_of_other_sizes_are_compared_only_where_an_engine_takes_them(both: Path) -> None:
    onnx, openvino = verify(both)
    assert "480x640 pixels" in onnx.at_shapes
    assert list(openvino.at_shapes) == ["batch 1", "batch 2", "batch 7", "batch 8"]


def test_changed_weights_are_refused_with_the_command_that_mends_it(both: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(both, tmp_path / "bundle"))
    weights = folder / "openvino-fp32.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(TamperedFileError, match=r"openvino-fp32\.bin: .*it was changed; .*zoo export openvino --model"):
        read_bundle(folder)


def test_triton_is_given_another_engine(both: Path, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleBundleError, match=r"for onnx and tensorrt only: zoo export onnx --model"):
        export_triton(both, tmp_path / "repository", engine="openvino-fp32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "which OpenVINO is slow at: use int8_qdq with --calibrate"),
        (["--precision", "fp16"], "in fp32 or int8_qdq, got fp16"),
        (
            ["--precision", "int8_qdq"],
            "int8_qdq takes its scales from what the model judges: give --calibrate, a folder of images",
        ),
        (["--calibrate", "photos"], "--calibrate is for int8_qdq, and fp32 finds no scales beforehand"),
    ],
)
def test_what_it_does_not_have_is_refused_and_nothing_is_left(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "openvino", "--model", CLIP, "--out", str(tmp_path / "bundle"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_engine_for_another_model_is_refused(both: Path) -> None:
    with pytest.raises((BadInputError, IncompatibleBundleError), match="other weights"):
        export_openvino(CONVOLUTIONS, both)
