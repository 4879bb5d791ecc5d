"""Manifests: what is read, what is refused with the close match, and splits that do not move or leak."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from zoo.data.copies import fingerprint
from zoo.data.manifest import Row, Split, read_manifest
from zoo.data.splits import assign_splits
from zoo.errors import BadDataError, BadInputError
from zoo.evaluation.labelling import Labelling

TENTHS = (0.8, 0.1, 0.1)


def _csv(folder: Path, *lines: str) -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


def test_a_csv_is_read_with_labels_and_splits(tmp_path: Path) -> None:
    path = _csv(tmp_path, "image,text,labels,split", 'a.jpg,"red, round",a|b ,dev', ",only text,,TEST", "b.jpg,,c,")
    assert read_manifest(path) == [
        Row(2, tmp_path / "a.jpg", "red, round", ("a", "b"), "val"),
        Row(3, None, "only text", (), "test"),
        Row(4, tmp_path / "b.jpg", None, ("c",), None),
    ]


def test_what_was_judged_is_told_from_what_is_absent(tmp_path: Path) -> None:
    path = _csv(tmp_path, "text,labels,judged", "one,a,a|b", "two,,b", "three,,")
    assert [row.judged for row in read_manifest(path)] == [("a", "b"), ("b",), ()]
    with pytest.raises(BadInputError, match=r'line 2: has the label "a", which is not among those judged: "b"'):
        read_manifest(_csv(tmp_path, "text,labels,judged", "one,a,b"))


def test_images_are_looked_for_under_the_image_root(tmp_path: Path) -> None:
    path = _csv(tmp_path, "image", "a.jpg")
    assert read_manifest(path, tmp_path / "photos")[0].image == tmp_path / "photos" / "a.jpg"


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    columns = {
        "image": ["a.jpg", None],
        "text": [None, "two"],
        "label": [1, 0],
        "labels": [["a", "b"], None],
        "split": ["validation", "train"],
    }
    path = tmp_path / "manifest.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert read_manifest(path) == [
        Row(2, tmp_path / "a.jpg", None, ("a", "b"), "val"),
        Row(3, None, "two", ("0",), "train"),
    ]


def test_columns_are_renamed(tmp_path: Path) -> None:
    path = _csv(tmp_path, "file,caption,nsfw,part", "a.jpg,red,1,train")
    names = {"image": "file", "text": "caption", "label": "nsfw", "split": "part"}
    assert read_manifest(path, columns=names) == [Row(2, tmp_path / "a.jpg", "red", ("1",), "train")]


@pytest.mark.parametrize(
    ("header", "row", "columns", "message"),
    [
        ("image,capton", "a.jpg,x", {"text": "caption"}, 'no column "caption"; did you mean "capton"'),
        ("image,text", "a.jpg,x", {"txt": "text"}, 'no role "txt"; did you mean "text"'),
        ("imge,label", "a.jpg,1", None, 'neither a column "image" nor "text"; did you mean "imge"'),
        ("image;label", "a.jpg;1", None, 'neither a column "image" nor "text"; fields are separated by commas'),
        ("label|text", "1|x", None, "fields are separated by commas, in .tsv by tabs"),
        ("text,split", "x,tset", None, 'line 2: split "tset"; did you mean "test"'),
    ],
)
def test_a_wrong_name_is_refused_with_the_close_match(
    tmp_path: Path, header: str, row: str, columns: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        read_manifest(_csv(tmp_path, header, row), columns=columns)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such manifest"),
        ("empty.csv", b"image,text\n", "has no rows"),
        ("latin.csv", b"text\n\xff\xfe\n", "not readable as UTF-8 text"),
        ("broken.parquet", b"text\nx\n", "not readable as Parquet"),
    ],
)
def test_what_is_no_manifest_is_refused_by_name(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError, match=rf"{name}: {message}"):
        read_manifest(tmp_path / name)


def _texts(*texts: str, split: Split | None = None) -> list[Row]:
    return [Row(number, None, text, (), split) for number, text in enumerate(texts, start=2)]


def test_the_split_hangs_on_the_content_alone() -> None:
    rows = _texts(*(f"caption {number}" for number in range(300)))
    wanted = {row.text: split for row, split in zip(rows, assign_splits(rows, {}, TENTHS, 0), strict=True)}
    more = rows + _texts(*(f"another {number}" for number in range(200)))
    random.Random(1).shuffle(more)
    found = {row.text: split for row, split in zip(more, assign_splits(more, {}, TENTHS, 0), strict=True)}
    assert {text: found[text] for text in wanted} == wanted
    assert assign_splits(rows, {}, TENTHS, 1) != list(wanted.values())


def test_the_fractions_are_kept_roughly() -> None:
    rows = _texts(*(f"caption {number}" for number in range(2000)))
    counts = Counter(assign_splits(rows, {}, TENTHS, 0))
    assert 1520 < counts["train"] < 1680
    assert 150 < counts["val"] < 250
    assert 150 < counts["test"] < 250
    # Shares need not add up to 1, and a share of nothing gets nothing.
    counts = Counter(assign_splits(rows, {}, (3, 0, 1), 0))
    assert 1400 < counts["train"] < 1600
    assert counts["val"] == 0


def test_equal_texts_never_straddle() -> None:
    rows = _texts(*(f"caption {number}" for number in range(100)), *(f"Caption\u200b  {n}" for n in range(100)))
    found = assign_splits(rows, {}, (1, 1, 1), 0)
    assert found[:100] == found[100:]
    assert len(set(found)) == 3


def _pictures(count: int) -> list[Image.Image]:
    """Smooth random pictures: as unlike each other as photos are."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 5, 5, 3)).astype(np.uint8)
    return [Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC) for pixels in small]


