#!/usr/bin/env bash
# Pillow 13.0.0 shrinks a tall picture to other pixels than Pillow 12.3.0 does, by the same call and filter.
# Expected: `resize(size, BICUBIC)` gives the same pixels in both, or the change is written down as one of results: weights
# that were trained on the one are run on the other, and a picture near a threshold keeps its verdict.
# Seen: where the height shrinks by more than twice as many pixels as the width, Pillow 13 goes down first and then across,
# Pillow 12 always across first. Between the passes values are rounded and cut to 0..255, so that the results differ by
# many grey levels on detailed pictures; wide ones and squares are equal to the bit.
# What it means: pin Pillow together with a model, or compare with a tolerance; another implementation of the resize
# (ours in the graph of an engine) equals either of the two on tall pictures, never both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 12.3.0 13.0.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet "pillow==$version" numpy
  "$folder/$version/bin/python" - "$folder/$version.npz" <<'EOF'
import sys

import numpy as np
from PIL import Image

found = {}
for width, height in ((1024, 768), (400, 400), (240, 480), (300, 900), (300, 3200)):
    noise = 255 * np.random.default_rng(0).integers(0, 2, (height, width, 3), dtype=np.uint8)
    small = Image.fromarray(noise).resize((224, 224), Image.Resampling.BICUBIC)
    found[f"{width}x{height}"] = np.asarray(small).astype(int)
np.savez(sys.argv[1], **found)
EOF
done
"$folder/13.0.0/bin/python" - "$folder/12.3.0.npz" "$folder/13.0.0.npz" <<'EOF'
import sys

import numpy as np

old, new = (np.load(path) for path in sys.argv[1:])
most = {size: int(np.abs(old[size] - new[size]).max()) for size in old.files}
print("largest difference in grey levels between Pillow 12.3.0 and 13.0.0:", most)
assert most["1024x768"] == most["400x400"] == 0
assert min(most[size] for size in ("240x480", "300x900", "300x3200")) >= 4, "tall pictures are equal now"
print("as described")
EOF
