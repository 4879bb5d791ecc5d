#!/usr/bin/env bash
# Pillow 13.0.0 writes MPO files (JPEGs of several pictures) whose index is wrong from the fourth picture on.
# Expected: `save(..., "MPO", save_all=True, append_images=...)` lists where each picture begins, so that Pillow, and
# every reader that goes by the index, finds all of them again.
# Seen: a length is written as the end of a picture less the length before it, which is right for the first two only.
# Places are sums of lengths, so they are wrong from the fourth picture on: n_frames says 5, and seek fails there with
# "not a JPEG file" or "No data found for frame", though every picture is in the file.
# Who judges pictures frame by frame sees three of five; the others must count as not looked at.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0
"$folder/venv/bin/python" - <<'EOF'
import io

from PIL import Image

pictures = [Image.new("RGB", (64, 64), (50 * number, 0, 0)) for number in range(5)]
stream = io.BytesIO()
pictures[0].save(stream, "MPO", save_all=True, append_images=pictures[1:])
data = stream.getvalue()

starts = [place for place in range(len(data)) if data[place : place + 3] == b"\xff\xd8\xff"]
image = Image.open(io.BytesIO(data))
said = [entry["Size"] for entry in image.mpinfo[0xB002]]
found = [end - start for start, end in zip(starts, [*starts[1:], len(data)])]
read = []
for number in range(image.n_frames):
    try:
        image.seek(number)
        image.load()
        read.append(number)
    except (OSError, ValueError, EOFError, SyntaxError) as problem:
        print(f"picture {number}: {problem}")

print("pictures in the file", len(starts), "| n_frames", image.n_frames, "| read", read)
print("lengths", found, "| in the index", said)
assert len(starts) == image.n_frames == 5
assert sum(found) == len(data)
assert sum(said) > len(data), "the index is right now"
assert read == [0, 1, 2], "all pictures are read now"
print("as described")
EOF
