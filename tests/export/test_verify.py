"""`zoo verify` passes what is the same and fails what is not, down to one weight."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export import runtime
from export.bundle import MODEL, read_bundle
from export.probes import image_probes, placed_at_threshold, text_probes
from export.verify import BATCHES, MINIMUM, SIZES, verify
from zoo.card import ModelCard
from zoo.cli import run
from zoo.errors import BadInputError, ParityError, TamperedFileError
from zoo.files import sha256
from zoo.panel import bind
from zoo.registry import create_model, list_models, model_card
from zoo.release import load_release, write_release
from zoo.scorer import Feeds

CLIP, NSFWJS = "test_safeclip.random", "test_nsfwjs.random"
#: Those of full image size take their time.
LARGE = [name for name in list_models("test_*") if (image := model_card(name).image) and image.size > 128]
MODELS = [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in list_models("test_*")]


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


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_bundle_passes_and_says_so(bundles: dict[str, Path], tmp_path: Path, name: str) -> None:
    bundle = _copy(bundles, name, tmp_path)
    report = verify(bundle)
    report.raise_if_failed()
    assert not report.problems
    assert not report.flips
    assert report.at_threshold > 0
    assert report.inputs == MINIMUM + report.at_threshold
    assert report.max_difference < 1e-4
    assert report.resize_difference < 1e-4
    assert report.nearest < 0.01
    found = read_bundle(bundle).manifest.verification
    assert found is not None
    assert (found.passed, found.inputs, found.flips) == (True, report.inputs, 0)
    assert found.at_threshold == report.at_threshold
    with runtime.load(bundle, threads=1) as scorer:
        assert scorer.card.name == name


def test_other_weights_fail_with_status_1(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = _copy(bundles, CLIP, tmp_path)
    _perturb(bundle, 0.5)
    assert run(["verify", str(bundle)]) == 1
    shown = capsys.readouterr()
    assert f"FAILED against eager {CLIP}" in shown.out
    assert "verdicts flip, inputs [" in shown.out
    assert "does not answer what" in shown.err
    assert "logits differ by" in shown.err
    found = read_bundle(bundle).manifest.verification
    assert found is not None
    assert not found.passed


def test_a_small_change_fails_too(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = _copy(bundles, CLIP, tmp_path)
    _perturb(bundle, 0.01)
    report = verify(bundle)
    with pytest.raises(ParityError, match=r"logits differ by .*, tolerance 1e-04"):
        report.raise_if_failed()
    assert "tolerance 1e-04" in report.text()


def test_weights_that_are_no_numbers_fail(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = _copy(bundles, CLIP, tmp_path)
    _perturb(bundle, float("nan"))
    report = verify(bundle)
    with pytest.raises(ParityError, match="logits differ by nan"):
        report.raise_if_failed()
    found = read_bundle(bundle).manifest.verification
    assert found is not None
    assert not found.passed


def test_another_release_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    release = load_release(NSFWJS)
    write_release(create_model(NSFWJS), release.policy, tmp_path / "other")
    with pytest.raises(TamperedFileError, match=r"other weights than those that .* was exported from; export again"):
        verify(bundles[NSFWJS], model=str(tmp_path / "other"))


def test_too_few_inputs_are_refused(bundles: dict[str, Path]) -> None:
    with pytest.raises(BadInputError, match="count must be at least 256, got 255"):
        verify(bundles[NSFWJS], count=255)
    assert read_bundle(bundles[NSFWJS]).manifest.verification is None


def test_photos_are_used_beside_the_drawn_ones(
    bundles: dict[str, Path], golden: dict[str, bytes], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(golden["exif_rotated.jpg"])
    (photos / "b.txt").write_bytes(b"no image")
    spec = ModelCard.read(bundles[CLIP] / "card.json").image
    assert spec is not None
    with_photo, drawn = image_probes(3, spec, photos), image_probes(3, spec, None)
    assert with_photo.shape == drawn.shape == (3, 32, 32, 3)
    assert np.array_equal(with_photo[1:], drawn[:2])
    (photos / "a.jpg").unlink()
    with pytest.raises(BadInputError, match="holds no readable image"):
        image_probes(3, spec, photos)
    with pytest.raises(BadInputError, match="no such folder"):
        image_probes(3, spec, tmp_path / "none")


def test_probes_are_the_same_each_time_and_texts_of_all_lengths() -> None:
    assert np.array_equal(image_probes(4, None, None), image_probes(4, None, None))
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

    feeds: Feeds = {"image": image_probes(64, release.card.image, None)[:, :16, :16]}
    placed = placed_at_threshold(brightness, judge, feeds, brightness(feeds))
    scores = judge.unsafe_score(judge.category_scores(brightness(placed.feeds)))
    half = placed.count // 2
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
    assert placed.count == 16
    found = (placed.feeds["input_ids"] == 7).sum(axis=1)
    assert found.tolist() == [5] * 8 + [6] * 8
