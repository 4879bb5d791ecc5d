"""What is written for Triton: its own protobuf message reads it, and the model does what the configuration says."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

import zoo
from export import runtime
from export.bundle.manifest import Engine, Shapes
from export.bundle.store import read_bundle
from export.tensorrt.package import PlanReport
from export.triton import export_triton, pbtxt
from export.verify.inputs import encoded
from tests.every_model import EVERY_MODEL
from zoo.assets import find_asset
from zoo.cli import run
from zoo.contract.card import ModelCard
from zoo.contract.policy import Policy, read_policy
from zoo.errors import BadInputError, IncompatibleBundleError
from zoo.files.held import sha256
from zoo.inputs.text import TextCodec
from zoo.judging.judge import bind
from zoo.judging.scorer import Feeds, Scorer

model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")  # Triton's own message
from google.protobuf import text_format  # noqa: E402  (comes with tritonclient)

CLIP, FUSION, PANEL = "test_safeclip.random", "test_multimodal_nsfw.fusion", "test_clip.panel"
DTYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(int64)": "TYPE_INT64", "tensor(bool)": "TYPE_BOOL"}
DTYPES["tensor(float)"] = "TYPE_FP32"
NUMPY = {"TYPE_UINT8": np.uint8, "TYPE_INT64": np.int64, "TYPE_BOOL": np.bool_, "TYPE_FP32": np.float32}
OTHER = "configs/policy/quickstart.yaml"


def _read(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), model_config.ModelConfig())


def _type(entry: Any) -> str:
    return str(model_config.DataType.Name(entry.data_type))


def _dims(entry: Any) -> list[int]:
    """The dimensions that Triton compares with the model's, batch left out."""
    return list(entry.reshape.shape) if entry.HasField("reshape") else list(entry.dims)


def _fits(config: list[int], graph: list[Any]) -> bool:
    """Triton's rule: as many dimensions, and each is the model's or varies there."""
    return len(config) == len(graph) and all(isinstance(g, str) or g == c for c, g in zip(config, graph, strict=True))


@pytest.mark.parametrize("name", EVERY_MODEL[::-1])  # another process of the suite traces them from the beginning
def test_triton_reads_the_configuration_and_it_is_that_of_the_model(
    bundles: dict[str, Path], tmp_path: Path, name: str
) -> None:
    model = export_triton(bundles[name], tmp_path / "repository", instances=2, delay_us=700, queue=99)
    config, card = _read(model), ModelCard.read(model / "1" / "card.json")
    assert model == tmp_path / "repository" / name
    assert (config.name, config.backend, config.default_model_filename) == (name, "onnxruntime", "model.onnx")
    assert config.max_batch_size == read_bundle(bundles[name]).manifest.engines[0].batch[2] > 1
    session = onnxruntime.InferenceSession(model / "1" / config.default_model_filename)
    assert {entry.name for entry in config.input} == {entry.name for entry in session.get_inputs()}
    assert tuple(entry.name for entry in config.input) == card.input_names  # so the text banks are not among them
    for kind, found in (("input", session.get_inputs()), ("output", session.get_outputs())):
        by_name = {entry.name: entry for entry in found}
        for entry in getattr(config, kind):
            graph = by_name[entry.name]
            assert _type(entry) == DTYPES[graph.type]
            assert isinstance(graph.shape[0], str)
            assert _fits(_dims(entry), graph.shape[1:]), (entry, graph.shape)
    labels = (model / config.output[1].label_filename).read_text(encoding="utf-8").splitlines()
    assert [list(output.dims) for output in config.output] == [[len(labels)]] * 2
    batching = config.dynamic_batching
    assert batching.max_queue_delay_microseconds == 700
    assert batching.default_queue_policy.max_queue_size == 99
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, model_config.ModelInstanceGroup.KIND_CPU)


