"""From a folder of images sorted into classes to a manifest. No torch."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.progress import track

from zoo.data.manifest import SAME_SPLIT, SPLITS, Row, Split
from zoo.data.splits import assign_splits, fingerprint
from zoo.errors import BadArgumentError, BadDataError, BadInputError
from zoo.inputs.image import FORMATS, decode


@dataclass(frozen=True)
class FolderReport:
    """What was written: images by (split, class), and files that are no images; split "" is left to training."""

    manifest: Path
    counts: dict[tuple[str, str], int]
    skipped: tuple[Path, ...]


class _Found(NamedTuple):
    """One file of a class folder."""

    path: Path
    label: str
    split: Split | None


def write_folder_manifest(root: Path, out: Path, *, val_share: float | None = None, seed: int = 0) -> FolderReport:
    """Write a manifest (image, label, split) of SPLIT/CLASS/image files, or of CLASS/image files.

    Where there are splits and none of them is for validation, a share `val_share` (in [0, 1), by default 0.1) of
    train is taken for it, by a seeded hash of what the images show: near-identical images stay together, and an image
    does not move when others come or go. Without splits the column stays empty, and training assigns them. Images
    beneath the manifest's folder are named relative to it, others by their full path. Files whose names do not end
    as those of images do are left out and reported. Raises BadInputError for a tree of another form, for classes that
    train lacks, and for `val_share` where there is nothing to divide.
    """
    if not root.is_dir():
        raise BadArgumentError(f"{root}: no such folder")
    by_split = _splits(root)
    found = [one for split, folder in by_split.items() for one in _classes(folder, split)]
    images = [one for one in found if one.path.suffix.lower() in _image_suffixes()]
    _check_classes(root, found, images)
    rows = _with_validation(root, images, val_share, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    base = out.parent.resolve()
    with out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "split"])
        for one in rows:
            path = one.path.resolve()
            name = path.relative_to(base) if path.is_relative_to(base) else path
            writer.writerow([str(name), one.label, one.split or ""])
    counts: Counter[tuple[str, str]] = Counter((one.split or "", one.label) for one in rows)
    kept = {one.path for one in images}
    return FolderReport(out, dict(counts), tuple(one.path for one in found if one.path not in kept))


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
            f"{root}: {', '.join(f.name for f in named.values())} are splits, but {', '.join(others[:4])} is none; "
            "a tree is either SPLIT/CLASS/image or CLASS/image"
        )
    if "train" not in named:
        raise BadDataError(f"{root}: has the splits {', '.join(sorted(map(str, named)))}, but no train")
    return named


def _classes(folder: Path, split: Split | None) -> Iterable[_Found]:
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
                yield _Found(path, name, split)


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder. Raises BadInputError where images lie beside them: they would have no class."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    loose = [path for path in inside if path.is_file() and path.suffix.lower() in _image_suffixes()]
    if loose:
        raise BadDataError(f"{loose[0]}: an image in no class folder ({len(loose)} such in {folder})")
    return [path for path in inside if path.is_dir()]


def _image_suffixes() -> set[str]:
    """The endings of the formats that can be read, in lower case with the dot."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}


def _check_classes(root: Path, found: list[_Found], images: list[_Found]) -> None:
    if not images:
        raise BadDataError(f"{root}: holds no images" + (f"; first file: {found[0].path}" if found else ""))
    trained = {one.label for one in images if one.split in (None, "train")}
    odd = sorted({one.label for one in images} - trained)
    if odd:
        raise BadDataError(f'{root}: the class "{odd[0]}" has no images in train, so nothing could learn it')


def _with_validation(root: Path, images: list[_Found], share: float | None, seed: int) -> list[_Found]:
    if share is not None and not 0 <= share < 1:
        raise BadArgumentError(f"val_share lies in [0, 1), got {share}")
    splits = {one.split for one in images}
    if splits == {None} or "val" in splits:
        if share is not None:
            why = "has a split for validation already" if "val" in splits else "has no splits, training assigns them"
            raise BadDataError(f"{root}: {why}, so val_share divides nothing")
        return images
    share = 0.1 if share is None else share
    train = [number for number, one in enumerate(images) if one.split == "train"]
    with ThreadPoolExecutor() as pool:
        reading = pool.map(_print, [images[number].path for number in train])
        prints = np.array(list(track(reading, "Reading images", total=len(train), transient=True)), dtype=np.uint64)
    rows = [Row(0, images[number].path, None, (), None) for number in train]
    drawn = dict(zip(train, assign_splits(rows, prints, (1 - share, share, 0.0), seed), strict=True))
    return [one._replace(split=drawn.get(number, one.split)) for number, one in enumerate(images)]


def _print(path: Path) -> int:
    try:
        return fingerprint(decode(path))
    except BadInputError:
        return 0  # training lists it as unreadable; here it has but its name
