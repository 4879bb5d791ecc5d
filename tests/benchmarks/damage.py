"""How much damage to pictures is noted: broken files that decode to another picture, with and without a note.

A file with flipped, cut, inserted or repeated bytes is refused, decodes as before, or decodes to something else. What
of the last is not noted is judged without a word.
"""

from __future__ import annotations

import io
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.common import answered, parser
from tests.benchmarks.mutations import mutated
from zoo.errors import BadInputError
from zoo.inputs.image import decode_with_notes

#: Pixels that differ by more levels than this differ visibly, and a picture of which a hundredth does.
_VISIBLE = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of kinds of files, and of photos with a note."""
    options = parser("tests.benchmarks.damage", __doc__ or "", "--count 20000 --photos DIR")
    options.add_argument("--count", type=int, default=20_000, help="broken files (default: 20000)")
    options.add_argument("--photos", type=Path, help="a folder of whole photos, of which none may have a note")
    given = options.parse_args(arguments)
    print(
        "| file | broken | refused | as before | another picture | of which noted | visibly another | of which noted |"
    )
    print("|---|---|---|---|---|---|---|---|")
    kinds: dict[str, Counter[str]] = {}
    rng, seeds = random.Random(0), list(_seeds().items())
    for _ in range(given.count):
        name, data = rng.choice(seeds)
        kinds.setdefault(name.rpartition(".")[2], Counter()).update(_end(data, mutated(data, rng)))
    for kind, ends in [*sorted(kinds.items()), ("all", sum(kinds.values(), Counter()))]:
        columns = ("broken", "refused", "as before", "another", "noted", "visible", "visible and noted")
        print(f"| {kind} | " + " | ".join(f"{ends[column]:,}" for column in columns) + " |")
    if given.photos:
        noted = {path.name: decode_with_notes(path).notes for path in sorted(given.photos.rglob("*.jpg"))[:1000]}
        print(f"{sum(map(bool, noted.values()))} of {len(noted)} photos have a note")
    return 0


def _seeds() -> dict[str, bytes]:
    """The golden images of some kilobytes, and a small photo of each kind."""
    from export.verify.inputs import golden_images

    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    photo = small.resize((160, 120), Image.Resampling.BICUBIC)
    seeds = {name: data for name, data in golden_images().items() if len(data) < 20_000}
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("AVIF", "avif")):
        stream = io.BytesIO()
        (photo.quantize(64) if kind == "GIF" else photo).save(stream, kind)
        seeds[f"photo.{suffix}"] = stream.getvalue()
    return seeds


def _end(data: bytes, broken: bytes) -> list[str]:
    try:
        decoded = decode_with_notes(broken)
    except BadInputError:
        return ["broken", "refused"]
    whole, found = decode_with_notes(data).image, decoded.image
    if whole.size == found.size:
        difference = np.abs(np.asarray(whole).astype(np.int16) - np.asarray(found)).max(axis=2)
        visible = bool((difference > _VISIBLE).mean() > 0.01)
        if not difference.any():
            return ["broken", "as before"]
    else:
        visible = True
    noted = bool(decoded.notes)
    return [
        "broken",
        "another",
        *["noted"] * noted,
        *["visible"] * visible,
        *["visible and noted"] * (visible and noted),
    ]


if __name__ == "__main__":
    sys.exit(answered(main))