@pytest.mark.parametrize("name", EVERY_MODEL)
@pytest.mark.parametrize("max_batch", [0, 1, 6])
def test_the_warm_up_requests_run(bundles: dict[str, Path], tmp_path: Path, name: str, max_batch: int) -> None:
    config = _read(model := export_triton(bundles[name], tmp_path, max_batch=max_batch))
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx")
    assert [sample.batch_size for sample in config.model_warmup] == sorted({1, max(1, max_batch)})
    for sample in config.model_warmup:
        shapes = {entry.name: _dims(entry) for entry in config.input}
        feeds: Feeds = {}
        for key, value in sample.inputs.items():
            assert value.zero_data
            assert len(value.dims) == len(next(entry.dims for entry in config.input if entry.name == key))
            batch = [sample.batch_size] if max_batch else []
            shape = [*batch, *(value.dims if shapes[key] else [])]
            feeds[key] = np.zeros(shape, dtype=NUMPY[_type(value)])
        scores = session.run(["scores"], feeds)[0]
        assert scores.shape == (sample.batch_size, config.output[1].dims[-1])


def _client(model: Path, policy: bool = True) -> Scorer:
    """A scorer from nothing but what lies in the repository, as a client would make one."""
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx")
    folder = model / "1"
    card = ModelCard.read(folder / "card.json")
    codec = None
    if card.reads_text and card.text is not None:
        codec = TextCodec((folder / "tokenizer.json").read_text(encoding="utf-8"), card.text)

    def engine(feeds: Feeds) -> NDArray[np.floating]:
        scores: NDArray[np.floating] = session.run(["scores"], feeds)[0]
        return scores

    return Scorer(bind(card, read_policy(folder / "policy.yaml")), codec, engine)


