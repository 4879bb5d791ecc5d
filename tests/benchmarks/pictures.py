"""What preparing a picture costs, from its bytes to the pixels that a model reads, by Pillow and by the extra "fast".

JPEGs are mosaics of photos at the photos' own detail, as large ones would be smooth. With a bundle: how many verdicts
of single photos and of mosaics differ between the two, and what all tiles of a long picture cost beside one view.
"""

from __future__ import annotations

import contextlib
import io
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal
from unittest import mock

import numpy as np
from PIL import Image

from export.runtime import load
from tests.benchmarks.common import add_rounds, answered, parser
from tests.benchmarks.overhead import Timed
from zoo.contract.policy import read_policy
from zoo.errors import BadDataError
from zoo.inputs import image as images
from zoo.inputs.image import Pixels, decode_for, fit, resizer
from zoo.inputs.views import shown
from zoo.judging.scorer import Scorer
from zoo.registry import model_card

#: A model of 224 pixels that crops, and resizes by bicubic.
MODEL = "safeclip_vit_b32.zeroshot"
#: Sides of a tile of a mosaic, and of mosaics in tiles.
SIDE = 128
SHAPES = {"1024 x 768": (8, 6), "1920 x 768": (15, 6), "640 x 1152": (5, 9)}


def mosaics(photos: Sequence[Path], count: int, shape: tuple[int, int]) -> list[bytes]:
    """JPEGs, each of so many columns and rows of photos that are cropped, not resized."""
    rng, across, down = random.Random(0), *shape
    files = []
    for _ in range(count):
        canvas = Image.new("RGB", (across * SIDE, down * SIDE))
        for place in range(across * down):
            with Image.open(rng.choice(photos)) as photo:
                left, top = (photo.width - SIDE) // 2, (photo.height - SIDE) // 2
                part = photo.convert("RGB").crop((left, top, left + SIDE, top + SIDE))
            canvas.paste(part, (place % across * SIDE, place // across * SIDE))
        stream = io.BytesIO()
        canvas.save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


@contextlib.contextmanager
def by_pillow() -> Iterator[None]:
    """Resize by Pillow, whatever is installed."""
    with mock.patch.object(images, "_one_pass", return_value=None):
        yield


def bench_resizers(photos: Sequence[Path], count: int, rounds: int) -> str:
    """Time one view and all tiles of mosaics by each resizer in turns, and compare their pixels."""
    card, policy = model_card(MODEL), read_policy("safeclip")
    assert card.image is not None
    spec = card.image
    ways: dict[str, Callable[[bytes], Pixels]] = {
        "one view": lambda data: fit(decode_for(data, spec), spec),
        "all tiles": lambda data: shown(data, spec, policy).pixels,
    }
    head = f"Pillow's CPU ms | {resizer()} | ratio | of the rounds | largest difference | pixels that differ"
    lines = [f"| JPEG | shown | {head} |", "|---" * 8 + "|"]
    for size, shape in SHAPES.items():
        files = mosaics(photos, count, shape)
        for name, prepare in ways.items():
            plain, fast = [], []
            for _ in range(rounds):
                with by_pillow():
                    plain += [cpu_ms(prepare, files)]
                fast += [cpu_ms(prepare, files)]
            ratios = np.divide(plain, fast)
            lines += [
                f"| {size} | {name} | {np.median(plain):.2f} | {np.median(fast):.2f} | {np.median(ratios):.2f} "
                f"| {ratios.min():.2f} to {ratios.max():.2f} | {_difference(prepare, files)} |"
            ]
    return "\n".join(lines)


def bench_verdicts(folder: Path, engine: str, photos: Sequence[Path], count: int) -> str:
    """How many verdicts of photos and of mosaics differ between the resizers."""
    lines = []
    with load(folder, engine=engine or None, device="cpu") as scorer:
        kinds: dict[str, list[bytes | Path]] = {
            "photos": list(photos[:count]),
            "mosaics": list(mosaics(photos, count, SHAPES["1024 x 768"])),
        }
        for name, files in kinds.items():
            found = [scorer.verdict(file) for file in files]
            with by_pillow():
                plain = [scorer.verdict(file) for file in files]
            pairs = list(zip(found, plain, strict=True))
            flips = sum(a.decision != b.decision or a.category != b.category for a, b in pairs)
            flagged = sum(b.is_safe is False for b in plain)
            moved = max(abs(a.scores[key] - b.scores[key]) for a, b in pairs for key in b.scores)
            lines += [
                f"{flips} of {len(files)} verdicts of {name} differ ({flagged} flagged, scores by {moved:.4f} at most)"
            ]
    return "\n".join(lines)


def bench_tiles(folder: Path, engine: str, photos: Sequence[Path], count: int, rounds: int) -> str:
    """What all tiles of a picture cost beside one view of it, in the engine and outside."""
    size = "1920 x 768"
    files = mosaics(photos, count, SHAPES[size])
    times: dict[Literal["centre", "tiles"], list[tuple[float, float]]] = {"centre": [], "tiles": []}
    with load(folder, engine=engine or None, device="cpu", threads=1) as loaded:
        scorer: Scorer = loaded  # which takes any engine
        scorer.engine = timed = Timed(loaded.engine)
        policy = scorer.judge.policy
        for number in range(rounds + 1):  # the first one warms up
            for views, found in times.items():
                scorer.judge.policy = replace(policy, views=views, unseen={})
                timed.seconds = timed.cpu = timed.rows = 0
                whole = cpu_ms(scorer.verdict, files)
                inside = 1000 * timed.cpu / count
                found += [(inside, whole - inside)][: number > 0]
        tiles = timed.rows // count
    (one, beside), (all_tiles, around) = (np.median(found, axis=0) for found in times.values())
    return (
        f"{size}, CPU ms: one view {one:.1f} in the engine and {beside:.1f} outside, {tiles} tiles {all_tiles:.1f} "
        f"({all_tiles / one:.2f}x) and {around:.1f} ({around / beside:.2f}x): together "
        f"{(all_tiles + around) / (tiles * one + 1.2 * beside):.2f} of {tiles} networks and 1.2 times what is outside"
    )


def cpu_ms(prepare: Callable[[bytes], object], files: Sequence[bytes]) -> float:
    """Milliseconds of CPU time for one file."""
    start = time.process_time()
    for data in files:
        prepare(data)
    return 1000 * (time.process_time() - start) / len(files)


def _difference(prepare: Callable[[bytes], Pixels], files: Sequence[bytes]) -> str:
    most, share = 0, 0.0
    for data in files:
        with by_pillow():
            plain = prepare(data).astype(int)
        difference = np.abs(prepare(data) - plain)
        most, share = max(most, int(difference.max())), share + (difference > 0).mean() / len(files)
    return f"{most} | {share:.2%}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of times and differences, and what a bundle makes of them."""
    options = parser("tests.benchmarks.pictures", __doc__ or "", "PHOTOS --bundle runs/quickstart/bundle")
    options.add_argument("photos", type=Path, help=f"a folder of JPEG photos of {SIDE} pixels a side and more")
    options.add_argument("--bundle", type=Path, help="bundle directory of a model that reads images")
    options.add_argument("--engine", default="", help="one of the bundle's engines (default: the fastest)")
    options.add_argument("--count", type=int, default=50, help="mosaics of each shape (default: 50)")
    options.add_argument("--verdicts", type=int, default=1000, help="photos, and mosaics, to judge (default: 1000)")
    add_rounds(options, 7)
    given = options.parse_args(arguments)
    if not (photos := sorted(given.photos.glob("*.jpg"))):
        raise BadDataError(f"{given.photos}: no *.jpg in it")
    print(bench_resizers(photos, given.count, given.rounds))
    if given.bundle:
        print("\n" + bench_verdicts(given.bundle, given.engine, photos, given.verdicts))
        print(bench_tiles(given.bundle, given.engine, photos, given.count, given.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(answered(main))
