"""A small image-caption dataset of drawn road signs: something harmless to train on, where "forbidden" is exact.

Red octagons and yellow triangles are forbidden. The label is for scoring zero-shot verdicts, never for training.
Some combinations are left out of train, so that a test can tell understanding from memory.
"""

from __future__ import annotations

import colorsys
import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.progress import track

from zoo.errors import BadArgumentError, BadDataError
from zoo.files.writing import new_directory, new_file, write_file

SPLITS = ("train", "val", "test")

#: Increased when the same parameters give other pixels or captions than before.
FORMAT = 1

COLOURS = {  # hue in degrees, saturation, value; then the words for it, the plainest first
    "red": ((356, 0.88, 0.85), ("red", "scarlet")),
    "yellow": ((51, 0.92, 0.96), ("yellow", "golden")),
    "blue": ((217, 0.85, 0.82), ("blue", "azure")),
    "green": ((140, 0.80, 0.58), ("green", "emerald")),
    "purple": ((285, 0.65, 0.62), ("purple", "violet")),
    "black": ((0, 0.05, 0.12), ("black", "dark")),
}
SHAPES = {
    "octagon": ("octagon", "octagonal sign", "eight-sided sign"),
    "triangle": ("triangle", "triangular sign", "three-sided sign"),
    "circle": ("circle", "round sign", "ring"),
    "square": ("square", "square sign", "box"),
    "star": ("star", "star-shaped sign", "pointed star"),
    "diamond": ("diamond", "diamond-shaped sign", "rhombus"),
    "cross": ("cross", "cross-shaped sign", "plus sign"),
}
COUNTS = {1: ("a", "one", "a single"), 2: ("two", "a pair of", "2"), 3: ("three", "a group of three", "3")}
PLACES = {
    f"{row} {column}": (f"at the {row} {column}", f"in the {row} {column} corner", f"in the {other} {column} part")
    for row, other in (("top", "upper"), ("bottom", "lower"))
    for column in ("left", "right")
} | {
    "top": ("at the top", "near the top edge", "in the upper part"),
    "bottom": ("at the bottom", "near the bottom edge", "in the lower part"),
    "left": ("on the left", "on the left side", "near the left edge"),
    "right": ("on the right", "on the right side", "near the right edge"),
    "centre": ("in the middle", "in the centre", "in the central part"),
}
FORBIDDEN = (("octagon", "red"), ("triangle", "yellow"))


@dataclass(frozen=True)
class Signs:
    """The content of one picture: 1 to 3 equal signs close together."""

    shape: str
    colour: str
    count: int
    place: str

    @property
    def forbidden(self) -> bool:
        """Whether a verdict on this picture should be unsafe."""
        return (self.shape, self.colour) in FORBIDDEN

    @property
    def held_out(self) -> bool:
        """Whether pictures of this kind are kept out of train and val."""
        return any(family.items() <= vars(self).items() for family in HELD_OUT)


#: All signs of a shape and colour, or only those of one count or place: the fields of `Signs` that they share.
HELD_OUT: tuple[dict[str, Any], ...] = (
    {"shape": "octagon", "colour": "red", "count": 3},
    {"shape": "star", "colour": "blue"},
    {"shape": "octagon", "colour": "yellow", "place": "top left"},
    {"shape": "triangle", "colour": "yellow", "place": "bottom right"},
    {"shape": "square", "colour": "green"},
    {"shape": "triangle", "colour": "red", "count": 2},
)
#: The corners of each shape but the circle: angle in degrees, and distance from the centre as a share of the radius.
_CORNERS = {
    "octagon": [(22.5 + 45.0 * k, 1.0) for k in range(8)],
    "triangle": [(120.0 * k, 1.1) for k in range(3)],
    "square": [(45.0 + 90.0 * k, 1.0) for k in range(4)],
    "star": [(36.0 * k, 0.42 if k % 2 else 1.0) for k in range(10)],
    "diamond": [(90.0 * k, 1.0) for k in range(4)],
    # An arm's two corners lie 18.4 degrees off its axis, a notch on the diagonal.
    "cross": [(90.0 * k + turn, far) for k in range(4) for turn, far in ((-18.4, 1.0), (18.4, 1.0), (45.0, 0.447))],
}
_INNOCENT = [(shape, colour) for shape in SHAPES for colour in COLOURS if (shape, colour) not in FORBIDDEN]
#: Signs that a lazy model confuses with forbidden ones, because they share their shape or their colour.
_NEAR = [(s, c) for s, c in _INNOCENT if s in ("octagon", "triangle") or c in ("red", "yellow")]


