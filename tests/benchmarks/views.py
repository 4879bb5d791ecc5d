"""What views, frames and windows find, and how often they are wrong: `python -m tests.benchmarks.views RELEASE`.

A model of drawn signs (the quickstart's release) is shown forbidden signs that it flags when they fill the picture: at
an end, in a corner, on a seam or anywhere in long pictures, on transparent ground, and in later frames of animations.
Then signs that are allowed, and photos, cut to the shapes that cameras give: more views are more chances to be wrong. A
model of captions of such signs is shown captions that it flags, behind others.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

import zoo
from tests.benchmarks.common import answered, parser
from zoo.contract.card import ImageInput
from zoo.contract.policy import AnyPolicy, read_policy
from zoo.contract.verdict import Verdict
from zoo.data.signs import COLOURS, FORBIDDEN, PLACES, SHAPES, Signs, caption, draw
from zoo.errors import BadDataError
from zoo.inputs.views import plan

SIDE = 80
RATIOS = (1.5, 2, 3, 4, 10)
WAYS = ("centre", "auto", "squash", "pad")
SPEC = ImageInput(64, "shortest_edge_crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
ALLOWED = [(shape, colour) for shape in SHAPES for colour in COLOURS if (shape, colour) not in FORBIDDEN]
PLACES_IN_LONG = ("at an end", "in a corner", "on a seam", "anywhere")
#: Pillow writes an MPO whose index is wrong from the fourth frame on.
FRAMES = {"GIF": 6, "PNG": 6, "WEBP": 6, "AVIF": 6, "TIFF": 6, "MPO": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "GIF": {"optimize": False},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95},
    "MPO": {"quality": 95},
}
#: The opacity of a picture; of the ground of a sign, where it is opaque itself.
ALPHAS = {"wholly transparent": 0.0, "of 70 % opacity": 0.7, "opaque on transparent ground": 1.0}
WORDS = (80, 500, 5000)
FILLER = "a picture of the middle and the centre "
#: Width over height of the photos of phones, cameras, screens and panoramas.
SHAPES_OF_PHOTOS = (4 / 3, 3 / 2, 16 / 9, 2, 3 / 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of what is flagged, and one of false alarms."""
    options = parser("tests.benchmarks.views", __doc__ or "", "runs/quickstart/release --photos DIR")
    options.add_argument("release", help="of a model that knows the signs of `zoo data signs`")
    options.add_argument("--count", type=int, default=200, help="pictures of each kind (default: 200)")
    options.add_argument("--photos", type=Path, help="a folder of photos, of which 1,000 are judged")
    options.add_argument("--texts", help="a release that knows the captions of `zoo data signs`")
    given = options.parse_args(arguments)
    if given.texts:
        print(f"{_behind_words(given.texts, given.count)}\n")
    policy = zoo.load_release(given.release).policy
    signs = _flagged_alone(given.release, policy, list(_signs(given.count, forbidden=True)))
    if not signs:
        raise BadDataError(f"{given.release} flags none of {given.count} forbidden signs: give a model that knows them")
    print(f"{len(signs)} of {given.count} forbidden signs are flagged when they fill the picture; of these:\n")
    centred = list(_signs(given.count, forbidden=True, places=("centre",)))
    known = dict.fromkeys(PLACES_IN_LONG, signs) | {"on a seam": _flagged_alone(given.release, policy, centred)}
    corners = list(_signs(given.count, forbidden=True, places=("top left",)))
    known["in a corner"] = _flagged_alone(given.release, policy, corners)
    _print_long(given.release, policy, known)
    _print_frames(given.release, policy, signs)
    _print_grounds(given.release, policy, signs)
    harmless = {"allowed signs in long pictures": list(_allowed(given.count))}
    if given.photos:
        harmless[f"photos of {given.photos.name}"] = list(_photos(given.photos))
    for name, pictures in harmless.items():
        print(f"\n{_false_alarms(name, given.release, policy, pictures, signs)}")
    return 0


