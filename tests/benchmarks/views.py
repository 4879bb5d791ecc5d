"""What views and frames find, and how often they are wrong: `python -m tests.benchmarks.views RELEASE`.

A model of drawn signs (the quickstart's release) is shown forbidden signs that it flags when they fill the picture: at
an end, in a corner or anywhere in long pictures, and in later frames of animations. Then signs that are allowed, and
photos, cut to the shapes that cameras give: more views are more chances to be wrong.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

import zoo
from tests.benchmarks.common import answered, parser
from zoo.contract.policy import AnyPolicy
from zoo.contract.verdict import Verdict
from zoo.data.signs import COLOURS, FORBIDDEN, PLACES, SHAPES, Signs, draw
from zoo.errors import BadDataError

SIDE = 80
RATIOS = (1.5, 2, 3, 4, 10)
WAYS = ("centre", "auto", "tiles", "squash", "pad")
ANIMATED = {"GIF": {"optimize": False}, "PNG": {}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}, "TIFF": {}}
#: Width over height of the photos of phones, cameras, screens and panoramas.
SHAPES_OF_PHOTOS = (4 / 3, 3 / 2, 16 / 9, 2, 3 / 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of what is flagged, and one of false alarms."""
    options = parser("tests.benchmarks.views", __doc__ or "", "runs/quickstart/release --photos DIR")
    options.add_argument("release", help="of a model that knows the signs of `zoo data signs`")
    options.add_argument("--count", type=int, default=200, help="pictures of each kind (default: 200)")
    options.add_argument("--photos", type=Path, help="a folder of photos, of which 1,000 are judged")
    given = options.parse_args(arguments)
    policy = zoo.load_release(given.release).policy
    signs = _flagged_alone(given.release, policy, list(_signs(given.count, forbidden=True)))
    if not signs:
        raise BadDataError(f"{given.release} flags none of {given.count} forbidden signs: give a model that knows them")
    print(f"{len(signs)} of {given.count} forbidden signs are flagged when they fill the picture; of these:\n")
    print(f"| sign | {' | '.join(WAYS)} |\n|---{'|---' * len(WAYS)}|")
    for ratio in RATIOS:
        for where in ("at an end", "anywhere"):
            rng = np.random.default_rng(0)
            pictures = [_long(picture, ratio, where, rng) for picture in signs]
            ends = [_ends(_judged(given.release, policy, pictures, views=way, max_views=16)) for way in WAYS]
            print(f"| {where} of {ratio:g}:1 | {' | '.join(ends)} |")
    print("\n| sign in a later frame | frames: 1 | frames: 6 |\n|---|---|---|")
    for kind in ANIMATED:
        files = [_animated(picture, kind, 2 + number % 4) for number, picture in enumerate(signs)]
        ends = [_ends(_judged(given.release, policy, files, frames=frames)) for frames in (1, 6)]
        print(f"| {kind} | {' | '.join(ends)} |")
    harmless = {"allowed signs in long pictures": list(_allowed(given.count))}
    if given.photos:
        harmless[f"photos of {given.photos.name}"] = list(_photos(given.photos))
    for name, pictures in harmless.items():
        print(f"\n{_false_alarms(name, given.release, policy, pictures, signs)}")
    return 0


def _false_alarms(
    name: str, release: str, policy: AnyPolicy, pictures: list[Image.Image], signs: list[Image.Image]
) -> str:
    """A table of how many harmless pictures are flagged, and how many signs at an end are, at two thresholds."""
    lines = [
        "| views | flagged | for review, unseen alone | threshold of the same rate | signs at an end of 3:1 then |"
    ]
    head = "flagged | for review, unseen alone | threshold of the same rate | signs at an end of 3:1 then"
    lines = [f"| {len(pictures)} {name}: views | {head} |", "|---|---|---|---|---|"]
    rng = np.random.default_rng(0)
    long = [_long(picture, 3, "at an end", rng) for picture in signs]
    rate = None
    for way in WAYS:
        verdicts = _judged(release, policy, pictures, views=way, max_views=16)
        flagged = sum(verdict.decision == "unsafe" for verdict in verdicts)
        review = sum(verdict.decision == "review" and verdict.category is None for verdict in verdicts)
        heights = np.array([_height(verdict, policy) for verdict in verdicts])
        rate = flagged / len(pictures) if rate is None else rate
        threshold = float(np.quantile(heights, 1 - rate, method="higher"))
        found = [_height(one, policy) > threshold for one in _judged(release, policy, long, views=way, max_views=16)]
        lines.append(f"| {way} | {flagged} | {review} | {threshold:.3f} | {np.mean(found):.1%} |")
    return "\n".join(lines)


