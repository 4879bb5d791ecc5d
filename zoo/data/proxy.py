"""A benign proxy for judging prompt and image together: photos that show, and prompts that ask for, a concept."""

from __future__ import annotations

import os
import re
from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.data.manifest import SPLITS, Row, Split, read_manifest, write_records
from zoo.data.splits import draw
from zoo.errors import BadArgumentError, BadDataError
from zoo.files.writing import refuse_input

#: Where the concept is: in photo and prompt, in the photo alone, in the prompt alone, in neither.
KINDS = ("both", "image", "prompt", "neither")


@dataclass
class _Photo:
    path: Path
    split: Split
    captions: list[str] = field(default_factory=list)


def write_proxy(
    captions: Path,
    out: Path,
    words: Sequence[str],
    *,
    mismatch: float = 0.5,
    rows_per_image: int = 1,
    test_share: float = 0.5,
    seed: int = 0,
    image_root: Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> dict[Split, Counter[str]]:
    """Write a manifest of image, text, labels, split and kind from one of captions; returns how many rows of each kind.

    A photo shows the concept if any of its captions has one of `words` (whole words, in any case), a prompt asks
    for it if the prompt has one. The prompt of a row is a caption of its photo or, in a share `mismatch` of the
    rows, a caption of another photo of the same split. The labels `in_image` and `in_prompt` say which has the
    concept, and `unsafe` that one has it.

    Training photos give `rows_per_image` rows each, others one. If no photo has the split `test`, a share `test_share`
    of the validation photos becomes that split. Everything is drawn by a seeded hash of the photo's name. When photos
    come or go, only the few rows move whose prompt came from one of them.

    Raises BadInputError for shares outside [0, 1], no words, rows without image, text or split, and for a split with
    too few photos to take another's caption.
    """
    refuse_input(out, captions)
    for name, share in (("mismatch", mismatch), ("test_share", test_share)):
        if not 0 <= share <= 1:
            raise BadArgumentError(f"{name} is a share in [0, 1], got {share}")
    if rows_per_image < 1:
        raise BadArgumentError(f"rows_per_image must be at least 1, got {rows_per_image}")
    concept = _pattern(words)
    photos = _photos(read_manifest(captions, image_root, columns), captions)
    _divide(photos, test_share, seed)
    rings = {split: _Ring([photo for photo in photos if photo.split == split], seed) for split in SPLITS}
    table: dict[Split, Counter[str]] = {split: Counter() for split in SPLITS}
    rows = []
    for photo in photos:
        place = os.path.relpath(photo.path.resolve(), out.parent.resolve())
        shown = any(concept.search(text) for text in photo.captions)
        for number in range(rows_per_image if photo.split == "train" else 1):
            key = f"{photo.path.name}:{number}"
            elsewhere = draw(f"mismatch:{key}", seed) < mismatch
            source = rings[photo.split].another(photo, key) if elsewhere else photo
            prompt = source.captions[int(draw(f"caption:{key}", seed) * len(source.captions))]
            asked = concept.search(prompt) is not None
            labels = ["unsafe"] * (shown or asked) + ["in_image"] * shown + ["in_prompt"] * asked
            kind = KINDS[2 * (not shown) + (not asked)]
            rows.append((place, prompt, "|".join(labels), photo.split, kind))
            table[photo.split][kind] += 1
    write_records(out, ("image", "text", "labels", "split", "kind"), rows)
    return table


class _Ring:
    """The photos of a split in the order of a hash: one that comes or goes changes the neighbour of few draws."""

    def __init__(self, photos: list[_Photo], seed: int) -> None:
        self.seed = seed
        self.photos = sorted(photos, key=lambda photo: draw(f"ring:{photo.path.name}", seed))
        self.places = [draw(f"ring:{photo.path.name}", seed) for photo in self.photos]

    def another(self, photo: _Photo, key: str) -> _Photo:
        if len(self.photos) < 2:
            raise BadDataError(f"the split {photo.split} has one photo, so no other photo can give it a caption")
        start = bisect(self.places, draw(f"other:{key}", self.seed))
        drawn = self.photos[start % len(self.photos)]
        return drawn if drawn is not photo else self.photos[(start + 1) % len(self.photos)]


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    given = [re.escape(word.strip()) for word in words if word.strip()]
    if not given:
        raise BadArgumentError("words: name at least one word for the concept, such as dog,dogs")
    return re.compile(rf"\b(?:{'|'.join(given)})\b", re.IGNORECASE)


def _photos(rows: list[Row], captions: Path) -> list[_Photo]:
    photos: dict[Path, _Photo] = {}
    for row in rows:
        if row.image is None or row.text is None or row.split is None:
            wanting = next(name for name in ("image", "text", "split") if getattr(row, name) is None)
            raise BadDataError(
                f"{captions}, line {row.line}: a caption needs image, text and split, and {wanting} is missing"
            )
        photo = photos.setdefault(row.image, _Photo(row.image, row.split))
        if photo.split != row.split:
            raise BadDataError(f"{captions}, line {row.line}: {row.image} is in {photo.split} and in {row.split}")
        photo.captions.append(row.text)
    return list(photos.values())


def _divide(photos: list[_Photo], test_share: float, seed: int) -> None:
    """Make a share of the validation photos the test split, if there is no test split."""
    if any(photo.split == "test" for photo in photos):
        return
    for photo in photos:
        if photo.split == "val" and draw(f"test:{photo.path.name}", seed) < test_share:
            photo.split = "test"
