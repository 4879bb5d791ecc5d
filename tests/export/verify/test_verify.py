"""`zoo verify` passes what is the same and fails what is not, down to one weight."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import quantize_dynamic
from PIL import Image

from export import runtime
from export.bundle.manifest import Budget, Engine, Precision, Shapes, Verification, budget_of
from export.bundle.store import read_bundle, use_policy
from export.commands.bundle import _verification
from export.runtime import OnnxEngine
from export.runtime.engine import _distrust, _why
from export.verify import compare
from export.verify.compare import BATCHES, SIZES, verify
from export.verify.inputs import Inputs, golden_images, image_probes, text_probes
from export.verify.report import MINIMUM, Check, ParityReport, difference
from export.verify.threshold import placed_at_threshold
from tests.every_model import EVERY_MODEL
from zoo.cli import run
from zoo.contract.card import ModelCard
from zoo.contract.policy import Policy, read_policy
from zoo.errors import BadCardError, BadInputError, IncompatibleBundleError, ParityError, TamperedFileError
from zoo.files.held import sha256
from zoo.judging.judge import bind
from zoo.judging.scorer import Feeds
from zoo.metrics import auroc
from zoo.registry import create_model, model_card
from zoo.release.store import load_release, write_release

CLIP, NSFWJS = "test_safeclip.random", "test_nsfwjs.random"
MODEL = "onnx-fp32.onnx"
#: Those of full image size take their time.
MODELS = EVERY_MODEL


def _copy(bundles: dict[str, Path], name: str, folder: Path) -> Path:
    return Path(shutil.copytree(bundles[name], folder / "bundle"))


def _perturb(bundle: Path, amount: float) -> None:
    """Change the largest weight of the graph by a share of its spread, and let the manifest vouch for it."""
    proto = onnx.load(bundle / MODEL)
    floats = [w for w in proto.graph.initializer if w.data_type == onnx.TensorProto.FLOAT and w.name != "text_bank"]
    weight = max(floats, key=lambda w: int(np.prod(w.dims)))
    values = numpy_helper.to_array(weight)
    noise = np.random.default_rng(0).normal(size=values.shape).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(values + np.float32(amount * values.std()) * noise, weight.name))
    onnx.save(proto, bundle / MODEL)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][MODEL] = sha256(bundle / MODEL)
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _verify(bundle: Path, check: Check | None = None) -> ParityReport:
    (report,) = verify(bundle, check)
    return report


def _noted(bundle: Path) -> Verification:
    found = read_bundle(bundle).manifest.engines[0].verification
    assert found is not None
    return found


def test_an_engine_is_compared_in_batches_and_images_that_it_was_built_for(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = _copy(bundles, CLIP, tmp_path)
    manifest = read_bundle(bundle).manifest
    size = model_card(CLIP).image.size  # type: ignore[union-attr]  # it reads images
    shapes: dict[str, Shapes] = {"image": ((1, 50, 50, 3), (2, size, size, 3), (4, 700, 700, 3))}
    engine = dataclasses.replace(manifest.engines[0], batch=(1, 2, 4), shapes=shapes)
    dataclasses.replace(manifest, engines=(engine,)).write(bundle)
    rows: list[int] = []
    run_as_it_is = OnnxEngine.run

    def noted(self: OnnxEngine, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rows.append(len(feeds["image"]))
        return run_as_it_is(self, feeds)

    monkeypatch.setattr(OnnxEngine, "run", noted)
    report = _verify(bundle)
    report.raise_if_failed()
    assert max(rows) == 4
    assert report.inputs > MINIMUM
    taken = ["250x333 pixels", "90x300 pixels", "480x640 pixels"]
    assert list(report.at_shapes) == ["batch 1", "batch 2", "batch 4", *taken]


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_bundle_passes_and_says_so(bundles: dict[str, Path], tmp_path: Path, name: str) -> None:
    bundle = _copy(bundles, name, tmp_path)
    report = _verify(bundle)
    report.raise_if_failed()
    assert not report.problems
    assert not report.flips
    assert not report.flips_at_threshold
    assert report.at_threshold > 0
    golden = golden_images() if model_card(name).image is not None else ()
    assert report.inputs == MINIMUM + len(golden)
    for found in report.differences.values():
        assert found.max is not None
        assert found.cosine is not None
        assert (found.max < 1e-4, found.cosine > 0.9999) == (True, True)
    image = model_card(name).image
    resizes = image is not None and image.recompress is None
    sizes = [f"{width}x{height} pixels" for height, width in SIZES] if resizes else []
    assert list(report.at_shapes) == [*(f"batch {rows}" for rows in (*BATCHES, report.engine.batch[1])), *sizes]
    assert max(report.at_shapes.values()) < 1e-4
    assert report.nearest < 0.01
    assert report.company is not None
    assert report.company < 1e-5
    noted = _noted(bundle)
    assert (noted.passed, noted.inputs, noted.flips) == (True, report.inputs, 0)
    assert (noted.at_threshold, noted.device) == (report.at_threshold, "cpu")
    assert read_bundle(bundle).manifest.engines[0].budget == budget_of("fp32")
    with runtime.load(bundle, threads=1) as scorer:
        assert scorer.card.name == name


def test_an_engine_that_judges_by_the_neighbours_in_its_batch_fails(bundles: dict[str, Path], tmp_path: Path) -> None:
    """onnxruntime's dynamic scales span a batch: what `int8` was made with before, and bundles may still have."""
    bundle = _copy(bundles, "test_clip.panel", tmp_path)
    quantize_dynamic(bundle / MODEL, bundle / "dynamic.onnx", op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
    (bundle / "dynamic.onnx").replace(bundle / MODEL)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][MODEL] = sha256(bundle / MODEL)
    manifest["engines"][0]["precision"] = "int8"
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    report = _verify(bundle)
    assert report.company is not None
    assert report.company > 1e-3
    with pytest.raises(ParityError, match="from those of the same input alone, at most 1e-03 may be due to the others"):
        report.raise_if_failed()
    assert _noted(bundle).company == report.company
    assert "in company   scores within" in report.text()


