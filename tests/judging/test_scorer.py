"""The scorer: a broken item never costs the others their answer, and nothing that was not read is safe."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.verdicts import same_verdict
from zoo.contract.verdict import Place, Verdict
from zoo.errors import BadInputError, ServiceError
from zoo.inputs.image import Pixels
from zoo.judging.judge import bind
from zoo.judging.scorer import Feeds, Ready, Scorer, by_length
from zoo.registry import default_policy, list_models, model_card, model_entry
from zoo.release.store import load_release, load_scorer, model_scorer

TEXTS = "test_prompt_bert.random"
BOTH, EITHER, IMAGES = "test_multimodal_nsfw.as_released", "test_multimodal_nsfw.fusion", "test_safeclip.random"


@pytest.fixture(scope="module")
def scorers() -> Iterator[dict[str, Scorer]]:
    made = {name: load_scorer(name, batch_size=3) for name in list_models("test_*")}
    yield made
    for scorer in made.values():
        scorer.close()


def _images(count: int) -> list[Pixels]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (30 + 3 * i, 50, 3), dtype=np.uint8) for i in range(count)]


@pytest.mark.parametrize("name", [name for name in list_models("test_*") if model_card(name).image])
def test_broken_items_among_good_ones(name: str, scorers: dict[str, Scorer], tmp_path: Path) -> None:
    scorer = scorers[name]
    gone = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.jpg"))
    bad: list[Any] = [b"", gone, "null\0.jpg", np.zeros((3, 8, 8), dtype=np.uint8), b"<html></html>"]
    good = _images(5)
    images: list[Any] = [good[0], bad[0], good[1], bad[1], bad[2], bad[3], good[2], bad[4], good[3], good[4]]
    texts = [f"text {i}" for i in range(len(images))] if scorer.card.reads_text else None
    verdicts = scorer.verdicts(images, texts)
    assert len(verdicts) == len(images)
    for i, (image, verdict) in enumerate(zip(images, verdicts, strict=True)):
        if any(image is one for one in bad):
            assert (verdict.status, verdict.decision, verdict.scores) == ("unreadable", "unknown", {})
            assert verdict.detail
        else:
            assert verdict.status == "ok"
            assert same_verdict(verdict, scorer.verdict(image, texts[i] if texts else None), 1e-6)
        assert Verdict.from_dict(verdict.to_dict()) == verdict


@pytest.mark.parametrize("name", [EITHER, IMAGES])
@pytest.mark.parametrize(
    "no_image",
    [5, [[1, 2], [3, 4]], {"image": b""}, io.StringIO("text"), np.zeros((9, 9, 3), np.int64), torch.zeros(3, 9, 9) > 0],
    ids=["number", "list", "dict", "text", "int64", "bool"],
)
def test_what_is_no_image_is_an_error_of_the_caller(name: str, no_image: Any, scorers: dict[str, Scorer]) -> None:
    scorer, judged = scorers[name], list[Feeds]()
    engine, scorer.engine = scorer.engine, judged.append  # type: ignore[assignment]
    try:
        for ask in (
            lambda: scorer.verdict(no_image),
            lambda: scorer.prepare(no_image),
            lambda: scorer.verdicts([*_images(7), no_image]),
            lambda: next(scorer.stream([*_images(7), no_image])),
        ):
            with pytest.raises(TypeError, match="an image is a path"):
                ask()
    finally:
        scorer.engine = engine
    assert judged == []


def test_pillow_images_tensors_and_streams_are_judged_as_their_files(scorers: dict[str, Scorer]) -> None:
    pixels = _images(1)[0]
    image, stream = Image.fromarray(pixels), io.BytesIO()
    image.save(stream, "PNG")
    stream.seek(0)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    wanted = scorers[IMAGES].verdict(pixels)
    for verdict in scorers[IMAGES].verdicts([image, stream, tensor, tensor / 255, pixels / 255]):
        assert same_verdict(verdict, wanted, 1e-6)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_a_pillow_image_without_a_range_is_unreadable_as_its_file(mode: str, scorers: dict[str, Scorer]) -> None:
    """Its type is taken: what it holds comes from a file as a rule."""
    image, stream = Image.new(mode, (9, 9)), io.BytesIO()
    image.save(stream, "TIFF")
    for source in (image, stream.getvalue()):
        verdict = scorers[IMAGES].verdict(source)
        assert verdict.status == "unreadable"
        assert "no defined" in verdict.detail


@pytest.mark.parametrize("name", [EITHER, TEXTS])
def test_a_broken_text_costs_only_its_item(name: str, scorers: dict[str, Scorer]) -> None:
    texts: list[Any] = ["a", "x" * 200_000, b"bytes", "b", "long " * 100]
    verdicts = scorers[name].verdicts(texts=texts)
    assert [verdict.status for verdict in verdicts] == ["ok", "unreadable", "unreadable", "ok", "ok"]
    assert [sorted(verdict.unseen or {}) for verdict in verdicts] == [[], [], [], [], ["tokens"]]
    assert "200,000 characters" in verdicts[1].detail


def test_a_required_input_that_is_missing_is_said(scorers: dict[str, Scorer]) -> None:
    image = _images(1)[0]
    verdicts = scorers[BOTH].verdicts([image, None, image, None], [None, "a", "a", None])
    assert [verdict.status for verdict in verdicts] == ["missing_input", "missing_input", "ok", "missing_input"]
    assert [verdict.detail.split(" needs ")[-1].split(",")[0] for verdict in verdicts if verdict.detail] == [
        "text",
        "image",
        "image and text",
    ]
    assert scorers[IMAGES].verdict().status == "missing_input"
    either = scorers[EITHER].verdicts([image, None, None], [None, "a", None])
    assert [verdict.status for verdict in either] == ["ok", "ok", "missing_input"]


def test_text_for_a_model_of_images_is_refused_and_an_alternative_named(scorers: dict[str, Scorer]) -> None:
    refusal = r"judges images only.*zoo list '\*multimodal\*'"
    with pytest.raises(BadInputError, match=refusal):
        scorers[IMAGES].verdict(_images(1)[0], "a")
    with pytest.raises(BadInputError, match=refusal):
        scorers[IMAGES].verdicts(texts=["a"])
    assert list_models("*multimodal*")


def test_an_image_for_a_model_of_texts_is_refused(scorers: dict[str, Scorer]) -> None:
    with pytest.raises(BadInputError, match="reads texts only: no image can be judged"):
        scorers[TEXTS].verdict(_images(1)[0], "a")
    assert scorers[TEXTS].verdict().detail.startswith(f"{TEXTS} needs text")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((None, None), "nothing to judge"),
        ((["a.jpg"], ["a", "b"]), "1 images and 2 texts"),
        (("a.jpg", None), r"for a single one use verdict\(\)"),
        ((None, "a text"), r"for a single one use verdict\(\)"),
    ],
)
def test_calls_that_make_no_sense_are_refused(arguments: Any, named: str, scorers: dict[str, Scorer]) -> None:
    with pytest.raises(BadInputError, match=named):
        scorers[EITHER].verdicts(*arguments)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"threads": 0}])
def test_sizes_below_one_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="at least 1"):
        load_scorer(IMAGES, **options)


def test_the_order_is_kept_over_batches(scorers: dict[str, Scorer]) -> None:
    scorer, images = scorers[IMAGES], _images(10)
    batches = list(scorer.stream(images))
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    flat = [verdict for batch in batches for verdict in batch]
    alone = [scorer.verdict(image) for image in images]
    assert all(same_verdict(one, other, 1e-6) for one, other in zip(flat, alone, strict=True))
    assert len({tuple(verdict.scores.values()) for verdict in flat}) == 10
    assert scorer.verdicts([]) == []


def test_a_stack_of_images_is_a_list_of_images(scorers: dict[str, Scorer]) -> None:
    stack = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)
    assert scorers[IMAGES].verdicts(stack) == scorers[IMAGES].verdicts(list(stack))


def test_sources_are_named(scorers: dict[str, Scorer], golden: dict[str, bytes], tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("pixel.png", "thin.png")]
    for path in paths:
        path.write_bytes(golden[path.name])
    verdicts = scorers[IMAGES].verdicts([paths[0], str(paths[1]), golden["grey.jpg"]])
    assert [verdict.source for verdict in verdicts] == [str(paths[0]), str(paths[1]), ""]
    assert {verdict.status for verdict in verdicts} == {"ok"}


def test_scores_that_are_none_are_never_safe() -> None:
    release = load_release(IMAGES)
    with model_scorer(release.model, release.policy) as scorer:
        columns = len(scorer.judge.outputs)

        def engine(feeds: Feeds) -> np.ndarray[Any, np.dtype[np.float32]]:
            scores = np.full((len(feeds["image"]), columns), 1 / columns, dtype=np.float32)
            scores[1] = np.nan
            return scores

        broken = Scorer(scorer.judge, None, engine)
        assert [verdict.status for verdict in broken.verdicts([np.zeros((8, 8, 3), np.uint8)] * 3)] == [
            "ok",
            "invalid_scores",
            "ok",
        ]


def test_eight_threads_get_the_same_answers(scorers: dict[str, Scorer]) -> None:
    images = _images(8)
    texts = [f"{'word ' * i}end" for i in range(8)]
    expected = scorers[EITHER].verdicts(images, texts)

    def work(_: int) -> list[Verdict]:
        return [verdict for _ in range(3) for verdict in scorers[EITHER].verdicts(images, texts)]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(work, range(8)):
            assert all(same_verdict(one, other, 1e-6) for one, other in zip(found, expected * 3, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_refused_instead_of_waiting_for_threads_it_has_not(scorers: dict[str, Scorer]) -> None:
    """As of a server that loads its model before it forks its workers."""
    scorer = scorers[IMAGES]
    picture = np.zeros((8, 8, 3), np.uint8)
    ready = scorer.prepare(picture)
    assert scorer.verdicts([picture, picture])[0].status == "ok"
    for judge in (
        lambda: scorer.verdicts([picture]),
        lambda: scorer.verdict(picture),
        lambda: scorer.judge_ready([ready]),
    ):
        child = os.fork()
        if not child:
            signal.alarm(60)  # else it would wait forever
            answer = 1
            try:
                judge()
            except ServiceError as problem:
                answer = 0 if "load it again in each process" in str(problem) else 2
            finally:
                os._exit(answer)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_texts_of_much_the_same_length_share_a_call_and_come_back_in_order() -> None:
    """Items of several windows, too: each row has its own answer, and few tokens are filled up."""
    entry = model_entry("prompt_injection_minilm.jailguard")
    shapes: list[tuple[int, ...]] = []

    def engine(fed: Feeds) -> NDArray[np.floating]:
        shapes.append(fed["input_ids"].shape)
        assert (fed["attention_mask"].sum(axis=1) == fed["input_ids"].astype(bool).sum(axis=1)).all()
        return np.asarray(fed["input_ids"].max(axis=1, keepdims=True) / 1000)

    def ready(number: int, length: int, windows: int) -> Ready:
        ids = np.full((windows, length), number) + np.arange(windows)[:, None]
        places = tuple(Place(characters=(row, row + 1)) for row in range(windows))
        return Ready("", None, None, ids, np.ones_like(ids), places)

    lengths, windows = [9, 128, 12, 128, 60, 9], [1, 2, 1, 3, 1, 1]
    items = [ready(100 * (n + 1), *one) for n, one in enumerate(zip(lengths, windows, strict=True))]
    with Scorer(bind(entry.card, default_policy(entry)), None, engine, batch_size=4) as scorer:
        found = [verdict.scores["injection"] for verdict in scorer.judge_ready(items)]
    assert found == pytest.approx([0.1, 0.201, 0.3, 0.402, 0.5, 0.6])  # of windows the highest
    assert shapes == [(3, 12), (1, 60), (4, 128), (1, 128)]


def test_groups_by_length() -> None:
    assert by_length([]) == []
    assert by_length([0, 0]) == [[0, 1]]
    assert by_length([7, 128, 9, 8]) == [[0, 3, 2], [1]]
    assert by_length([30, 31, 31]) == [[0, 1, 2]]  # a call of its own costs more than a token