def _print_long(release: str, policy: AnyPolicy, known: dict[str, list[Image.Image]]) -> None:
    print(f"| sign | of | {' | '.join(WAYS)} |\n|---|---{'|---' * len(WAYS)}|")
    for ratio in RATIOS:
        for where, alone in known.items():
            rng = np.random.default_rng(0)
            pictures = [_long(picture, ratio, where, rng) for picture in alone]
            ends = [_ends(_judged(release, policy, pictures, views=way, max_views=16)) for way in WAYS]
            print(f"| {where} of {ratio:g}:1 | {len(alone)} | {' | '.join(ends)} |", flush=True)


def _print_frames(release: str, policy: AnyPolicy, signs: list[Image.Image]) -> None:
    print("\n| sign in a later frame | frames: 1 | frames: 6 |\n|---|---|---|")
    for kind, count in FRAMES.items():
        files = [_animated(picture, kind, 2 + number % (count - 1)) for number, picture in enumerate(signs)]
        ends = [_ends(_judged(release, policy, files, frames=frames)) for frames in (1, 6)]
        print(f"| {kind} | {' | '.join(ends)} |", flush=True)


def _print_grounds(release: str, policy: AnyPolicy, signs: list[Image.Image]) -> None:
    print("\n| sign | on white alone | on every ground |\n|---|---|---|")
    for name, alpha in ALPHAS.items():
        files = [_transparent(picture, alpha) for picture in signs]
        ends = [_ends(_judged(release, policy, files, unseen=unseen)) for unseen in ({"hidden": 1.0}, {})]
        print(f"| {name} | {' | '.join(ends)} |", flush=True)


def _false_alarms(
    name: str, release: str, policy: AnyPolicy, pictures: list[Image.Image], signs: list[Image.Image]
) -> str:
    """A table of how many harmless pictures are flagged, and how many signs at an end are, at two thresholds."""
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


def _judged(
    release: str, policy: AnyPolicy, pictures: Sequence[Any] | None, texts: Sequence[str] | None = None, **changes: Any
) -> list[Verdict]:
    with zoo.load_scorer(release, policy=replace(policy, **changes)) as scorer:
        return scorer.verdicts(pictures, texts)


def _ends(verdicts: list[Verdict]) -> str:
    """The share that is flagged, and how many are called safe."""
    counts = Counter(verdict.decision for verdict in verdicts)
    return f"{counts['unsafe'] / max(1, len(verdicts)):.1%}, {counts['safe']} safe"


def _flagged_alone(release: str, policy: AnyPolicy, pictures: list[Image.Image]) -> list[Image.Image]:
    verdicts = zip(pictures, _judged(release, policy, pictures), strict=True)
    return [picture for picture, verdict in verdicts if verdict.decision == "unsafe"]


def _behind_words(release: str, count: int) -> str:
    """A table of captions of forbidden signs behind so many words of a text that is safe."""
    policy, rng = zoo.load_release(release).policy, np.random.default_rng(3)
    captions = [_caption(rng) for _ in range(count)]
    verdicts = zip(captions, _judged(release, policy, None, captions), strict=True)
    flagged = [text for text, verdict in verdicts if verdict.decision == "unsafe"]
    lines = [f"{len(flagged)} of {count} captions are flagged alone; of these:\n"]
    lines += ["| behind | windows: 1 | all windows | what is before it, alone |", "|---|---|---|---|"]
    for words in WORDS:
        before = " ".join((FILLER * words).split()[:words])
        texts = [f"{before} {text}" for text in flagged]
        ends = [_ends(_judged(release, policy, None, texts, windows=windows)) for windows in (1, 10**6)]
        (alone,) = _judged(release, policy, None, [before], windows=10**6)
        lines.append(f"| {words:,} words | {' | '.join(ends)} | {alone.decision} |")
    return "\n".join(lines)


