"""The proxy manifest: labels follow from captions and prompt, splits do not mix, and nothing moves."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest

from zoo.cli import run
from zoo.data.manifest import Row, read_manifest
from zoo.data.proxy import KINDS, write_proxy
from zoo.errors import BadInputError

WORDS = ("dog", "puppies")


def _captions(folder: Path, photos: int = 400, skip: int = -1) -> Path:
    """A fifth of the photos with a dog in one of two captions; of four photos three for training, one to validate."""
    path = folder / "captions.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption", "split"])
        for number in range(photos):
            if number != skip:
                second = ("A Dog, running", "two puppies")[number % 2] if number % 5 == 0 else "a hotdog stand"
                for caption in (f"photo {number}", f"{second} {number}"):
                    writer.writerow([f"images/{number}.jpg", caption, "dev" if number % 4 == 0 else "train"])
    return path


def _write(folder: Path, captions: Path, **options: float) -> list[Row]:
    write_proxy(captions, folder / "proxy" / "manifest.csv", WORDS, columns={"text": "caption"}, **options)  # type: ignore[arg-type]
    return read_manifest(folder / "proxy" / "manifest.csv")


def _number(row: Row) -> int:
    assert row.image is not None
    return int(row.image.stem)


def test_labels_follow_from_the_captions_and_the_prompt(tmp_path: Path) -> None:
    rows = _write(tmp_path, _captions(tmp_path), rows_per_image=2)
    with (tmp_path / "proxy" / "manifest.csv").open(encoding="utf-8") as stream:
        kinds = [record["kind"] for record in csv.DictReader(stream)]
    assert set(kinds) == set(KINDS)
    for row, kind in zip(rows, kinds, strict=True):
        shown = _number(row) % 5 == 0
        asked = any(word in (row.text or "").casefold().replace("hotdog", "") for word in ("dog", "puppies"))
        wanted = {"unsafe": shown or asked, "in_image": shown, "in_prompt": asked}
        assert set(row.labels) == {label for label, there in wanted.items() if there}
        assert kind == {(1, 1): "both", (1, 0): "image", (0, 1): "prompt", (0, 0): "neither"}[shown, asked]


def test_the_images_are_found_from_where_the_manifest_lies(tmp_path: Path) -> None:
    rows = _write(tmp_path, _captions(tmp_path / "elsewhere"))
    assert {row.image.resolve().parent for row in rows if row.image} == {tmp_path / "elsewhere" / "images"}


@pytest.mark.parametrize("mismatch", [0.0, 0.5, 1.0])
def test_the_prompt_is_another_photos_in_a_known_share_and_of_the_same_split(tmp_path: Path, mismatch: float) -> None:
    rows = _write(tmp_path, _captions(tmp_path), mismatch=mismatch)
    split = {_number(row): row.split for row in rows}
    others = [(_number(row), int((row.text or "").split()[-1])) for row in rows]
    share = sum(own != other for own, other in others) / len(others)
    assert share == pytest.approx(mismatch, abs=0.1 if mismatch == 0.5 else 0)
    assert all(split[own] == split[other] for own, other in others)
    if mismatch == 1:
        assert len({other for _, other in others}) > len(others) / 3  # not a few captions again and again


def test_validation_photos_are_divided_and_only_training_photos_have_several_rows(tmp_path: Path) -> None:
    rows = _write(tmp_path, _captions(tmp_path), rows_per_image=3, test_share=0.3)
    by_photo = defaultdict(list)
    for row in rows:
        by_photo[_number(row)].append(row.split)
    assert {number for number, splits in by_photo.items() if "train" in splits} == {n for n in range(400) if n % 4}
    assert all(splits == ["train"] * 3 or len(splits) == 1 for splits in by_photo.values())
    tested = sum(splits == ["test"] for splits in by_photo.values())
    assert tested / 100 == pytest.approx(0.3, abs=0.1)


def test_a_named_test_split_stays_as_it_is(tmp_path: Path) -> None:
    captions = _captions(tmp_path)
    captions.write_text(captions.read_text(encoding="utf-8") + "images/t.jpg,cat 1,test\nimages/u.jpg,cat 2,test\n")
    splits = {row.image.stem: row.split for row in _write(tmp_path, captions) if row.image}
    assert {name for name, split in splits.items() if split == "test"} == {"t", "u"}


def test_rows_stay_when_a_photo_goes(tmp_path: Path) -> None:
    before = _write(tmp_path / "a", _captions(tmp_path / "a"))
    after = {_number(row): row for row in _write(tmp_path / "b", _captions(tmp_path / "b", skip=7))}
    kept = [(row, after[_number(row)]) for row in before if _number(row) != 7]
    moved = [(a, b) for a, b in kept if (a.text, a.labels, a.split) != (b.text, b.labels, b.split)]
    assert len(moved) <= 5
    assert all((a.text or "").split()[-1] == "7" for a, _ in moved)  # those that had its captions
    other = _write(tmp_path / "c", _captions(tmp_path / "c"), seed=1)
    assert [row.text for row in other] != [row.text for row in before]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mismatch": 1.5}, r"mismatch is a share in \[0, 1\], got 1.5"),
        ({"test_share": -0.1}, "test_share is a share"),
        ({"rows_per_image": 0}, "rows_per_image must be at least 1, got 0"),
    ],
)
def test_a_wrong_number_is_refused(tmp_path: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        _write(tmp_path, _captions(tmp_path), **options)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.jpg,one,train", "a.jpg,two,dev"], "line 3: .*a.jpg is in train and in val"),
        (["a.jpg,,train"], "line 2: a caption needs image, text and split, and text is missing"),
        (["a.jpg,one,"], "line 2: .* and split is missing"),
        (["a.jpg,one,train"], "the split train has one photo"),
    ],
)
def test_captions_that_cannot_be_used_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("\n".join(["image,text,split", *lines]), encoding="utf-8")
    with pytest.raises(BadInputError, match=message):
        write_proxy(path, tmp_path / "out.csv", WORDS, mismatch=1.0)
    with pytest.raises(BadInputError, match="name at least one word"):
        write_proxy(path, tmp_path / "out.csv", (" ",))


def test_the_command_writes_the_manifest_and_prints_the_kinds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "manifest.csv"
    given = ["--captions", str(_captions(tmp_path)), "--columns", "text=caption", "--positive-words", "dog,puppies"]
    assert run(["data", "proxy", *given, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in KINDS)
    assert len(read_manifest(out)) == 400


@pytest.mark.shared_data
def test_flickr8k_has_every_kind_in_every_split(tmp_path: Path, shared: Path) -> None:
    table = write_proxy(
        shared / "flickr8k_small" / "captions.csv",
        tmp_path / "manifest.csv",
        ("dog", "dogs", "puppy", "puppies"),
        columns={"text": "caption"},
    )
    assert {split: counts.total() for split, counts in table.items()}["train"] == 6000
    for counts in table.values():
        shown = (counts["both"] + counts["image"]) / counts.total()
        assert 0.2 < shown < 0.3
        assert min(counts[kind] for kind in KINDS) / counts.total() > 0.05


def test_the_captions_are_not_replaced_by_what_is_made_of_them(tmp_path: Path) -> None:
    captions = _captions(tmp_path, photos=8)
    (tmp_path / "link.csv").symlink_to(captions)
    before = captions.read_bytes()
    for out in (captions, tmp_path / "link.csv"):
        with pytest.raises(BadInputError, match="is what this reads"):
            write_proxy(captions, out, WORDS, columns={"text": "caption"})
    assert captions.read_bytes() == before
