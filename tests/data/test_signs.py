"""The drawn road signs: right labels and captions, nothing held out in train, the same bytes again, no overwriting."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from zoo.contract.policy import Policy
from zoo.data.signs import COLOURS, HELD_OUT, PLACES, SHAPES, Signs, caption, draw, write_signs
from zoo.errors import BadInputError
from zoo.inputs.image import decode

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = {word: name for name, (_, words) in COLOURS.items() for word in words}


def _rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _kind(text: str) -> tuple[str, str]:
    """The (shape, colour) that a caption names, read back by its words alone."""
    shapes = {name for name, nouns in SHAPES.items() if any(noun in text for noun in nouns)}
    colours = {name for word, name in WORDS.items() if word in text.split()}
    assert len(shapes) == 1, text
    assert len(colours) == 1, text
    return shapes.pop(), colours.pop()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_signs(tmp_path_factory.mktemp("signs"), train=240, val=30, test=96, size=48, seed=3).parent


def test_the_manifest_names_real_jpegs_of_the_asked_size(dataset: Path) -> None:
    rows = _rows(dataset / "manifest.csv")
    assert Counter(row["split"] for row in rows) == {"train": 240, "val": 30, "test": 96}
    assert len({row["image"] for row in rows}) == len(rows)
    for row in rows:
        assert (dataset / row["image"]).read_bytes()[:3] == b"\xff\xd8\xff"
    assert decode(dataset / rows[0]["image"]).size == (48, 48)
    assert {path.name for path in dataset.iterdir()} == {"images", "manifest.csv", "signs.json"}


def test_labels_agree_with_what_the_captions_say(dataset: Path) -> None:
    rows = _rows(dataset / "manifest.csv")
    for row in rows:
        forbidden = _kind(row["text"]) in {("octagon", "red"), ("triangle", "yellow")}
        assert row["label"] == str(int(forbidden)), row
    share = sum(row["label"] == "1" for row in rows) / len(rows)
    assert 0.28 < share < 0.40


def test_held_out_combinations_are_in_test_only_and_each_of_them(dataset: Path) -> None:
    rows = _rows(dataset / "manifest.csv")
    assert {row["split"] for row in rows if row["held_out"] == "1"} == {"test"}
    held = [row for row in rows if row["held_out"] == "1"]
    assert len(held) == 24
    assert {_kind(row["text"]) for row in held} == {(family["shape"], family["colour"]) for family in HELD_OUT}
    for row in rows:
        if row["split"] != "test":
            assert _kind(row["text"]) not in {("star", "blue"), ("square", "green")}, row


def test_hard_negatives_are_common(dataset: Path) -> None:
    innocent = [_kind(row["text"]) for row in _rows(dataset / "manifest.csv") if row["label"] == "0"]
    near = [kind for kind in innocent if kind[0] in ("octagon", "triangle") or kind[1] in ("red", "yellow")]
    assert len(near) / len(innocent) > 0.5


def test_captions_name_the_count_and_place_that_are_drawn() -> None:
    rng = np.random.default_rng(0)
    texts = {caption(Signs("star", "green", 2, "bottom left"), rng) for _ in range(300)}
    assert len(texts) > 60
    for text in texts:
        assert not set(text.split()) & {"single", "three", "3", "top", "upper", "right", "middle"}, text
        assert set(text.replace(",", "").split()) & {"two", "pair", "2", "left"}, text


def test_articles_and_plurals() -> None:
    rng = np.random.default_rng(1)
    one = " | ".join(caption(Signs("octagon", "black", 1, "top"), rng) for _ in range(300))
    many = " | ".join(caption(Signs("diamond", "red", 3, "top"), rng) for _ in range(300))
    boxes = " | ".join(caption(Signs("square", "blue", 3, "top"), rng) for _ in range(300))
    assert "a octagon" not in one
    assert "an octagon in black" in one
    assert "a black octagon" in one
    assert "an black" not in one
    assert "rhombuses" in many
    assert "boxes" in boxes


@pytest.mark.parametrize("place", list(PLACES))
def test_signs_are_drawn_where_the_caption_says(place: str) -> None:
    signs = Signs("octagon", "black", 3, place)
    pixels = np.asarray(draw(signs, 80, np.random.default_rng(5)), dtype=np.float64).mean(axis=2)
    rows, columns = np.nonzero(pixels < 70)
    assert len(rows) > 200, "no dark signs found"
    across = 0 if "left" in place else 2 if "right" in place else 1
    down = 0 if "top" in place else 2 if "bottom" in place else 1
    thirds = [np.digitize(axis.mean() / 80, (0.42, 0.58)) for axis in (columns, rows)]
    assert thirds == [across, down]


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_sign_is_cut_off(shape: str, count: int) -> None:
    for seed in range(6):
        signs = Signs(shape, "black", count, "top left")
        dark = np.asarray(draw(signs, 80, np.random.default_rng(seed)), dtype=np.float64).mean(axis=2) < 70
        assert dark.any()
        assert not dark[0].any()
        assert not dark[:, 0].any()


def test_the_same_parameters_give_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        write_signs(tmp_path / name, train=6, val=2, test=4, size=40, seed=seed)
    one, two, three = (_digest(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert all(one[name] != three[name] for name in one)


def test_a_complete_dataset_is_left_alone(tmp_path: Path) -> None:
    manifest = write_signs(tmp_path, train=4, val=0, test=0, size=32)
    (tmp_path / "images" / "train_00000.jpg").unlink()  # would come back if it drew again
    assert write_signs(tmp_path, train=4, val=0, test=0, size=32) == manifest
    assert not (tmp_path / "images" / "train_00000.jpg").exists()


def test_other_contents_are_refused_and_kept(tmp_path: Path) -> None:
    write_signs(tmp_path / "other", train=4, val=0, test=0, size=32)
    before = _digest(tmp_path / "other")
    with pytest.raises(BadInputError, match="empty"):
        write_signs(tmp_path / "other", train=5, val=0, test=0, size=32)
    assert _digest(tmp_path / "other") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(BadInputError, match="mine"):
        write_signs(tmp_path / "mine", train=1)
    with pytest.raises(BadInputError, match=r"thesis\.txt"):
        write_signs(tmp_path / "mine" / "thesis.txt", train=1)


def test_an_interrupted_run_is_not_taken_for_a_dataset(tmp_path: Path) -> None:
    write_signs(tmp_path, train=3, val=0, test=0, size=32)
    assert json.loads((tmp_path / "signs.json").read_text())["train"] == 3
    (tmp_path / "signs.json").unlink()
    with pytest.raises(BadInputError):
        write_signs(tmp_path, train=3, val=0, test=0, size=32)


@pytest.mark.parametrize("wrong", [{"train": -1}, {"train": 0, "val": 0, "test": 0}, {"size": 8}, {"seed": -1}])
def test_senseless_numbers_are_refused_before_anything_is_written(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(BadInputError, match="size"):
        write_signs(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_no_phrase_of_the_policy_was_ever_a_caption() -> None:
    policy = Policy.read(REPOSITORY / "configs" / "policy" / "quickstart.yaml")
    phrases = {phrase for category in policy.categories for phrase in category.descriptors}
    rng = np.random.default_rng(2)
    for shape in SHAPES:
        for colour in COLOURS:
            for count in (1, 2, 3):
                texts = {caption(Signs(shape, colour, count, "centre"), rng) for _ in range(40)}
                assert not texts & phrases


def test_the_policy_blocks_the_forbidden_signs_and_knows_every_other() -> None:
    policy = Policy.read(REPOSITORY / "configs" / "policy" / "quickstart.yaml")
    forbidden, neutral = policy.categories
    assert (forbidden.name, forbidden.action, neutral.action) == ("forbidden_signs", "block", "allow")
    assert {_kind(phrase) for phrase in forbidden.descriptors} == {("octagon", "red"), ("triangle", "yellow")}
    every = {(shape, colour) for shape in SHAPES for colour in COLOURS}
    assert {_kind(phrase) for phrase in neutral.descriptors} == every - {("octagon", "red"), ("triangle", "yellow")}