def _recompressed(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=40)
    return Image.open(stream)


def _prints(images: list[Image.Image]) -> dict[Path, bytes]:
    return {Path(f"{number}.jpg"): fingerprint(image) for number, image in enumerate(images)}


def test_copies_of_an_image_never_straddle() -> None:
    originals = _pictures(40)
    images = originals + [_recompressed(i) for i in originals] + [i.resize((97, 73)) for i in originals]
    rows = [Row(number, Path(f"{number}.jpg"), f"text {number}", (), None) for number in range(len(images))]
    found = assign_splits(rows, _prints(images), (1, 1, 1), 0)
    assert found[:40] == found[40:80] == found[80:]
    assert len(set(found)) == 3  # and unlike pictures do not all fall into one group


def test_captions_of_one_image_stay_together() -> None:
    rows = [Row(number, Path(f"{number % 30}.jpg"), f"text {number}", (), None) for number in range(60)]
    found = assign_splits(rows, {}, (1, 1, 1), 0)
    assert found[:30] == found[30:]
    assert len(set(found)) == 3


def test_a_named_split_wins_and_draws_the_copies_along() -> None:
    images = _pictures(20)
    prints = _prints([*images, *(_recompressed(image) for image in images)])
    named: dict[int, Split] = {**dict.fromkeys(range(10), "test"), **dict.fromkeys(range(10, 20), "train")}
    rows = [Row(number, Path(f"{number}.jpg"), None, (), named.get(number)) for number in range(40)]
    assert assign_splits(rows, prints, (0, 1, 0), 0) == (["test"] * 10 + ["train"] * 10) * 2


def test_of_two_named_splits_the_stricter_draws_the_copies_along() -> None:
    rows = [*_texts("a", split="train"), *_texts("a", split="test"), *_texts("a")]
    assert assign_splits(rows, {}, (0, 1, 0), 0) == ["train", "test", "test"]


