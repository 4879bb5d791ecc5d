"""The runtime answers what the eager model answers, for every kind of input, and says what it cannot run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import zoo
from export import runtime
from export.bundle.manifest import Precision
from export.bundle.store import read_bundle
from export.runtime import onnx as onnx_engine
from export.runtime.engine import open_best
from tests.every_model import EVERY_MODEL
from tests.verdicts import same_verdict
from zoo.assets import find_asset
from zoo.cli import run
from zoo.contract.card import ModelCard
from zoo.contract.policy import Policy, Threshold
from zoo.contract.verdict import Verdict
from zoo.errors import BadInputError, BadPolicyError, IncompatibleBundleError, MissingDependencyError
from zoo.files.held import sha256
from zoo.inputs.image import decode, decode_with_notes
from zoo.judging.scorer import Feeds, Scorer
from zoo.models.served import ServedRun, text_banks
from zoo.registry import model_card
from zoo.release.store import load_release, write_release

CLIP, NSFWJS, FUSION = "test_safeclip.random", "test_nsfwjs.random", "test_multimodal_nsfw.fusion"
MODELS = [model for model in EVERY_MODEL if model_card(str(model.id)).image]
PROMPTS = "test_prompt_bert.random"
TEXTS = ["a red sign", "", "two blue dogs " * 20]


def _same(left: list[Verdict], right: list[Verdict]) -> None:
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert same_verdict(a, b, 1e-4), (a, b)


def _without_source(verdict: Verdict) -> Verdict:
    heads = {name: _without_source(head) for name, head in verdict.heads.items()}
    return dataclasses.replace(verdict, source="", heads=heads)


def _texts(scorer: Scorer, count: int) -> list[str | None] | None:
    return [TEXTS[number % 3] for number in range(count)] if scorer.card.reads_text else None


@pytest.mark.parametrize("name", MODELS)
def test_the_verdicts_are_those_of_the_eager_model(
    bundles: dict[str, Path], golden: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    paths = [tmp_path / key for key in golden]
    for path, data in zip(paths, golden.values(), strict=True):
        path.write_bytes(data)
    arrays = [np.asarray(decode(data)) for data in golden.values()]
    with zoo.load_scorer(name) as eager, runtime.load(bundles[name], threads=1, batch_size=5) as exported:
        texts = _texts(eager, len(paths))
        wanted = eager.verdicts(paths, texts)
        assert {verdict.status for verdict in wanted} == {"ok"}
        _same(exported.verdicts(paths, texts), wanted)
        nameless = [_without_source(verdict) for verdict in wanted]
        _same(exported.verdicts(list(golden.values()), texts), nameless)
        animated = list(golden).index("animated.gif")  # as an array it is its first frame, and nothing is unseen
        assert "frames" in (wanted[animated].unseen or {})
        found = exported.verdicts(arrays, texts)
        # Files far larger than the model's size are decoded scaled, by a level or two another picture.
        # As arrays, transparent ones lie on white alone.
        clear = [place for place, data in enumerate(golden.values()) if decode_with_notes(data).transparent]
        other = {animated, *clear}
        same = [place for place, array in enumerate(arrays) if place not in other and max(array.shape) < 500]
        assert len(same) > len(arrays) // 2
        _same([found[place] for place in same], [nameless[place] for place in same])
        batch = np.stack([array for array in arrays if array.shape == arrays[0].shape])
        texts = _texts(eager, len(batch))
        _same(exported.verdicts(batch, texts), eager.verdicts(batch, texts))
        _same([exported.verdict(paths[0], texts[0] if texts else None)], wanted[:1])


def test_a_model_of_texts_answers_as_the_eager_one(bundles: dict[str, Path]) -> None:
    texts: list[str | None] = [*TEXTS, "a blue sign", None, "x" * 200_000, "three signs"]
    with zoo.load_scorer(PROMPTS) as eager, runtime.load(bundles[PROMPTS], threads=1, batch_size=5) as exported:
        wanted = eager.verdicts(texts=texts)
        assert [verdict.status for verdict in wanted] == ["ok"] * 4 + ["missing_input", "unreadable", "ok"]
        _same(exported.verdicts(texts=texts), wanted)


def test_the_zoo_finds_the_runtime_of_a_bundle(bundles: dict[str, Path], golden: dict[str, bytes]) -> None:
    with zoo.load_scorer(bundles[CLIP], threads=1) as scorer:
        assert isinstance(scorer.engine, onnx_engine.OnnxEngine)
        assert scorer.verdict(golden["grey.jpg"]).status == "ok"


@pytest.mark.parametrize("missing", ["image", "text"])
def test_a_missing_input_means_the_same_as_in_eager(
    bundles: dict[str, Path], golden: dict[str, bytes], missing: str
) -> None:
    images = list(golden.values())[:3] if missing == "text" else None
    texts = TEXTS if missing == "image" else None
    with zoo.load_scorer(FUSION) as eager, runtime.load(bundles[FUSION], threads=1) as exported:
        _same(exported.verdicts(images, texts), eager.verdicts(images, texts))
        assert exported.verdicts([None], [None])[0].status == "missing_input"


def test_broken_items_cost_the_others_nothing(bundles: dict[str, Path], golden: dict[str, bytes]) -> None:
    good = golden["exif_rotated.jpg"]
    with runtime.load(bundles[CLIP], threads=1, batch_size=3) as scorer:
        found = scorer.verdicts([b"no image", good, None, "none.jpg", good, np.zeros((4, 4, 2), np.uint8), good])
        alone = scorer.verdict(good)
    assert [verdict.status for verdict in found] == [
        "unreadable", "ok", "missing_input", "unreadable", "ok", "unreadable", "ok",
    ]  # fmt: skip
    assert not any(verdict.is_safe for verdict in found if verdict.status != "ok")
    assert found[3].source == "none.jpg"
    _same([found[1], found[4], found[6]], [alone] * 3)


@pytest.mark.parametrize("shipped", ["configs/policy/quickstart.yaml", "configs/policy/safeclip.yaml"])
def test_another_policy_needs_no_export(
    bundles: dict[str, Path], golden: dict[str, bytes], tmp_path: Path, shipped: str
) -> None:
    policy = Policy.read(find_asset(shipped))
    write_release(load_release(CLIP).model, policy, tmp_path / "release")
    images = list(golden.values())
    with zoo.load_scorer(tmp_path / "release") as eager, runtime.load(bundles[CLIP], policy, threads=1) as exported:
        _same(exported.verdicts(images), eager.verdicts(images))
        assert exported.judge.policy_id == policy.id


def test_a_policy_of_labels_does_not_fit_a_zero_shot_bundle(bundles: dict[str, Path]) -> None:
    with pytest.raises(BadPolicyError, match="has no descriptors"):
        runtime.load(bundles[CLIP], Policy.read(find_asset("configs/policy/unsafe.yaml")))
    with pytest.raises(BadPolicyError, match='has no output "unsafe"'):
        runtime.load(bundles[NSFWJS], Policy.read(find_asset("configs/policy/unsafe.yaml")))


def test_new_phrases_need_the_text_encoder(bundles: dict[str, Path]) -> None:
    bundle = read_bundle(bundles[CLIP])
    files = {key: value for key, value in bundle.manifest.files.items() if key != "text_encoder.onnx"}
    without = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, files=files))
    with pytest.raises(IncompatibleBundleError, match=f"export again: zoo export onnx --model {CLIP} --precision fp32"):
        runtime.text_bank(without, Policy.read(find_asset("configs/policy/dogs.yaml")))


def _feeds(card: ModelCard, image: NDArray[np.uint8]) -> Feeds:
    rows = len(image)
    feeds: Feeds = {"image": image}
    if card.reads_text:
        tokens = load_release(card.name).model.codec().encode([TEXTS[row % 3] for row in range(rows)])
        feeds |= {"input_ids": tokens.ids, "attention_mask": tokens.mask}
    if "image_present" in card.input_names:
        feeds["image_present"] = np.ones(rows, dtype=bool)
    return feeds


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(1, 1), (20, 500), (333, 250), (32, 32), (600, 480)])
def test_the_graph_resizes_as_eager_does(bundles: dict[str, Path], name: str, size: tuple[int, int]) -> None:
    release = load_release(name)
    noise = np.random.default_rng(0).integers(0, 256, (3, *size, 3))
    feeds = _feeds(release.card, noise.astype(np.uint8))
    if release.card.image is not None and release.card.image.recompress is not None:
        assert size != (release.card.image.size,) * 2
        with pytest.raises(Exception, match="image"):  # onnxruntime's own
            open_best(read_bundle(bundles[name]), threads=1).run(feeds)
        return
    logits, scores = open_best(read_bundle(bundles[name]), threads=1).run(feeds)
    wanted = ServedRun(release.model, text_banks(release.model, release.judge)).run(feeds)
    assert np.abs(logits - wanted[0]).max() < 1e-4
    assert np.abs(scores - wanted[1]).max() < 1e-4


def test_cuda_is_refused_where_there_is_none(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(IncompatibleBundleError, match=r"onnx-fp32 on cuda: .*install `safety-zoo\[gpu\]`"):
        runtime.load(bundles[CLIP], device="cuda")


def test_a_silent_fall_back_to_the_cpu_is_refused(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )

    class FellBack:
        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr("onnxruntime.InferenceSession", FellBack)
    with pytest.raises(IncompatibleBundleError, match=r"cuda was asked for, but .*onnxruntime chose \['CPU"):
        runtime.load(bundles[CLIP], device="cuda")


@pytest.mark.parametrize(
    ("precision", "tensorrt", "provider"),
    [
        ("fp16", "10.9.0", "TensorrtExecutionProvider"),
        ("fp32", "10.9.0", "CUDAExecutionProvider (not TensorrtExecutionProvider: it would multiply float32 as TF32"),
        ("fp16", "11.0.0", "CUDAExecutionProvider (not TensorrtExecutionProvider: it needs tensorrt 10, and 11.0.0"),
        ("fp16", None, "CUDAExecutionProvider (not TensorrtExecutionProvider: it needs tensorrt 10, and none"),
    ],
)
def test_providers_are_tried_in_order_and_the_chosen_one_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: Precision, tensorrt: str | None, provider: str
) -> None:
    """No GPU here: a session that starts wherever it is told to stands in for onnxruntime-gpu's."""

    class Starts:
        def __init__(self, *_: object, providers: list[tuple[str, dict[str, str]]]) -> None:
            self.providers = [name for name, _ in providers] + ["CPUExecutionProvider"]

        def get_providers(self) -> list[str]:
            return self.providers

    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: available)
    monkeypatch.setattr("onnxruntime.InferenceSession", Starts)
    monkeypatch.setattr(onnx_engine, "_version", lambda name: tensorrt if name == "tensorrt" else None)
    monkeypatch.setitem(sys.modules, "tensorrt", sys)
    (tmp_path / "model.onnx").write_bytes(b"a graph")
    found, words = onnx_engine.open_session(tmp_path / "model.onnx", "cuda", None, precision)
    assert words.startswith(provider)
    assert found.get_providers()[0] == provider.split(" ")[0]


