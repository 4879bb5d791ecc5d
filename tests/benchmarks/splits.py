"""How well splits keep their shares, and which copies share a group: `python -m tests.benchmarks.splits [SHARED]`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.test_splits import TENTHS, make_digits, make_drawings, make_pages, recompressed, rows_of
from zoo.data.manifest import SPLITS
from zoo.data.splits import assign_splits, groups_of


def main(shared: Path) -> None:
    """Print a table row for each kind of images; photos and MNIST are read from the folder of shared data."""
    photos = [Image.open(path).convert("RGB") for path in sorted((shared / "flickr8k_small").rglob("*.jpg"))[:3000]]
    digits = next(array for array in np.load(shared / "mnist" / "test.npz").values() if array.ndim == 3)
    kinds = {
        "photos": photos,
        "drawings": make_drawings(1500),
        "pages of text": make_pages(1500),
        "MNIST": [Image.fromarray(pixels).convert("RGB") for pixels in digits[:3000]],
        "digits of scikit-learn": make_digits(1797),
    }
    print("| images | train | val | test | in groups of more than one | largest | JPEG 50 | half the size | cropped |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, images in kinds.items():
        rows, prints = rows_of(images)
        counts, groups = Counter(assign_splits(rows, prints, TENTHS, 0)), Counter(groups_of(rows, prints))
        shares = " | ".join(f"{counts[split] / len(images):.3f}" for split in SPLITS)
        many = sum(size for size in groups.values() if size > 1) / len(images)
        recall = " | ".join(f"{_recall(images[:300], change):.1%}" for change in (recompressed, _half, _crop))
        print(f"| {len(images)} {name} | {shares} | {many:.1%} | {max(groups.values())} | {recall} |")


def _recall(images: list[Image.Image], change: object) -> float:
    rng = np.random.default_rng(0)
    copies = [change(image, rng) if change is _crop else change(image) for image in images]  # type: ignore[operator]
    groups = groups_of(*rows_of([*images, *copies]))
    return float(np.mean([a == b for a, b in zip(groups, groups[len(images) :], strict=False)]))


def _half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    left, up, right, down = rng.uniform(0, 0.02, 4)
    width, height = image.size
    return image.crop((round(left * width), round(up * height), round((1 - right) * width), round((1 - down) * height)))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data"))