def test_a_row_keeps_every_column_and_whether_labels_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("text,labels,source\nhello,,a corpus\n", encoding="utf-8")
    (row,) = read_manifest(path)
    assert row.record["source"] == "a corpus"
    assert row.listed
    assert Labelling("rude").label([row]) == 0  # an empty list names none
    path.write_text("text,label\nhello,\n", encoding="utf-8")
    (row,) = read_manifest(path)
    assert not row.listed
    assert Labelling("rude").label([row]) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,label,text\na.jpg,1,a red sign, very large\n", "line 2: 4 fields, but the header has 3"),
        ("image,text,label\na.jpg,red,1\n\nb.jpg,blue\n", "line 4: 2 fields, but the header has 3"),
        ('image,text,label\na.jpg,"red,1\nb.jpg,"blue",0\n', "line 2: not readable as CSV"),
        ('image,text,label\na.jpg,"red,1\nb.jpg,blue,0\n', "line 2: not readable as CSV: unexpected end"),
        (
            'image,text,label\nz.jpg,"x\ny",1\na.jpg,"red,1\nb.jpg,blue",0\nc.jpg,x,0\nd.jpg,y,1\n',
            "line 4: a quote that opens here is closed",
        ),
        ('label,image,text\n1,a.jpg,"red\n0,b.jpg,blue"\n', "line 2: a quote that opens here is closed in line 3"),
        ('image,text\na.jpg,"red\nb.jpg,blue\nc.jpg,green"\n', "line 2: a quote that opens here is closed in line 4"),
        ('text,label\n"red,1\nblue",0\n', "line 2: a quote that opens here is closed in line 3"),
        ('label,text\ncat,x\ndog,"red\ncat,blue"\n', "line 3: a quote that opens here is closed in line 4"),
        ("image,text, label\na.jpg,red,1\n", 'line 1: column 3 is called " label"'),
        ("image,text,\na.jpg,red,1\n", 'line 1: column 3 is called ""'),
        ("image,text,text\na.jpg,red,blue\n", 'line 1: two columns are called "text"'),
        ("text\n" + "x" * 200_000 + "\n", "line 2: not readable as CSV: field larger"),
        ("image,text,Label\na.jpg,red,1\n", 'the column "Label" is not read: call it "label"'),
        ("image,label,LABEL\na.jpg,0,1\n", 'the column "LABEL" is not read'),
        ("image,\u200blabel\na.jpg,1\n", 'line 1: column 2 is called "\\u200blabel"'),
        ("image,text\na.jpg,x\0y\n", "line 2: holds a NUL"),
        ("image,text\na.jpg,x\nimage,text\nb.jpg,y\n", "line 3: the header once more"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_with_the_physical_line(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadDataError) as caught:
        read_manifest(path)
    assert message in str(caught.value)
    if "\t" not in content and content.count(",") and "fields" in message:
        path = path.with_suffix(".tsv")
        path.write_text(content.replace(",", "\t"), encoding="utf-8")
        with pytest.raises(BadDataError, match="fields, but the header has"):
            read_manifest(path)


def test_quoted_fields_and_line_breaks_are_read_as_meant_at_their_physical_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"a ""red"", sign\nof two lines",1\n\nblue "sky",0\n', encoding="utf-8")
    rows = read_manifest(path)
    assert [(row.line, row.text, row.labels) for row in rows] == [
        (2, 'a "red", sign\nof two lines', ("1",)),
        (5, 'blue "sky"', ("0",)),
    ]


@pytest.mark.parametrize(
    ("header", "row", "text"),
    [
        ("image,text,label", 'a.jpg,"one, and\ntwo, three",1', "one, and\ntwo, three"),
        ("image,label,text", 'a.jpg,1,"one\ntwo, three, four"', "one\ntwo, three, four"),
        ("image,label,text", 'a.jpg,1,"one,two\n\nred,blue,green"', "one,two\n\nred,blue,green"),
        ("image,text,label", 'a.jpg,"one,\n",1', "one,\n"),
        ("text", '"one\ntwo"', "one\ntwo"),
    ],
)
def test_a_text_of_several_lines_may_hold_commas(tmp_path: Path, header: str, row: str, text: str) -> None:
    others = {"image": "b.jpg", "text": "plain", "label": "0"}
    rest = [",".join(others[name] for name in header.split(",")), row, row]
    assert [one.text for one in read_manifest(_csv(tmp_path, header, *rest))] == ["plain", text, text]


def test_what_is_neither_text_nor_number_is_no_role(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"text": "a", "label": NaN, "meta": {"x": 1}}\n{"text": "b", "label": 1}\n', encoding="utf-8")
    assert [row.labels for row in read_manifest(lines)] == [(), ("1",)]
    lines.write_text('{"image": {"path": "a.jpg"}}\n', encoding="utf-8")
    with pytest.raises(BadDataError, match="line 1: the image is dict, neither text nor a number"):
        read_manifest(lines)
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["a"], "label": [float("nan")], "raw": [b"a"]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert [row.labels for row in read_manifest(tmp_path / "rows.parquet")] == [()]
    with pytest.raises(BadDataError, match="line 2: the text is bytes"):
        read_manifest(tmp_path / "rows.parquet", columns={"text": "raw"})


def test_tsv_and_json_lines_say_the_same_as_csv(tmp_path: Path) -> None:
    wanted = [Row(2, None, "a, b", ("x", "y"), "train"), Row(3, None, "c", (), None)]
    tsv, lines = tmp_path / "rows.tsv", tmp_path / "rows.jsonl"
    tsv.write_text("text\tlabels\tsplit\na, b\tx|y\ttrain\nc\t\t\n", encoding="utf-8")
    lines.write_text('\n{"text": "a, b", "labels": ["x", "y"], "split": "train"}\n{"text": "c"}\n', encoding="utf-8")
    assert read_manifest(tsv) == wanted
    assert read_manifest(lines) == wanted
    for content, message in (
        ('{"text": "a"}\n{"text": "b"\n', "line 2: not readable as JSON"),
        ('{"text": "a"}\n["b"]\n', "line 2: must be an object of columns, got list"),
        ('{"text": "a", "text": "b"}\n', "line 1: .*the key 'text' stands there twice"),
    ):
        lines.write_text(content, encoding="utf-8")
        with pytest.raises(BadDataError, match=message):
            read_manifest(lines)
