"""A tree of classes becomes a manifest that training reads, and an odd tree is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.cli import run
from zoo.data.folder import write_folder_manifest
from zoo.data.manifest import read_manifest, write_records
from zoo.errors import BadInputError


def _tree(root: Path, splits: dict[str, int], classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
                coarse.resize((32, 32)).save(folder / f"{number}.png")
    return root


def test_splits_and_a_hashed_validation_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _tree(tmp_path / "photos", {"train": 60, "test": 5})
    (root / "train" / "cat" / "copy.png").write_bytes((root / "train" / "cat" / "0.png").read_bytes())
    (root / "train" / "cat" / "notes.txt").write_text("not an image", encoding="utf-8")
    (root / "train" / "cat" / ".hidden").write_text("", encoding="utf-8")
    out = tmp_path / "photos" / "manifest.csv"
    assert run(["data", "folder", str(root), "--out", str(out), "--val-share", "0.25"]) == 0
    shown = capsys.readouterr().out
    assert "left out, because their names are not those of images: 1" in shown
    rows = read_manifest(out)
    counts = Counter((row.split, *row.labels) for row in rows)
    assert counts["test", "cat"] == counts["test", "dog"] == 5
    assert 15 <= counts["val", "cat"] + counts["val", "dog"] <= 46
    assert len(rows) == 131
    assert all(row.image is not None and row.image.is_file() for row in rows)
    split = {str(row.image): row.split for row in rows}
    assert split[str(root / "train/cat/copy.png")] == split[str(root / "train/cat/0.png")]
    for number in range(0, 60, 2):  # what goes moves nobody else
        (root / "train" / "dog" / f"{number}.png").unlink()
    write_folder_manifest(root, out, val_share=0.25)
    assert all(split[str(row.image)] == row.split for row in read_manifest(out))
    write_folder_manifest(root, out, val_share=0.25, seed=1)
    assert any(split[str(row.image)] != row.split for row in read_manifest(out))


def test_without_splits_training_assigns_them_and_images_elsewhere_are_found(tmp_path: Path) -> None:
    root = _tree(tmp_path / "photos", {"": 3})
    out = tmp_path / "elsewhere" / "manifest.csv"
    report = write_folder_manifest(root, out)
    assert report.counts == {("", "cat"): 3, ("", "dog"): 3}
    assert {row.split for row in read_manifest(out)} == {None}
    assert all(row.image is not None and row.image.is_file() for row in read_manifest(out))
    assert str(tmp_path) not in out.read_text(encoding="utf-8")  # the manifest may go to others


def test_a_validation_split_is_kept(tmp_path: Path) -> None:
    root = _tree(tmp_path, {"Training": 2, "valid": 2})
    counts = write_folder_manifest(root, tmp_path / "m.csv").counts
    assert {split for split, _ in counts} == {"train", "val"}
    with pytest.raises(BadInputError, match="has a split for validation already"):
        write_folder_manifest(root, tmp_path / "m.csv", val_share=0.1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no class folders"),
        (["a.png"], "an image in no class folder"),
        (["train/a.png"], "an image in no class folder"),
        (["train/cat/a.png", "birds/b.png"], "train are splits, but birds is not"),
        (["test/cat/a.png"], "has the splits test, but no train"),
        (["train/cat/a.png", "test/dog/a.png"], 'the class "dog" has no images in train'),
        (["train/cat/a.png", "training/cat/a.png"], "are the split train"),
        (["cat/black/a.png"], "a folder inside of a class"),
        (["a|b/a.png"], 'a class may not hold "|"'),
        (["cat/a.txt"], "holds no images; first file"),
    ],
)
def test_odd_trees_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    with pytest.raises(BadInputError, match=message.replace("|", r"\|")):
        write_folder_manifest(root, tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(BadInputError, match="val_share lies in"):
        write_folder_manifest(_tree(tmp_path, {"train": 1}), tmp_path / "m.csv", val_share=share)
    with pytest.raises(BadInputError, match="no such folder"):
        write_folder_manifest(tmp_path / "none", tmp_path / "m.csv")


def test_a_manifest_with_other_columns_is_not_replaced(tmp_path: Path) -> None:
    """`zoo data folder photos --out photos/manifest.csv` where somebody keeps captions in it."""
    path = tmp_path / "manifest.csv"
    path.write_text("image,text,label\na.jpg,written by hand,1\n", encoding="utf-8")
    with pytest.raises(BadInputError, match=r"exists, and is not what this writes \(image,label,split\)"):
        write_records(path, ("image", "label", "split"), [])
    assert "written by hand" in path.read_text(encoding="utf-8")
    for rows in ([("a.jpg", "1", "")], [("b.jpg", "1", "")]):
        write_records(tmp_path / "own.csv", ("image", "label", "split"), rows)
    assert "b.jpg" in (tmp_path / "own.csv").read_text(encoding="utf-8")