@pytest.mark.parametrize("name", [CLIP, FUSION, PANEL])
def test_a_client_reaches_the_verdicts_of_the_runtime(
    bundles: dict[str, Path], golden: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    images = list(golden.values())
    with runtime.load(bundles[name], threads=1) as scorer, _client(export_triton(bundles[name], tmp_path)) as client:
        texts: list[str | None] | None = ["a red sign"] * len(images) if scorer.card.reads_text else None
        assert client.verdicts(images, texts) == scorer.verdicts(images, texts)


def test_views_frames_and_grounds_end_in_the_same_verdict_everywhere(
    bundles: dict[str, Path], golden: dict[str, bytes], tmp_path: Path
) -> None:
    policy = dataclasses.replace(Policy.read(find_asset(OTHER)), views="tiles", frames=3)
    noise = [Image.effect_noise((96, 40), 40 + 20 * number).convert("RGB") for number in range(5)]
    clear = noise[0].copy()
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    pictures = [encoded(noise[0], "PNG"), encoded(clear, "PNG"), golden["animated.gif"]]
    pictures += [encoded(noise[0], kind, save_all=True, append_images=noise[1:]) for kind in ("GIF", "WEBP", "TIFF")]
    with zoo.load_scorer(CLIP, policy) as scorer:
        eager = scorer.verdicts(pictures)
    with (
        runtime.load(bundles[CLIP], policy, threads=1) as scorer,
        runtime.Service(scorer) as service,
        _client(export_triton(bundles[CLIP], tmp_path, policy=policy)) as client,
    ):
        served = [service.submit(picture).result() for picture in pictures]
        for found in (scorer.verdicts(pictures), served, client.verdicts(pictures)):
            for one, other in zip(found, eager, strict=True):
                assert one.scores == pytest.approx(other.scores, abs=1e-5)
                assert (one.decision, one.place, one.unseen) == (other.decision, other.place, other.unseen)
    assert [bool(verdict.unseen) for verdict in eager] == [False, False, False, True, True, True]
    assert all(verdict.place for verdict in eager)


def test_another_policy_is_written_into_the_model(
    bundles: dict[str, Path], golden: dict[str, bytes], tmp_path: Path
) -> None:
    policy = Policy.read(find_asset(OTHER))
    model = export_triton(bundles[CLIP], tmp_path, policy=policy, name="signs")
    assert (model / "labels.txt").read_text(encoding="utf-8").splitlines() == list(policy.phrases)
    assert (model / "1" / "model.onnx").read_bytes() != (bundles[CLIP] / _engine(bundles).files[0]).read_bytes()
    images = list(golden.values())
    with runtime.load(bundles[CLIP], policy, threads=1) as scorer, _client(model) as client:
        assert client.judge.policy_id == policy.id
        wanted, found = scorer.verdicts(images), client.verdicts(images)
        assert [verdict.decision for verdict in found] == [verdict.decision for verdict in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-6)


def _engine(bundles: dict[str, Path]) -> Engine:
    return read_bundle(bundles[CLIP]).manifest.engines[0]


@pytest.mark.parametrize("name", [CLIP, PANEL])
def test_without_batching_the_phrases_may_come_with_the_request(
    bundles: dict[str, Path], tmp_path: Path, name: str
) -> None:
    config = _read(model := export_triton(bundles[name], tmp_path, max_batch=0))
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx")
    optional = {entry.name: entry for entry in config.input if entry.optional}
    assert optional.keys() == {entry.name for entry in session.get_overridable_initializers()}
    assert not config.HasField("dynamic_batching")
    for entry in session.get_overridable_initializers():
        assert _fits(list(optional[entry.name].dims), entry.shape)
        assert optional[entry.name].dims[0] == -1
    assert [entry.dims[0] for entry in config.input] == [-1] * len(config.input)
    assert [entry.dims[0] for entry in config.output] == [-1, -1]


def test_versions_join_when_nothing_else_differs(bundles: dict[str, Path], tmp_path: Path) -> None:
    export_triton(bundles[CLIP], tmp_path, name="signs")
    model = export_triton(bundles[CLIP], tmp_path, name="signs", version=2)
    assert sorted(path.name for path in model.iterdir()) == ["1", "2", "config.pbtxt", "labels.txt"]
    with pytest.raises(BadInputError, match="exists and is not empty"):
        export_triton(bundles[CLIP], tmp_path, name="signs", version=2)
    for changed in ({"policy": Policy.read(find_asset(OTHER))}, {"delay_us": 5}, {"max_batch": 2}):
        with pytest.raises(BadInputError, match="all versions of a model share one: give `name`, or `overwrite`"):
            export_triton(bundles[CLIP], tmp_path, name="signs", version=3, **changed)
    for foreign in ("2024 thesis/chapter.docx", "1/notes.txt"):
        (model / foreign).parent.mkdir(exist_ok=True)
        (model / foreign).write_text("years of work")
        with pytest.raises(BadInputError, match=f"did not write {foreign}"):
            export_triton(bundles[CLIP], tmp_path, name="signs", version=3, delay_us=5, overwrite=True)
        (model / foreign).unlink()
    export_triton(bundles[CLIP], tmp_path, name="signs", version=3, delay_us=5, overwrite=True)
    assert sorted(path.name for path in model.iterdir()) == ["3", "config.pbtxt", "labels.txt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "../signs"}, r'"\.\./signs" cannot name a model'),
        ({"name": ".signs"}, "do not begin with a dot"),
        ({"instances": 0}, "instances, queue and version must be at least 1"),
        ({"version": 0}, "must be at least 1"),
        ({"max_batch": -1}, "max_batch and delay_us at least 0"),
        ({"engine": "onnx-fp33"}, 'has no engine "onnx-fp33"; did you mean'),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(
    bundles: dict[str, Path], tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInputError, match=words):
        export_triton(bundles[CLIP], tmp_path / "repository", **options)
    assert not (tmp_path / "repository").exists()


@pytest.fixture
def plan(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle with an engine of TensorRT beside the other. No test loads the plan: its bytes stand for one."""
    return _with_plan(bundles, tmp_path / "bundle")


def _with_plan(bundles: dict[str, Path], folder: Path, package: Any = "tensorrt", **changes: Any) -> Path:
    shutil.copytree(bundles[CLIP], folder)
    profiles: dict[str, Shapes] = {"image": ((1, 32, 32, 3), (8, 64, 64, 3), (64, 1024, 1024, 3))}
    report = PlanReport(package, "10.9", ("SM86",), profiles, {"fp16": 9}, {}, (), False, 6, 0, 1.0)
    report = dataclasses.replace(report, **changes)
    (folder / "fp16.json").write_text(json.dumps(report.to_dict()), encoding="utf-8")
    (folder / "fp16.plan").write_bytes(b"a plan")
    manifest = read_bundle(folder).manifest
    onnx = manifest.engines[0]
    engine = dataclasses.replace(
        onnx, name="tensorrt-fp16", kind="tensorrt", precision="fp16", files=("fp16.plan", "fp16.json"),
        batch=(1, 8, 64), runs_on=("cuda",), versions={package: "10.9"},
    )  # fmt: skip
    files = {**manifest.files, **{name: sha256(folder / name) for name in engine.files}}
    dataclasses.replace(manifest, engines=(onnx, engine), files=files).write(folder)
    return folder


def test_a_plan_goes_to_the_tensorrt_back_end(plan: Path, tmp_path: Path) -> None:
    model = export_triton(plan, tmp_path / "repository", engine="tensorrt-fp16")
    config = _read(model)
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("tensorrt", "model.plan", 64)
    assert config.instance_group[0].kind == model_config.ModelInstanceGroup.KIND_GPU
    assert [entry.name for entry in config.input] == ["image"]  # the phrases are in the plan
    assert (model / "1" / "model.plan").read_bytes() == b"a plan"
    assert "H and W from 32 to 1024" in (model / "config.pbtxt").read_text(encoding="utf-8")


def test_what_triton_cannot_run_is_refused(plan: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "repository"
    with pytest.raises(IncompatibleBundleError, match="runs on cuda, not on cpu"):
        export_triton(plan, out, engine="tensorrt-fp16", device="cpu")
    with pytest.raises(BadInputError, match="takes batches of 1 to 64, not of 65"):
        export_triton(plan, out, engine="tensorrt-fp16", max_batch=65)
    with pytest.raises(IncompatibleBundleError, match=r"built in, and .* was asked for: export a bundle"):
        export_triton(plan, out, engine="tensorrt-fp16", policy=Policy.read(find_asset(OTHER)))
    rtx = _with_plan(bundles, tmp_path / "rtx", "tensorrt_rtx")
    with pytest.raises(
        IncompatibleBundleError, match="TensorRT for RTX, whose plans Triton does not read: pip install"
    ):
        export_triton(rtx, out, engine="tensorrt-fp16")
    profiles = {"image": ((1, 32, 32, 3),) * 3, "text_bank": ((1, 16), (8, 16), (256, 16))}
    fed = _with_plan(bundles, tmp_path / "fed", profiles=profiles)
    with pytest.raises(IncompatibleBundleError, match=r"phrases as an input \(text_bank\).*--text-bank constant"):
        export_triton(fed, out, engine="tensorrt-fp16")
    stripped = _with_plan(bundles, tmp_path / "stripped", stripped=True)
    with pytest.raises(IncompatibleBundleError, match="has no weights in its plan"):
        export_triton(stripped, out, engine="tensorrt-fp16")
    assert not out.exists() or not list(out.iterdir())


def test_strings_survive_the_text_form() -> None:
    odd = 'a "quoted" \\ name,\nin two lines, mit Umlauten: Äöü'
    found = text_format.Parse(pbtxt({"name": odd, "max_batch_size": 3}), model_config.ModelConfig())
    assert (found.name, found.max_batch_size) == (odd, 3)


def test_the_command_writes_a_repository(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(bundles[CLIP]), "--out", str(tmp_path), "--name", "signs", "--policy", OTHER]
    assert run(["export", "triton", *options, "--instances", "3", "--max-batch", "16", "--delay-us", "100"]) == 0
    config = _read(tmp_path / "signs")
    assert (config.max_batch_size, config.instance_group[0].count) == (16, 3)
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    assert json.loads((tmp_path / "signs" / "1" / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert "config.pbtxt" in capsys.readouterr().out
    assert run(["export", "triton", *options]) == 1
    assert "give --name, or --overwrite" in capsys.readouterr().err
