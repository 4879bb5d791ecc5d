#!/usr/bin/env bash
# PyAV 18.1.0 gives frames that are flushed out of a decoder by decode(None) the time NaN.
# Expected: a frame that comes out at the end has the same time base as all others, so that `frame.time` is when it is
# shown; or None, where that is not known.
# Seen: `container.decode()` and `packet.decode()` give all times. After `stream.decode(packet)` or
# `codec_context.decode(packet)` for each packet, `decode(None)` gives the last frames with the right `pts`, but
# `time_base` None and `time` NaN. NaN is neither before nor after any moment, so who chooses frames by their time
# silently passes over the last ones: here, with B-frames, over two of ten.
# The way out: `frame.pts * stream.time_base`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy
"$folder/venv/bin/python" - <<'EOF'
import io
from fractions import Fraction

import av
import numpy as np

file = io.BytesIO()
with av.open(file, "w", "mp4") as container:
    stream = container.add_stream("libx264", rate=10)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for number in range(10):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8))
        frame.pts, frame.time_base = number, Fraction(1, 10)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
data = file.getvalue()

with av.open(io.BytesIO(data)) as container:
    whole = [frame.time for frame in container.decode(video=0)]
with av.open(io.BytesIO(data)) as container:
    stream = container.streams.video[0]
    packets = [packet for packet in container.demux(stream) if packet.size]
    frames = [frame for packet in [*packets, None] for frame in stream.decode(packet)]
    computed = [float(frame.pts * stream.time_base) for frame in frames]
times = [frame.time for frame in frames]

print("container.decode()", whole)
print("stream.decode(None)", times)
print("in the last half second:", sum(time >= 0.5 for time in times), "of", sum(time >= 0.5 for time in whole))
assert computed == whole, "pts and the time base of the stream"
assert any(time != time for time in times), "no time is NaN now"
assert frames[-1].time_base is None
print("as described")
EOF