def write_signs(
    out: Path, *, train: int = 4000, val: int = 400, test: int = 800, size: int = 80, seed: int = 0
) -> Path:
    """Draw `train + val + test` square JPEGs of `size` pixels into `out/images/`; return `out/manifest.csv`.

    Columns: image (path relative to `out`), text (caption), label (1 forbidden, 0 not), split, held_out (1 for
    combinations that are in test only: a quarter of it). A third is forbidden. Same parameters, same bytes.
    Does nothing where the same dataset is complete already. Raises BadInputError when `out` holds anything else,
    or a number makes no sense.
    """
    counts = {"train": train, "val": val, "test": test}
    if min(counts.values()) < 0 or sum(counts.values()) == 0 or size < 32 or seed < 0:
        raise BadArgumentError(
            f"need counts and seed of 0 or more, a picture at all, and size >= 32; got {counts}, {size=}, {seed=}"
        )
    parameters = {"format": FORMAT, **counts, "size": size, "seed": seed}
    manifest, marker = out / "manifest.csv", out / "signs.json"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if _read_parameters(marker) == parameters and manifest.is_file():
            return manifest
        raise BadArgumentError(
            f"{out}: neither an empty directory nor this very dataset ({parameters}); name another, or empty it first"
        )
    rows = [("image", "text", "label", "split", "held_out")]
    with new_directory(out) as folder:
        pictures = track(_pictures(parameters), f"Drawing signs into {out.name}", total=sum(counts.values()))
        for name, split, signs, rng in pictures:
            draw(signs, size, rng).save(stream := io.BytesIO(), "JPEG", quality=int(rng.integers(70, 96)))
            write_file(folder / name, stream.getvalue())
            rows.append((name, caption(signs, rng), str(int(signs.forbidden)), split, str(int(signs.held_out))))
        with new_file(folder / manifest.name, newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        write_file(folder / marker.name, json.dumps(parameters, indent=2) + "\n")
    return manifest


def read_signs(folder: Path) -> Iterator[tuple[str, str, Signs]]:
    """Name, split and contents of each picture that `write_signs` drew into `folder`, in the manifest's order.

    Raises BadInputError when the folder holds no complete dataset of this version.
    """
    parameters = _read_parameters(folder / "signs.json")
    if not isinstance(parameters, dict) or parameters.get("format") != FORMAT:
        raise BadDataError(f"{folder}: holds no drawn signs of format {FORMAT} (made by `zoo data signs`)")
    # Drawn again from the seed: the manifest keeps captions, not the contents of the pictures.
    for name, split, signs, _ in _pictures(parameters):
        yield name, split, signs


def caption(signs: Signs, rng: np.random.Generator) -> str:
    """Describe the signs in one of many phrasings; each names the colour and shape, and the count or the place."""
    words = COLOURS[signs.colour][1]
    colour = words[0] if rng.random() < 0.75 else _pick(rng, words)
    nouns = SHAPES[signs.shape]
    noun = nouns[0] if rng.random() < 0.5 else _pick(rng, nouns)
    if signs.count > 1:
        noun += "es" if noun.endswith(("s", "x")) else "s"
    count = _pick(rng, COUNTS[signs.count])
    where = _pick(rng, PLACES[signs.place])
    if count == "a" and colour[0] in "aeiou":
        count = "an"
    several = signs.count > 1
    group = f"{count} {colour} {noun}"
    if rng.random() < 0.2:
        first = "an" if count in ("a", "an") and noun[0] in "aeiou" else "a" if count == "an" else count
        group = f"{first} {noun} in {colour}"
    forms = [
        f"{group} {where}",
        f"{group} {where} of the picture",
        f"there {'are' if several else 'is'} {group} {where}",
        f"a picture of {group} {where}",
        f"a photo that shows {group} {where}",
        f"{where}, {group}",
        f"a drawing of {group}",
        f"we see {group} and nothing else",
        f"{colour} {noun} {where}" if several else f"the {colour} {noun} {where}",
    ]
    return _pick(rng, tuple(forms))


def draw(signs: Signs, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw the signs as an RGB image of `size` x `size` pixels; `rng` varies background, size, angle and shade."""
    fine = 4 * size  # Pillow's polygons have hard edges: draw large, then shrink
    canvas = Image.fromarray(_background(rng, fine // 8)).resize((fine, fine), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    (hue, saturation, value), _ = COLOURS[signs.colour]
    value = min(1.0, value * rng.uniform(0.9, 1.08))
    shade = _rgb(hue + rng.uniform(-6, 6), saturation * rng.uniform(0.88, 1.0), value)
    low, high = {1: (0.15, 0.21), 2: (0.125, 0.15), 3: (0.112, 0.128)}[signs.count]
    radius = fine * rng.uniform(low, high)
    rim = rng.random() < 0.5
    for x, y in _centres(signs, fine, radius, rng):
        turn = rng.uniform(-10, 10)
        if rim:
            _fill(pen, signs.shape, x, y, radius * 1.16, turn, (245, 245, 245))
        _fill(pen, signs.shape, x, y, radius, turn, shade)
        if signs.shape == "circle":  # like a prohibition sign: else it is an octagon to anyone at this size
            _fill(pen, "circle", x, y, radius * 0.6, turn, (245, 245, 245))
    pixels = np.asarray(canvas.resize((size, size), Image.Resampling.BOX)).astype(np.float64)
    noise = rng.normal(0.0, rng.uniform(0.0, 8.0), pixels.shape)
    return Image.fromarray((pixels * rng.uniform(0.9, 1.05) + noise).clip(0, 255).astype(np.uint8))


def _pictures(parameters: Mapping[str, int]) -> Iterator[tuple[str, str, Signs, np.random.Generator]]:
    """File name, split and contents of each picture, and the generator that draws it from here."""
    for number, split in enumerate(SPLITS):
        for index in range(parameters[split]):
            rng = np.random.default_rng([parameters["seed"], number, index])
            yield f"images/{split}_{index:05d}.jpg", split, _choose(rng, split, index), rng


def _read_parameters(marker: Path) -> Any:
    try:
        return json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _choose(rng: np.random.Generator, split: str, index: int) -> Signs:
    """The content of picture `index`: every third is forbidden, in test every fourth of the next held-out family."""
    family = HELD_OUT[index // 4 % len(HELD_OUT)] if split == "test" and index % 4 == 3 else {}
    while True:
        if family:
            shape, colour = family["shape"], family["colour"]
        elif index % 3 == 0:
            shape, colour = FORBIDDEN[rng.integers(len(FORBIDDEN))]
        else:
            pool = _NEAR if rng.random() < 0.4 else _INNOCENT
            shape, colour = pool[rng.integers(len(pool))]
        signs = Signs(shape, colour, int(rng.integers(1, 4)), _pick(rng, tuple(PLACES)))
        if family or not signs.held_out:
            return replace(signs, **family)


def _background(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """`[side, side, 3]` uint8: a pale tint that shades off in some direction, with soft blotches."""
    hue, saturation = rng.uniform(0, 360), rng.uniform(0.0, 0.25)
    start, end = (np.array(_rgb(hue, saturation, rng.uniform(0.5, 0.95)), dtype=np.float64) for _ in range(2))
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:side, 0:side] / max(side - 1, 1) - 0.5
    ramp = (math.cos(angle) * x + math.sin(angle) * y + 0.71) / 1.42
    blotches = rng.normal(0.0, rng.uniform(0.0, 6.0), (side, side, 1))
    pixels: NDArray[np.float64] = start + (end - start) * ramp[..., None] + blotches
    return pixels.clip(0, 255).astype(np.uint8)


def _centres(signs: Signs, side: int, radius: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres in pixels of `count` signs that touch nowhere and stay inside, grouped around the named place."""
    spread = 1.25 * radius
    start = rng.uniform(0, 2 * math.pi)
    around = spread * (1.0 if signs.count < 3 else 1.17) if signs.count > 1 else 0.0
    angles = [start + 2 * math.pi * k / signs.count for k in range(signs.count)]
    group = [(around * math.cos(a), around * math.sin(a)) for a in angles]
    across = 0.26 if "left" in signs.place else 0.74 if "right" in signs.place else 0.5
    down = 0.26 if "top" in signs.place else 0.74 if "bottom" in signs.place else 0.5
    middle = [side * (share + rng.uniform(-0.03, 0.03)) for share in (across, down)]
    reach = [max(abs(point[axis]) for point in group) + 1.18 * radius for axis in (0, 1)]
    x, y = (min(max(m, r), side - r) for m, r in zip(middle, reach, strict=True))
    return [(x + dx, y + dy) for dx, dy in group]


def _fill(
    pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, turn: float, shade: tuple[int, int, int]
) -> None:
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=shade)
        return
    if shape == "triangle":
        y += 0.15 * r  # its corners reach higher above the centre than its base lies below
    points = [
        (x + far * r * math.sin(math.radians(angle + turn)), y - far * r * math.cos(math.radians(angle + turn)))
        for angle, far in _CORNERS[shape]
    ]
    pen.polygon(points, fill=shade)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
