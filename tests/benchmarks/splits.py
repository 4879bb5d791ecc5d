"""How well splits keep their shares, and which copies share a group, on photos, digits and drawn kinds of images."""

from __future__ import annotations

import importlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.common import answered, parser
from tests.data import test_splits as kinds
from tests.data.test_splits import TENTHS, half, half_recompressed, quarter, recompressed, rows_of
from zoo.data.manifest import SPLITS, Split
from zoo.data.splits import assign_splits, draw, groups_of, joined
from zoo.errors import BadArgumentError

COPIES = 150
#: Hashes of imagehash, and the bits that two may differ in: imagededup takes 10 where none is given.
PEERS = (("phash", 4), ("phash", 10), ("dhash", 4), ("dhash", 10))
#: What gives the group of each of some images, and what gives the split of each.
Divided = tuple[Callable[[], list[int]], Callable[[], list[Split]]]
Method = Callable[[list[Image.Image]], Divided]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table row for each kind of images."""
    options = parser("tests.benchmarks.splits", __doc__ or "", "../shared/data --kind MNIST")
    options.add_argument("data", type=Path, help="a folder that holds flickr8k_small/**/*.jpg and mnist/test.npz")
    options.add_argument("--kind", help="this row alone, as the table names it")
    options.add_argument("--peers", action="store_true", help="also groups by the hashes of imagehash")
    given = options.parse_args(arguments)
    shared, only = given.data, given.kind
    if not shared.is_dir():
        raise BadArgumentError(f"{shared}: no such folder of photos and digits")
    made: dict[str, Callable[[], list[Image.Image]]] = {
        "photos": partial(_photos, shared),
        "drawings": partial(kinds.make_drawings, 1500),
        "pages of text": partial(kinds.make_pages, 1500),
        "slides": partial(kinds.make_slides, 800),
        "forms": partial(kinds.make_forms, 800),
        "charts": partial(kinds.make_charts, 800),
        "icons": partial(kinds.make_icons, 800),
        "MNIST": partial(_mnist, shared),
        "digits of scikit-learn": partial(kinds.make_digits, 1797),
    }
    if only is not None and only not in made:
        raise BadArgumentError(f'`kind`: no row is called "{only}"; known: {", ".join(made)}')
    changes = (recompressed, half, half_recompressed, quarter, _crop)
    print(
        "| images | train | val | test | largest group | seconds | JPEG 50 | half | half, JPEG 60 | quarter | cropped |"
    )
    print("| --- " * 11 + "|")
    for name, make in made.items():
        if only and only != name:
            continue
        images = make()
        methods: dict[str, Method] = {"": _ours}
        if given.peers:
            methods |= {f", {kind} within {bits}": partial(_peers, kind, bits) for kind, bits in PEERS}
        for method, divide in methods.items():
            groups, assign = divide(images)
            start = time.perf_counter()
            counts = Counter(assign())
            seconds = time.perf_counter() - start
            shares = " | ".join(f"{counts[split] / len(images):.3f}" for split in SPLITS)
            largest = max(Counter(groups()).values())
            apart = " | ".join(_apart(divide, images[:COPIES], change) for change in changes)
            print(f"| {len(images)} {name}{method} | {shares} | {largest} | {seconds:.1f} | {apart} |", flush=True)
    return 0


def _ours(images: list[Image.Image]) -> Divided:
    rows, prints = rows_of(images)
    return partial(groups_of, rows, prints), partial(assign_splits, rows, prints, TENTHS, 0)


def _peers(kind: str, bits: int, images: list[Image.Image]) -> Divided:
    """Images whose hashes of 64 bits differ in at most `bits` are copies, and a group draws its split as a whole."""
    imagehash = importlib.import_module("imagehash")
    hashes = np.array([np.packbits(getattr(imagehash, kind)(image).hash).view(np.uint64)[0] for image in images])

    def groups() -> list[int]:
        near = np.bitwise_count(hashes[:, None] ^ hashes) <= bits
        return joined(len(images), ((int(a), int(b)) for a, b in np.argwhere(np.triu(near, 1))))

    def splits() -> list[Split]:
        cuts = np.cumsum(TENTHS)[:2]
        return [SPLITS[int(np.searchsorted(cuts, draw(f"{hashes[leader]}", 0), "right"))] for leader in groups()]

    return groups, splits


def _photos(shared: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((shared / "flickr8k_small").rglob("*.jpg"))[:3000]]


def _mnist(shared: Path) -> list[Image.Image]:
    digits = next(array for array in np.load(shared / "mnist" / "test.npz").values() if array.ndim == 3)
    return [Image.fromarray(pixels).convert("RGB") for pixels in digits[:3000]]


def _apart(divide: Method, images: list[Image.Image], change: Callable[..., Image.Image]) -> str:
    """How many copies are in another group than their original, and how many of them in another split."""
    rng = np.random.default_rng(0)
    copies = [change(image, rng) if change is _crop else change(image) for image in images]
    of_groups, of_splits = divide([*images, *copies])
    groups, splits = of_groups(), of_splits()
    pairs = [(place, place + len(images)) for place in range(len(images))]
    missed, straddle = sum(groups[a] != groups[b] for a, b in pairs), sum(splits[a] != splits[b] for a, b in pairs)
    return f"{missed} ({straddle})"


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    left, up, right, down = rng.uniform(0, 0.02, 4)
    width, height = image.size
    return image.crop((round(left * width), round(up * height), round((1 - right) * width), round((1 - down) * height)))


if __name__ == "__main__":
    sys.exit(answered(main))