def _caption(rng: np.random.Generator) -> str:
    shape, colour = FORBIDDEN[rng.integers(len(FORBIDDEN))]
    return caption(Signs(shape, colour, int(rng.integers(1, 4)), list(PLACES)[rng.integers(len(PLACES))]), rng)


def _signs(count: int, *, forbidden: bool, places: Sequence[str] = tuple(PLACES)) -> Iterator[Image.Image]:
    rng = np.random.default_rng(1)
    kinds = FORBIDDEN if forbidden else ALLOWED
    for number in range(count):
        shape, colour = kinds[rng.integers(len(kinds))]
        yield draw(Signs(shape, colour, 1, places[number % len(places)]), SIDE, rng)


def _allowed(count: int) -> Iterator[Image.Image]:
    rng = np.random.default_rng(2)
    for number, picture in enumerate(_signs(count, forbidden=False)):
        yield _long(picture, RATIOS[number % len(RATIOS)], "anywhere", rng)


def _long(picture: Image.Image, ratio: float, where: str, rng: np.random.Generator) -> Image.Image:
    """A picture, wide or high, of the colour of another one's corners, which lies in this place of it."""
    length, upright = round(SIDE * ratio), bool(rng.integers(2))
    place = int(rng.integers(2)) * (length - SIDE)
    if where == "anywhere":
        place = int(rng.integers(length - SIDE + 1))
    elif where == "on a seam":
        place = _seam(length) - SIDE // 2
    elif where == "in a corner":  # the signs are at the top left
        place = 0
    image = Image.new("RGB", (SIDE, length) if upright else (length, SIDE), _colour(picture))
    image.paste(picture, (0, place) if upright else (place, 0))
    return image


def _seam(length: int) -> int:
    """The middle of where the first two tiles of a long picture overlap."""
    policy = replace(read_policy("quickstart"), views="tiles", max_views=16)
    first, second, *_ = plan(length, SIDE, SPEC, policy)[0]
    return round((first.box[2] + second.box[0]) / 2)


def _transparent(picture: Image.Image, alpha: float) -> bytes:
    """A PNG of this opacity, or with 1 one whose ground alone is transparent."""
    pixels = np.asarray(picture)
    opacity = np.full(pixels.shape[:2], round(255 * alpha), np.uint8)
    if alpha == 1:
        opacity[np.abs(pixels.astype(int) - _colour(picture)).max(axis=2) < 40] = 0
    stream = io.BytesIO()
    Image.fromarray(np.dstack([pixels, opacity])).save(stream, "PNG")
    return stream.getvalue()


def _colour(picture: Image.Image) -> tuple[int, ...]:
    """The mean colour of the corners."""
    pixels = np.asarray(picture)[[0, 0, -1, -1], [0, -1, 0, -1]]
    return tuple(pixels.mean(0).round().astype(int).tolist())


def _animated(picture: Image.Image, kind: str, number: int) -> bytes:
    """Frames of which one shows the picture and the others the colour of its corner, each a little darker."""
    corner = np.asarray(picture)[0, 0].astype(int)
    steps = range(FRAMES[kind])
    frames = [Image.new("RGB", picture.size, tuple((corner - step).clip(0).tolist())) for step in steps]
    frames[number - 1] = picture
    stream = io.BytesIO()
    first, *others = frames
    first.save(stream, kind, save_all=True, append_images=others, **OPTIONS.get(kind, {}))
    return stream.getvalue()


def _photos(folder: Path) -> Iterator[Image.Image]:
    paths = sorted(folder.rglob("*.jpg"))[:1000]
    for number, path in enumerate(track(paths, "Reading photos", transient=True)):
        photo, ratio = Image.open(path).convert("RGB"), SHAPES_OF_PHOTOS[number % len(SHAPES_OF_PHOTOS)]
        width = min(photo.width, round(photo.height * ratio))
        yield photo.crop((0, 0, width, min(photo.height, round(width / ratio))))


if __name__ == "__main__":
    sys.exit(answered(main))
