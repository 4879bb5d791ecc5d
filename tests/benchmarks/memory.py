"""The memory that one large picture takes, above that of a process at rest and of its file, for each format.

Each picture is decoded for a model of 224 pixels, in a process of its own. Linux tells the peak.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, features

from tests.benchmarks.common import answered, parser

_CHILD = """
import io, sys, time
from PIL import Image
from zoo.errors import BadDataError
from zoo.inputs.image import decode_with_notes
data = sys.stdin.buffer.read()
stream = io.BytesIO()
Image.new("RGBA", (8, 8)).save(stream, sys.argv[1])
decode_with_notes(stream.getvalue())

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before, start = kilobytes("VmRSS"), time.process_time()
try:
    decoded = decode_with_notes(data, need=224)
    end = "{} x {}".format(*decoded.image.size)
except BadDataError as problem:
    end = f"refused: {problem}"
print(f"{(kilobytes('VmHWM') - before) * 1024 / 1e6:.0f} | {time.process_time() - start:.1f} | {end}")
"""


def _picture(width: int, height: int) -> Image.Image:
    """Smooth colours, in steps: even PNG files of it are small."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 64, width // 64, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.NEAREST).point(lambda level: level & 0xC0)


def _clear(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(128)
    return image


def _deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6
#: Name, Pillow's format, its options, and what is done to the picture.
KINDS: tuple[tuple[str, str, dict[str, object], Callable[[Image.Image], Image.Image] | None], ...] = (
    ("JPEG", "JPEG", {}, None),
    ("JPEG, progressive", "JPEG", {"progressive": True}, None),
    ("JPEG, progressive, 4:4:4", "JPEG", {"progressive": True, "subsampling": 0}, None),
    ("JPEG, on its side", "JPEG", {"exif": SIDEWAYS}, None),
    ("PNG, on its side", "PNG", {"compress_level": 1, "exif": SIDEWAYS}, None),
    ("JPEG, CMYK", "JPEG", {}, lambda image: image.convert("CMYK")),
    ("PNG, RGB", "PNG", {"compress_level": 1}, None),
    ("PNG, RGBA", "PNG", {"compress_level": 1}, _clear),
    ("PNG, 16 bits", "PNG", {"compress_level": 1}, _deep),
    ("PNG, palette", "PNG", {"compress_level": 1}, lambda image: image.quantize(16, method=Image.Quantize.FASTOCTREE)),
    ("GIF", "GIF", {}, lambda image: image.quantize(16, method=Image.Quantize.FASTOCTREE)),
    ("TIFF, LZW", "TIFF", {"compression": "tiff_lzw"}, None),
    ("TIFF, on its side", "TIFF", {"compression": "tiff_lzw", "tiffinfo": SIDEWAYS}, None),
    ("TIFF, RGBA", "TIFF", {"compression": "tiff_lzw"}, _clear),
    ("WebP", "WEBP", {"method": 0}, None),
    ("WebP, RGBA", "WEBP", {"method": 0}, _clear),
    ("WebP, lossless", "WEBP", {"method": 0, "lossless": True, "quality": 0}, None),
    ("AVIF", "AVIF", {"speed": 10}, None),
    ("AVIF, RGBA", "AVIF", {"speed": 10}, _clear),
)


def bench_memory(size: tuple[int, int], kinds: Sequence[str] = ()) -> str:
    """A table of the peak of each format, or of those whose name begins with one of `kinds`."""
    plain = _picture(*size)
    lines = ["| format | MB of the file | peak MB above rest | CPU s | decoded |", "|---" * 5 + "|"]
    for name, kind, options, change in KINDS:
        if (kinds and not name.startswith(tuple(kinds))) or (kind == "AVIF" and not features.check("avif")):
            continue
        stream = io.BytesIO()
        (change(plain) if change else plain).save(stream, kind, **options)
        data = stream.getvalue()
        words = [sys.executable, "-c", _CHILD, "PNG" if kind == "JPEG" else kind]
        done = subprocess.run(words, input=data, capture_output=True, check=True)
        lines.append(f"| {name} | {len(data) / 1e6:.1f} | {done.stdout.decode().strip()} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    options = parser("tests.benchmarks.memory", __doc__ or "", "--only WebP AVIF")
    options.add_argument("--size", type=int, nargs=2, default=(9216, 6912), help="pixels (default: 9216 6912)")
    options.add_argument("--only", nargs="+", default=(), help="formats, by how their names begin")
    given = options.parse_args(arguments)
    print(bench_memory(given.size, given.only))
    return 0


if __name__ == "__main__":
    sys.exit(answered(main))