def test_an_engine_that_raises_ends_in_the_reason_and_is_noted(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = _copy(bundles, NSFWJS, tmp_path)

    def fails(self: OnnxEngine, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        raise RuntimeError("a kernel is missing")

    monkeypatch.setattr(OnnxEngine, "run", fails)
    assert run(["verify", str(bundle)]) == 1
    shown = capsys.readouterr()
    assert "onnx-fp32 on cpu: FAILED" in shown.out
    assert "the engine fails on a batch of 1: a kernel is missing" in shown.err
    assert "Traceback" not in shown.err
    assert not _noted(bundle).passed
    assert run(["bundle", "info", str(bundle)]) == 0
    assert "its verification failed" in " ".join(capsys.readouterr().out.split())


def test_a_model_whose_scores_are_all_invalid_does_not_pass(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engine and model agree, on zeros: their differences are 0, and no verdict can flip."""
    bundle = _copy(bundles, NSFWJS, tmp_path)

    def zeros(self: object, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        none = np.zeros((len(feeds["image"]), 5), np.float32)
        return none, none

    monkeypatch.setattr(OnnxEngine, "run", zeros)
    monkeypatch.setattr("zoo.models.served.ServedRun.run", zeros)
    report = _verify(bundle)
    count = MINIMUM + len(golden_images())
    assert f"the scores of the trained model are invalid for {count} of {count} inputs" in report.problems
    assert f"the scores of the engine are invalid for {count} of {count} inputs" in report.problems
    assert not _noted(bundle).passed


def test_a_verification_counts_for_the_kind_of_device_that_it_ran_on(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = _copy(bundles, CLIP, tmp_path)
    report = _report("fp16")
    report.engine = engine = dataclasses.replace(read_bundle(bundle).manifest.engines[0], precision="fp16")
    manifest = dataclasses.replace(read_bundle(bundle).manifest, engines=(engine,))
    manifest.write(bundle)
    manifest = report.note(manifest, bundle)
    (noted,) = manifest.engines
    assert noted.verified_on("cuda") is None
    assert _distrust(noted, "cpu") is None
    assert _distrust(noted, "cuda") == "verified on cpu only, not on cuda, and it has fewer bits: run `zoo verify`"
    with runtime.load(bundle, threads=1, engine="onnx-fp32", device="cpu") as scorer:
        running = scorer.engine
    assert ", verified: asked for" in running.why
    running.device = "cuda"
    assert ", verified on cpu only, not on cuda: asked for" in _why(running, "", True, {})
    report.device, report.problems = "cuda, NVIDIA H100 (SM90)", ["flips"]
    (noted,) = report.note(manifest, bundle).engines
    assert [one.kind for one in noted.verifications] == ["cuda", "cpu"]
    assert (_distrust(noted, "cpu"), _distrust(noted, "cuda")) == (None, "its verification failed")
    report.device = "cpu"
    (noted,) = report.note(read_bundle(bundle).manifest, bundle).engines
    assert [(one.kind, one.passed) for one in noted.verifications] == [("cpu", False), ("cuda", False)]
    assert "on cpu; FAILED" in _verification(noted)


def test_a_device_that_is_not_here_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = _copy(bundles, NSFWJS, tmp_path)
    with pytest.raises(BadInputError, match='device must be "auto", "cpu" or "cuda", got "gpu"'):
        verify(bundle, device="gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
        with pytest.raises(IncompatibleBundleError, match=r"onnx-fp32 cannot run here: .*CUDAExecutionProvider"):
            verify(bundle, device="cuda")


def test_bundles_and_budgets_of_before_are_read(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = _copy(bundles, CLIP, tmp_path)
    _report("fp32", engine=read_bundle(bundle).manifest.engines[0]).note(read_bundle(bundle).manifest, bundle)
    path = bundle / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    (engine,) = data["engines"]
    engine.pop("elsewhere", None)
    engine["verification"].pop("company", None)
    engine["budget"].pop("max_company_difference")
    path.write_text(json.dumps(data), encoding="utf-8")
    (read,) = read_bundle(bundle).manifest.engines
    assert read.budget is not None
    assert read.budget.max_company_difference is None
    assert (read.elsewhere, _noted(bundle).company) == ((), None)


def test_other_weights_fail_with_status_1(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = _copy(bundles, CLIP, tmp_path)
    _perturb(bundle, 0.5)
    assert run(["verify", str(bundle)]) == 1
    shown = capsys.readouterr()
    assert f"FAILED against eager {CLIP}, budget fp32" in shown.out
    assert "of verdicts flip, at most 0.00% may: " in shown.out
    assert "does not answer what" in shown.err
    assert "logits differ by" in shown.err
    assert not _noted(bundle).passed
    with pytest.raises(IncompatibleBundleError, match="onnx-fp32 on cpu: its verification failed"):
        runtime.load(bundle, threads=1, device="cpu")
    with runtime.load(bundle, threads=1, engine="onnx-fp32") as scorer:
        assert "FAILED: asked for by name" in scorer.engine.why


def test_a_small_change_fails_too(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = _copy(bundles, CLIP, tmp_path)
    _perturb(bundle, 0.01)
    report = _verify(bundle)
    with pytest.raises(ParityError, match=r"logits differ by .*, tolerance 1e-04"):
        report.raise_if_failed()
    assert "tolerance 1e-04" in report.text()


def test_weights_that_are_no_numbers_fail(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = _copy(bundles, CLIP, tmp_path)
    _perturb(bundle, float("nan"))
    report = _verify(bundle)
    with pytest.raises(ParityError, match="logits differ by nan"):
        report.raise_if_failed()
    assert not _noted(bundle).passed
    assert _noted(bundle).outputs["logits"].max is None


def test_another_release_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    release = load_release(NSFWJS)
    torch.manual_seed(1)  # a registered model without weights is made with seed 0
    write_release(create_model(NSFWJS), release.policy, tmp_path / "other")
    with pytest.raises(TamperedFileError, match=r"other weights than those that .* was exported from; export again"):
        verify(bundles[NSFWJS], model=str(tmp_path / "other"))


def test_too_few_inputs_are_refused() -> None:
    with pytest.raises(BadInputError, match="count must be at least 256, got 255"):
        Check(count=255)


def test_photos_are_used_beside_the_drawn_ones(
    bundles: dict[str, Path], golden: dict[str, bytes], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(golden["exif_rotated.jpg"])
    (photos / "b.txt").write_bytes(b"no image")
    spec = ModelCard.read(bundles[CLIP] / "card.json").image
    assert spec is not None
    (with_photo, names), (drawn, _) = image_probes(3, spec, photos), image_probes(3, spec)
    assert with_photo.shape == drawn.shape == (3, 32, 32, 3)
    assert np.array_equal(with_photo[1:], drawn[:2])
    assert names == [str(photos / "a.jpg"), "drawn 0", "drawn 1"]
    (photos / "a.jpg").unlink()
    with pytest.raises(BadInputError, match="holds no readable image"):
        image_probes(3, spec, photos)
    with pytest.raises(BadInputError, match="no such folder"):
        image_probes(3, spec, tmp_path / "none")


def test_each_view_that_the_policy_shows_is_compared(
    bundles: dict[str, Path], golden: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    long, still = tmp_path / "photos/long.png", tmp_path / "photos/square.png"
    Image.effect_noise((80, 32), 60).save(long)
    Image.effect_noise((32, 32), 60).save(still)
    (tmp_path / "many.gif").write_bytes(golden["animated.gif"])
    (tmp_path / "manifest.csv").write_text("image,label\nmany.gif,1\nphotos/long.png,0\n", encoding="utf-8")
    check = Check(images=tmp_path / "photos", data=tmp_path / "manifest.csv")
    card = ModelCard.read(bundles[CLIP] / "card.json")
    policy = dataclasses.replace(read_policy("quickstart"), views="tiles", frames=2)
    inputs = Inputs(card, None, check, policy)
    batches = list(inputs)
    assert len(batches) == len(inputs)
    found = {name: (batch, row) for batch in batches for row, name in enumerate(batch.names)}
    tiles = [f"{long}, tile {number} of 3" for number in (1, 3)]  # the second is the centre, which the card says
    assert {str(long), str(still), *tiles, f"{tmp_path / 'many.gif'}, frame 1, tile 1 of 1"} <= set(found)
    assert f"{still}, centre" not in found
    labels = {name: int(batch.labels[row]) for name, (batch, row) in found.items()}
    assert [labels[str(tmp_path / "many.gif")], labels[f"{tmp_path / 'many.gif'}, frame 1, tile 1 of 1"]] == [1, -1]
    batch, row = found[tiles[0]]
    assert np.array_equal(batch.feeds["image"][row], np.asarray(Image.open(long).convert("RGB"))[:, :32])
    plain = {name for batch in Inputs(card, None, check) for name in batch.names}
    assert plain == {name for name in found if ", " not in name.rpartition("/")[2]}

    bundle = _copy(bundles, CLIP, tmp_path)
    use_policy(bundle, policy)
    report = _verify(bundle, check)
    report.raise_if_failed()
    assert report.inputs == sum(len(batch.names) for batch in batches)


def test_probes_are_the_same_each_time_and_texts_of_all_lengths() -> None:
    assert np.array_equal(image_probes(4, None)[0], image_probes(4, None)[0])
    texts = text_probes(64)
    assert texts == text_probes(64)
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) < 6
    assert max(lengths) > 30


def test_the_checked_shapes_are_not_the_traced_ones() -> None:
    assert 2 in BATCHES
    assert {1, 7} <= set(BATCHES)
    assert all(size != (48, 80) for size in SIZES)


def test_blends_lie_on_either_side_of_the_threshold() -> None:
    """With brightness for a score, half of the placed inputs are just above the threshold and half just below."""
    release = load_release(NSFWJS)
    judge = bind(release.card, release.policy)

    def brightness(feeds: Feeds) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        share = feeds["image"].astype(np.float32).mean(axis=(1, 2, 3)) / 255
        zero = np.zeros_like(share)
        return np.stack([1 - share, zero, zero, share, zero], axis=1)  # drawing, hentai, neutral, porn, sexy

    feeds: Feeds = {"image": image_probes(64, release.card.image)[0][:, :16, :16]}
    placed = placed_at_threshold(brightness, judge, feeds, brightness(feeds))
    scores = judge.unsafe_score(judge.category_scores(brightness(placed.feeds)))
    half = len(placed.feeds["image"]) // 2
    assert half > 10
    assert placed.judge is judge
    assert (scores[:half] <= 0.5).all()
    assert (scores[half:] > 0.5).all()
    assert np.abs(scores - 0.5).max() < 0.005


def test_tokens_are_exchanged_where_there_is_no_image() -> None:
    """With the share of one token for a score, the placed texts of a pair differ in that token alone."""
    release = load_release("test_prompt_bert.random")
    judge = bind(release.card, release.policy)
    ids = np.full((16, 10), 5, dtype=np.int64)
    ids[8:] = 7
    feeds: Feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def sevens(feeds: Feeds) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        share = (feeds["input_ids"] == 7).mean(axis=1, dtype=np.float32) - np.float32(0.01)
        return np.repeat(share[:, None].clip(0, 1), len(release.card.labels), axis=1)

    placed = placed_at_threshold(sevens, judge, feeds, sevens(feeds))
    assert placed.how == "tokens exchanged until the verdict hangs on one"
    assert len(placed.feeds["input_ids"]) == 16
    found = (placed.feeds["input_ids"] == 7).sum(axis=1)
    assert found.tolist() == [5] * 8 + [6] * 8


def test_flips_have_names_and_labelled_data_a_ranking(bundles: dict[str, Path], tmp_path: Path) -> None:
    """Pictures with labels and stored adversarial ones are compared too, and what flips is named."""
    bundle = _copy(bundles, CLIP, tmp_path)
    _perturb(bundle, 0.5)
    pictures, _ = image_probes(8, model_card(CLIP).image)
    for folder, labels in (("data", ["1", "0"] * 4), ("adversarial", [""] * 4)):
        (tmp_path / folder).mkdir()
        lines = ["image,label"]
        for number, label in enumerate(labels):
            name = f"{folder}_{number}.png"
            Image.fromarray(pictures[number]).save(tmp_path / folder / name)
            lines.append(f"{name},{label}")
        (tmp_path / folder / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    loose = dataclasses.replace(budget_of("int8"), max_flips=1.0)
    budget = tmp_path / "loose.yaml"
    budget.write_text(yaml.safe_dump(loose.to_dict()), encoding="utf-8")
    check = Check(data=tmp_path / "data" / "manifest.csv", adversarial=tmp_path / "adversarial", budget=budget)
    report = _verify(bundle, check)
    assert report.inputs == MINIMUM + len(golden_images()) + 12
    assert report.auroc is not None
    assert report.auroc_loss is not None
    assert 0 <= report.auroc <= 1
    assert report.budget == loose
    assert len(report.flips_at_threshold) > 0
    assert "AUROC" in report.text()
    noted = _noted(bundle)
    assert (noted.auroc, noted.auroc_loss) == (report.auroc, report.auroc_loss)
    assert str(tmp_path / "adversarial") in noted.image_source
    assert noted.options == {
        "adversarial": str(tmp_path / "adversarial"), "data": str(tmp_path / "data" / "manifest.csv"),
        "budget": str(budget),
    }  # fmt: skip
    assert noted.at_shapes == report.at_shapes


def _report(precision: Precision, **figures: Any) -> ParityReport:
    engine = figures.pop("engine", dataclasses.replace(_ENGINE, precision=precision))
    same = difference(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    defaults = {"inputs": 1000, "at_threshold": 64, "differences": {"logits": same, "scores": same}}
    return ParityReport(
        Path("bundle"), "model", engine, budget_of(precision), "cpu", Check(), **{**defaults, **figures}
    )


_ENGINE = Engine("e", "onnx", "fp32", ("e.onnx",), "latency", (1, 8, 64), ("cpu",), {"fp32": 1}, "policy")


@pytest.mark.parametrize(
    ("precision", "figures", "problem"),
    [
        ("fp32", {}, None),
        ("fp32", {"flips": ["a.png"]}, "0.09% of verdicts flip, at most 0.00% may: a.png"),
        ("fp32", {"flips_at_threshold": ["placed 3"]}, "at most 0.00% may: placed 3"),
        ("fp32", {"at_shapes": {"batch 7": 2e-4}}, "differ by 2.00e-04 at batch 7, tolerance 1e-04"),
        ("fp16", {"flips_at_threshold": ["placed 3"], "at_shapes": {"40x60 pixels": 0.1}}, None),
        ("fp16", {"flips": ["a.png"]}, None),
        ("bf16", {"flips": ["a.png", "b.png"]}, "0.20% of verdicts flip, at most 0.10% may: a.png, b.png"),
        ("int8", {"flips": ["a.png"] * 5}, None),
        ("int8", {"flips": ["a.png"] * 6}, "and 2000 would leave less to luck"),
        ("int8_qdq", {"auroc": 0.9, "auroc_loss": 0.004}, None),
        ("int8_qdq", {"auroc": 0.9, "auroc_loss": 0.006}, "AUROC falls by 0.0060 to 0.9000, at most 0.005 may be lost"),
        ("int8", {"company": 9e-4}, None),
        ("int8", {"company": 2e-3}, "differ by 2.00e-03 from those of the same input alone, at most 1e-03 may be due"),
        ("fp32", {"company": 2e-4}, "differ by 2.00e-04 from those of the same input alone, at most 1e-04 may be due"),
        ("int8_qdq", {"company": float("nan")}, "differ by nan from those of the same input alone"),
        ("int8", {"at_shapes": {"40x60 pixels": float("nan")}}, "logits differ by nan at 40x60 pixels"),
    ],
)
def test_budgets_are_those_of_the_precision(precision: Precision, figures: dict[str, Any], problem: str | None) -> None:
    report = _report(precision, **figures)
    report.judge()
    assert len(report.problems) == (problem is not None)
    if problem is not None:
        assert problem in report.problems[0]
        with pytest.raises(ParityError, match="e does not answer what model answers"):
            report.raise_if_failed()


def test_differences_are_numbers_that_mean_what_they_say() -> None:
    theirs = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    found = difference(theirs + np.array([[0.0, 1.0], [0.0, 0.0]], np.float32), theirs)
    assert (found.max, found.mean) == (1.0, 0.25)
    assert found.cosine == pytest.approx(2**-0.5)
    assert difference(theirs * np.float32("nan"), theirs).max is None
    assert auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"max_flips": 2}, "a share in"), ({"max_flipps": 0}, "max_flips"), ({"max_auroc_loss": -1}, "not be below 0")],
)
def test_a_wrong_budget_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCardError, match=message):
        Budget.from_dict({**budget_of("fp16").to_dict(), **change})


def test_texts_come_from_the_file_first(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a red sign\n\ntwo dogs\n", encoding="utf-8")
    release = load_release("test_multimodal_nsfw.fusion")
    codec = release.model.codec()
    inputs = Inputs(release.card, codec, Check(texts=tmp_path / "texts.txt"))
    ids = inputs.base.feeds["input_ids"]
    assert np.array_equal(ids[:2], codec.encode(["a red sign", "two dogs"]).ids)
    assert not np.array_equal(ids[2], ids[1])
    (tmp_path / "texts.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(BadInputError, match="holds no text"):
        Inputs(release.card, codec, Check(texts=tmp_path / "texts.txt"))


def test_a_bundle_that_changes_while_it_is_verified_keeps_the_change(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = _copy(bundles, NSFWJS, tmp_path)
    policy = read_bundle(bundle).policy
    assert isinstance(policy, Policy)
    stricter = dataclasses.replace(policy, name="stricter")
    monkeypatch.setattr(compare, "_check_resize", lambda *_: use_policy(bundle, stricter))
    with pytest.raises(IncompatibleBundleError, match="was changed while it was verified"):
        verify(bundle, device="cpu")
    assert read_bundle(bundle).policy.name == "stricter"
