"""What is to be judged is found by name, and nothing that is there is left out in silence."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from zoo.data.listing import Input, list_items
from zoo.errors import BadArgumentError, BadDataError


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/deep/er").mkdir(parents=True)
    image = Image.new("RGB", (4, 4))
    for name in ("b.jpg", "a.PNG", "deep/er/c.webp"):
        image.save(tmp_path / "photos" / name)
    image.save(tmp_path / "photos/deep/renamed.txt", "PNG")
    (tmp_path / "photos/cut.dat").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "photos/clip.mp4").write_bytes(b"")
    (tmp_path / "photos/notes.md").write_text("nothing to see", encoding="utf-8")
    return tmp_path


def _images(*inputs: str, lines: tuple[str, ...] = ()) -> list[str | None]:
    return [item.image for item in list_items(inputs, lines).items]


def test_a_folder_is_taken_whole_and_says_what_it_holds_besides(photos: Path) -> None:
    found = list_items(["photos"])
    names = ["a.PNG", "b.jpg", "clip.mp4", "cut.dat", "deep/renamed.txt", "deep/er/c.webp"]
    assert [item.image for item in found.items] == [str(Path("photos", name)) for name in names]
    assert all(item.source == item.image for item in found.items)
    assert found.passed_over == (str(Path("photos/notes.md")),)


@pytest.mark.skipif(sys.platform == "win32", reason="links take rights on Windows")
def test_linked_folders_are_taken_once_and_never_in_circles(photos: Path) -> None:
    os.symlink(photos / "photos", photos / "photos/deep/round")
    os.symlink(photos / "elsewhere", photos / "photos/other")
    (photos / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(photos / "elsewhere/far.gif")
    found = _images("photos")
    assert len(found) == 7
    assert str(Path("photos/other/far.gif")) in found


def test_words_keep_their_order_and_lists_patterns_and_lines_are_followed(photos: Path) -> None:
    (photos / "list.txt").write_text("\ufeffphotos/b.jpg\r\n\nphotos/a.PNG\n", encoding="utf-8")
    assert _images("z.jpg", "list.txt", "-", "photos/**/*.webp", lines=("one.jpg\n", "two.jpg")) == [
        *("z.jpg", "photos/b.jpg", "photos/a.PNG", "one.jpg", "two.jpg"),
        str(Path("photos/deep/er/c.webp")),
    ]
    (photos / "odd[1].jpg").touch()
    assert _images("odd[1].jpg") == ["odd[1].jpg"]  # a file of that name is no pattern


def test_rows_of_a_manifest_have_images_texts_or_both(photos: Path) -> None:
    (photos / "rows.csv").write_text("picture,text\nphotos/b.jpg,a dog\nphotos/a.PNG,\n,a cat\n", encoding="utf-8")
    found = list_items(["rows.csv"], columns={"image": "picture"}).items
    assert found[1:] == (
        Input(str(Path("photos/a.PNG")), None, "rows.csv line 3", row=True),
        Input(None, "a cat", "rows.csv line 4", row=True),
    )
    assert found[0].text == "a dog"


def test_what_names_nothing_is_refused(photos: Path) -> None:
    (photos / "empty").mkdir()
    (photos / "empty/notes.md").touch()
    (photos / "folders.txt").write_text("photos\n", encoding="utf-8")
    (photos / "blank.txt").write_text("\n", encoding="utf-8")
    (photos / "latin.txt").write_bytes(b"\xe9.jpg\n")
    for word, error in {
        "empty": "holds no pictures or videos, but 1 files",
        "photos/*.bmp": "no file matches this pattern",
        "folders.txt": 'line 1: "photos" is a folder',
        "blank.txt": "names no files",
        "latin.txt": "UTF-8",
    }.items():
        with pytest.raises(BadDataError, match=error):
            list_items([word])
    with pytest.raises(BadArgumentError, match="no such list of paths"):
        list_items(["missing.txt"])