def test_engines_that_tensorrt_caches_are_those_of_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """onnxruntime's keys hold names, so a retrained model of the same architecture needs a folder of its own."""
    folders = []

    class Starts:
        def __init__(self, *_: object, providers: list[tuple[str, dict[str, str]]]) -> None:
            folders.append(Path(providers[0][1]["trt_engine_cache_path"]))

        def get_providers(self) -> list[str]:
            return ["TensorrtExecutionProvider"]

    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    )
    monkeypatch.setattr("onnxruntime.InferenceSession", Starts)
    monkeypatch.setattr(onnx_engine, "_version", lambda name: "10.9.0" if name == "tensorrt" else None)
    monkeypatch.setitem(sys.modules, "tensorrt", sys)
    first, retrained, again = (tmp_path / name / "model.onnx" for name in "abc")
    for path, weights in ((first, b"weights"), (retrained, b"others"), (again, b"weights")):
        path.parent.mkdir()
        path.write_bytes(weights)
        onnx_engine.open_session(path, "cuda", None, "fp16")
    (again.parent / "model.onnx.data").write_bytes(b"more weights")
    onnx_engine.open_session(again, "cuda", None, "fp16", data=("model.onnx.data",))
    assert folders[0].name == sha256(first)
    assert folders[0] == folders[2]
    assert len(set(folders)) == 3
    assert all(folder.is_dir() for folder in folders)