def _height(verdict: Verdict, policy: AnyPolicy) -> float:
    """The highest score of a category that blocks."""
    blocking = [category.name for category in policy.categories if category.action == "block"]  # type: ignore[union-attr]
    return max(verdict.scores[name] for name in blocking)


def _judged(release: str, policy: AnyPolicy, pictures: Sequence[object], **changes: object) -> list[Verdict]:
    with zoo.load_scorer(release, policy=replace(policy, **changes)) as scorer:  # type: ignore[arg-type]
        return scorer.verdicts(pictures)  # type: ignore[arg-type]


def _ends(verdicts: list[Verdict]) -> str:
    """The share that is flagged, and how many are called safe."""
    counts = Counter(verdict.decision for verdict in verdicts)
    return f"{counts['unsafe'] / len(verdicts):.1%}, {counts['safe']} safe"


def _flagged_alone(release: str, policy: AnyPolicy, pictures: list[Image.Image]) -> list[Image.Image]:
    verdicts = _judged(release, policy, pictures)
    return [picture for picture, verdict in zip(pictures, verdicts, strict=True) if verdict.decision == "unsafe"]


def _signs(count: int, *, forbidden: bool) -> Iterator[Image.Image]:
    rng = np.random.default_rng(1)
    every = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    kinds = FORBIDDEN if forbidden else [kind for kind in every if kind not in FORBIDDEN]
    for number in range(count):
        shape, colour = kinds[rng.integers(len(kinds))]
        yield draw(Signs(shape, colour, 1, list(PLACES)[number % len(PLACES)]), SIDE, rng)


def _allowed(count: int) -> Iterator[Image.Image]:
    rng = np.random.default_rng(2)
    for number, picture in enumerate(_signs(count, forbidden=False)):
        yield _long(picture, RATIOS[number % len(RATIOS)], "anywhere", rng)


def _long(picture: Image.Image, ratio: float, where: str, rng: np.random.Generator) -> Image.Image:
    """A picture, wide or high, of the colour of another one's corners, which lies at an end of it or anywhere."""
    pixels = np.asarray(picture)
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]].mean(0).round().astype(int)
    length = round(SIDE * ratio)
    place = int(rng.integers(length - SIDE + 1)) if where == "anywhere" else int(rng.integers(2)) * (length - SIDE)
    upright = bool(rng.integers(2))
    image = Image.new("RGB", (SIDE, length) if upright else (length, SIDE), tuple(corners.tolist()))
    image.paste(picture, (0, place) if upright else (place, 0))
    return image


def _animated(picture: Image.Image, kind: str, number: int) -> bytes:
    """Six frames, of which one shows the picture and the others the colour of its corner, each a little darker."""
    corner = np.asarray(picture)[0, 0].astype(int)
    frames = [Image.new("RGB", picture.size, tuple((corner - step).clip(0).tolist())) for step in range(6)]
    frames[number - 1] = picture
    stream = io.BytesIO()
    first, *others = frames
    first.save(stream, kind, save_all=True, append_images=others, **ANIMATED[kind])  # type: ignore[arg-type]
    return stream.getvalue()


def _photos(folder: Path) -> Iterator[Image.Image]:
    paths = sorted(folder.rglob("*.jpg"))[:1000]
    for number, path in enumerate(track(paths, "Reading photos", transient=True)):
        photo, ratio = Image.open(path).convert("RGB"), SHAPES_OF_PHOTOS[number % len(SHAPES_OF_PHOTOS)]
        width = min(photo.width, round(photo.height * ratio))
        yield photo.crop((0, 0, width, min(photo.height, round(width / ratio))))


if __name__ == "__main__":
    sys.exit(answered(main))
