"""From a folder of images sorted into classes to a manifest. No torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.data.manifest import SAME_SPLIT, SPLITS, Row, Split, write_records
from zoo.data.splits import assign_splits, fingerprints
from zoo.errors import BadArgumentError, BadDataError
from zoo.inputs.formats import PICTURE_ENDINGS

#: Path, class and split of a file.
_File = tuple[Path, str, Split | None]


@dataclass(frozen=True)
class FolderReport:
    """Images of the manifest by (split, class), and files that are not images. Training assigns the split ""."""

    manifest: Path
    counts: dict[tuple[str, str], int]
    skipped: tuple[Path, ...]


def write_folder_manifest(root: Path, out: Path, *, val_share: float | None = None, seed: int = 0) -> FolderReport:
    """Write a manifest (image, label, split) of SPLIT/CLASS/image files, or of CLASS/image files.

    If there are splits, but none for validation, a share `val_share` (in [0, 1), by default 0.1) of train becomes
    validation, by a seeded hash of what the images show. Near-identical images stay together, and an image does not
    move when others come or go. Without splits the column stays empty, and training assigns them. Images
    are named relative to the manifest's folder, on other drives by their full path. Files without the name ending
    of an image are left out and reported. Raises BadInputError for a tree of another form, for classes that
    train lacks, and for a `val_share` with nothing to divide.
    """
    if not root.is_dir():
        raise BadArgumentError(f"{root}: no such folder")
    files = [file for split, folder in _splits(root).items() for file in _files(folder, split)]
    images = [(path, label, split) for path, label, split in files if _is_image(path)]
    _check_classes(root, files, images)
    rows = [Row(0, path, None, (label,), split) for path, label, split in images]
    splits = _with_validation(root, rows, val_share, seed)
    names = [_relative(path.resolve(), out.parent.resolve()) for path, _, _ in images]
    labels = [label for _, label, _ in images]
    write_records(out, ("image", "label", "split"), zip(names, labels, splits, strict=True))
    skipped = tuple(path for path, _, _ in files if not _is_image(path))
    return FolderReport(out, dict(Counter(zip(splits, labels, strict=True))), skipped)


def _relative(path: Path, base: Path) -> Path:
    """A path as it is called from another folder; in full where Windows has it on another drive."""
    try:
        return Path(os.path.relpath(path, base))
    except ValueError:
        return path


def _splits(root: Path) -> dict[Split | None, Path]:
    """The folder of each split, or the root itself where its folders are classes."""
    folders = _folders(root)
    named: dict[Split | None, Path] = {}
    for folder in folders:
        split = SAME_SPLIT.get(folder.name.lower(), folder.name.lower())
        if split in SPLITS:
            if split in named:
                raise BadDataError(f"{root}: both {named[split].name} and {folder.name} are the split {split}")
            named[split] = folder
    if not named:
        return {None: root}
    others = [folder.name for folder in folders if folder not in named.values()]
    if others:
        raise BadDataError(
            f"{root}: {', '.join(f.name for f in named.values())} are splits, but {', '.join(others[:4])} is not; "
            "a tree is either SPLIT/CLASS/image or CLASS/image"
        )
    if "train" not in named:
        raise BadDataError(f"{root}: has the splits {', '.join(sorted(map(str, named)))}, but no train")
    return named


def _files(folder: Path, split: Split | None) -> Iterator[_File]:
    classes = _folders(folder)
    if not classes:
        raise BadDataError(f"{folder}: holds no class folders; expected CLASS/image files in it")
    for label in classes:
        name = label.name
        if "|" in name or name != name.strip():
            raise BadDataError(f'{label}: a class may not hold "|" or begin or end with a blank, as labels cannot')
        for path in sorted(label.iterdir()):
            if path.is_dir():
                raise BadDataError(f"{path}: a folder inside of a class; a tree is SPLIT/CLASS/image or CLASS/image")
            if not path.name.startswith("."):
                yield path, name, split


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder. Raises BadInputError for images that are not in a folder: they would have no class."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    loose = [path for path in inside if path.is_file() and _is_image(path)]
    if loose:
        raise BadDataError(f"{loose[0]}: an image in no class folder ({len(loose)} such in {folder})")
    return [path for path in inside if path.is_dir()]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_ENDINGS


def _check_classes(root: Path, files: list[_File], images: list[_File]) -> None:
    if not images:
        raise BadDataError(f"{root}: holds no images" + (f"; first file: {files[0][0]}" if files else ""))
    odd = sorted({label for _, label, _ in images} - {label for _, label, split in images if split in (None, "train")})
    if odd:
        raise BadDataError(f'{root}: the class "{odd[0]}" has no images in train, so nothing could learn it')


def _with_validation(root: Path, rows: list[Row], share: float | None, seed: int) -> list[str]:
    """The split of each row, with validation drawn from train if it is missing; "" if training assigns it."""
    if share is not None and not 0 <= share < 1:
        raise BadArgumentError(f"val_share lies in [0, 1), got {share}")
    splits = {row.split for row in rows}
    if splits == {None} or "val" in splits:
        if share is not None:
            why = "has a split for validation already" if "val" in splits else "has no splits, training assigns them"
            raise BadDataError(f"{root}: {why}, so val_share divides nothing")
        return [row.split or "" for row in rows]
    share = 0.1 if share is None else share
    train = [replace(row, split=None) for row in rows if row.split == "train"]
    # Training lists the unreadable images. Here they are drawn by their name.
    prints, refused = fingerprints([row.image for row in train if row.image])
    if train and not prints:
        raise BadDataError(
            f"{root}: none of {len(train)} images in train is readable; first: {next(iter(refused.values()))}"
        )
    drawn = iter(assign_splits(train, prints, (1 - share, share, 0.0), seed))
    return [next(drawn) if row.split == "train" else row.split or "" for row in rows]