def test_an_unknown_device_is_refused(bundles: dict[str, Path]) -> None:
    with pytest.raises(BadInputError, match='device must be "auto", "cpu" or "cuda", got "gpu"'):
        runtime.load(bundles[CLIP], device="gpu")


def test_two_onnxruntimes_side_by_side_are_refused(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_engine, "_version", lambda name: "1.27" if name.startswith("onnxruntime") else None)
    with pytest.raises(IncompatibleBundleError, match="pip uninstall -y onnxruntime onnxruntime-gpu && pip install"):
        runtime.load(bundles[CLIP])


def test_without_onnxruntime_the_extra_is_named(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'safety-zoo\[cpu\]'"):
        runtime.load(bundles[CLIP])


def test_a_distribution_is_found_by_its_name() -> None:
    assert onnx_engine._version("numpy") == np.__version__
    assert onnx_engine._version("no-such-distribution") is None


def test_the_runtime_needs_no_torch(bundles: dict[str, Path], golden: dict[str, bytes], tmp_path: Path) -> None:
    copy = shutil.copytree(bundles[CLIP], tmp_path / "bundle")
    (tmp_path / "a.jpg").write_bytes(golden["cmyk.jpg"])
    code = (
        "import sys; from export import runtime\n"
        f"scorer = runtime.load({str(copy)!r}, threads=1)\n"
        f"print(scorer.verdict({str(tmp_path / 'a.jpg')!r}).status)\n"
        "print(sorted({'torch', 'transformers', 'lightning', 'onnx', 'torchmetrics'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["ok", "[]"]


def test_score_says_which_engine_runs_and_why(
    bundles: dict[str, Path], golden: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "a.png"
    photo.write_bytes(golden["pixel.png"])
    for model, words in (
        (str(bundles[CLIP]), "onnx-fp32 on cpu by CPUExecutionProvider, not verified yet: the first choice of those"),
        (CLIP, f"eager torch {torch.__version__} on cpu: the model itself"),
    ):
        assert run(["score", "--model", model, "--json", "--verbose", str(photo)]) in (0, 3)
        found = capsys.readouterr()
        assert found.err.startswith(words)
        assert json.loads(found.out)["status"] == "ok"


@pytest.mark.parametrize("command", ["score", "evaluate", "policy use", "serve"])
def test_a_policy_that_never_flags_is_warned_of_once(
    bundles: dict[str, Path], tmp_path: Path, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = dataclasses.replace(load_release(NSFWJS).policy.single(), name="mine")
    limits = [dataclasses.replace(one, threshold=one.threshold and Threshold(1.0)) for one in policy.categories]
    path = tmp_path / "never.yaml"
    path.write_text(dataclasses.replace(policy, categories=tuple(limits)).to_yaml(), encoding="utf-8")
    pictures = [tmp_path / f"{number}.png" for number in range(5)]
    for number, picture in enumerate(pictures):
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(picture)
    data = tmp_path / "data.csv"
    data.write_text("image,label\n" + "".join(f"{one.name},{int(one == pictures[0])}\n" for one in pictures))
    bundle = str(shutil.copytree(bundles[NSFWJS], tmp_path / "bundle"))
    caplog.clear()
    if command == "score":
        assert run(["score", "--model", bundle, "--policy", str(path), *map(str, pictures)]) in (0, 4)
    elif command == "evaluate":
        assert run(["evaluate", "--model", NSFWJS, "--policy", str(path), "--data", str(data)]) == 0
    elif command == "policy use":
        assert run(["policy", "use", str(path), "--model", bundle]) == 0
    else:
        with runtime.serve(bundle, Policy.read(path), threads=1) as service:
            assert [service.verdict(picture).status for picture in pictures] == ["ok"] * 5
    found = [record.message for record in caplog.records if "is never flagged" in record.message]
    names = [one.name for one in limits if one.threshold]
    assert len(found) == len(names), found
    assert all(any(f'policy "mine": "{name}" is never flagged' in message for message in found) for name in names)
