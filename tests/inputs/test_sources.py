"""What is taken as an image, and that anything else is an error of the caller, never a verdict."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inputs.files import encoded
from zoo.contract.card import ImageInput
from zoo.errors import BadDataError, BadInputError, BadTypeError, ZooError
from zoo.inputs.image import ImageLimits, decode, fit, load, owned

SPEC = ImageInput(32, "shortest_edge_crop", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
PNG = encoded(Image.fromarray(PIXELS))


class _Parts(io.RawIOBase):
    """A stream that gives a few bytes at a time, as a socket does."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 100))


def _chw(dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(PIXELS.copy()).permute(2, 0, 1)
    return tensor if dtype == torch.uint8 else (tensor / 255).to(dtype)


SOURCES: dict[str, Any] = {
    "bytes": PNG,
    "bytearray": bytearray(PNG),
    "memoryview": memoryview(PNG),
    "stream": io.BytesIO(PNG),
    "parts": _Parts(PNG),
    "array": PIXELS,
    "array of floats": PIXELS.astype(np.float32) / 255,
    "array of doubles": PIXELS / 255,
    "array of half floats": (PIXELS / 255).astype(np.float16),
    "tensor": _chw(torch.uint8),
    "tensor of floats": _chw(torch.float32),
    "tensor of half floats": _chw(torch.float16),
    "tensor with gradients": _chw(torch.float32).requires_grad_(),
    "pillow": Image.fromarray(PIXELS),
    "pillow, opened": Image.open(io.BytesIO(PNG)),
    "pillow, RGBA": Image.fromarray(PIXELS).convert("RGBA"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_gives_the_same_pixels(name: str) -> None:
    kept = owned(SOURCES[name])
    assert np.array_equal(np.asarray(decode(kept)), PIXELS)
    assert np.array_equal(load(kept, SPEC), load(PIXELS, SPEC))


def test_a_tensor_of_bfloat16_within_its_steps() -> None:
    assert np.abs(np.asarray(decode(_chw(torch.bfloat16))).astype(int) - PIXELS).max() <= 1


def test_a_file_that_is_open_is_read_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"12345" + PNG)
    with path.open("rb") as stream:
        stream.seek(5)
        assert np.array_equal(np.asarray(decode(stream)), PIXELS)
        assert not stream.closed
        with pytest.raises(BadDataError, match=r"image\.png: empty file"):
            decode(stream)
    with pytest.raises(BadDataError, match="cannot be read"):
        decode(stream)
    with pytest.raises(BadDataError, match="larger than the limit of 50 bytes"):
        decode(io.BytesIO(PNG), ImageLimits(max_bytes=50))


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_grey_arrays(shape: tuple[int, ...], dtype: Any) -> None:
    grey = PIXELS[:, :, 0]
    array = (grey if dtype == np.uint8 else grey / 255).astype(dtype).reshape(shape)
    assert np.array_equal(np.asarray(decode(array)), np.repeat(grey[..., None], 3, axis=2))
    tensor = torch.from_numpy(array.reshape(1, 7, 5))
    assert np.array_equal(np.asarray(decode(tensor)), np.repeat(grey[..., None], 3, axis=2))


def _floats(least: float, most: float) -> Any:
    return np.linspace(least, most, 96, dtype=np.float32).reshape(4, 8, 3)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (np.full((4, 4, 3), np.nan, dtype=np.float32), "holds NaN.*got float32"),
        (_floats(0, 255), r"floats of an image lie in \[0, 1\], found 0 to 255"),
        (_floats(-1, 1), r"lie in \[0, 1\], found -1 to 1"),
        (_floats(0, np.inf), r"holds NaN|found 0 to inf"),
        (np.zeros((3, 8, 8), dtype=np.uint8), r"got uint8 \[3, 8, 8\]; transpose to channels last"),
        (np.zeros((1, 8, 8), dtype=np.float32), r"got float32 \[1, 8, 8\]; transpose to channels last"),
        (np.zeros((3, 8, 3), dtype=np.uint8), r"reads as \[3, H, W\] and as \[H, W, 3\]"),
        (np.zeros((8, 8, 4), dtype=np.uint8), r"got uint8 \[8, 8, 4\]; lay it on a ground"),
        (np.zeros((8, 8, 2), dtype=np.uint8), r"got uint8 \[8, 8, 2\]"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), "a batch: give its images one by one"),
        (np.zeros(8, dtype=np.uint8), r"got uint8 \[8\]"),
        (np.zeros((0, 8, 3), dtype=np.uint8), "has no pixels"),
        (torch.zeros(8, 8, 3), r"must be \[3, H, W\].*got torch.float32 \[8, 8, 3\]; permute it"),
        (torch.zeros(3, 8, 3), r"reads as \[3, H, W\] and as \[H, W, 3\]"),
        (torch.zeros(1, 3, 8, 8), r"a batch of one: give tensor\[0\]"),
        (torch.zeros(8, 8), "must be .3, H, W. RGB or .1, H, W. grey"),
        (torch.full((3, 8, 8), 2.0), "found 2 to 2"),
        (torch.full((3, 8, 8), torch.nan), "holds NaN"),
        (torch.zeros(3, 0, 8), "has no pixels"),
    ],
)
def test_pixels_without_a_known_meaning_are_refused(source: Any, named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        decode(source)
    with pytest.raises(BadInputError, match=named):
        load(source, SPEC)


def test_rounding_beyond_the_range_is_taken() -> None:
    array = np.array([[[1 + 1e-7, -1e-7, 0.5]]])
    assert np.asarray(decode(array))[0, 0].tolist() == [255, 0, 128]


#: Without a range that is known: of 16 bits it might be that of the 12 that a camera gives.
OTHER_VALUES = [
    *(np.zeros((4, 5, 3), dtype=kind) for kind in ("i1", "i2", "i4", "i8", "u2", "u4", "u8", ">u2", "?", "c8", "c16")),
    *(np.zeros((4, 5, 3), dtype=kind) for kind in ("O", "U1", "S1", "M8[s]", "V3")),
    *(
        torch.zeros((3, 4, 5), dtype=getattr(torch, kind))
        for kind in ("int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "bool", "complex32", "complex64")
    ),
    torch.zeros((3, 4, 5)).to_sparse(),
    torch.zeros((3, 4, 5), device="meta"),
]


@pytest.mark.parametrize("source", OTHER_VALUES, ids=lambda source: f"{type(source).__module__} {source.dtype}")
def test_pixels_of_another_type_are_a_type_error(source: Any) -> None:
    for take in (decode, owned, lambda source: load(source, SPEC)):
        with pytest.raises(BadTypeError, match=r"pixels are uint8 .* or floats .*, got an? (array|tensor) of "):
            take(source)


def _no_sources(tmp_path: Path) -> list[Any]:
    text = tmp_path / "text.txt"
    text.write_text("abc", encoding="utf-8")
    return [
        3,
        2.5,
        None,
        [PIXELS],
        (1, 2),
        {"image": PNG},
        object(),
        text.open(encoding="utf-8"),
        io.StringIO("a"),
        iter([PNG]),
    ]


def test_any_other_type_is_a_type_error(tmp_path: Path) -> None:
    for source in _no_sources(tmp_path):
        for take in (decode, owned, lambda source: load(source, SPEC)):
            with pytest.raises(TypeError, match="an image is a path, the bytes of a file") as refusal:
                take(source)
            assert isinstance(refusal.value, BadTypeError)
            assert isinstance(refusal.value, ZooError)
            assert not isinstance(refusal.value, BadInputError), "a scorer would call it unreadable"


def test_a_stream_that_gives_text_is_a_type_error() -> None:
    class Text:
        def read(self, _: int) -> str:
            return "text"

    with pytest.raises(BadTypeError, match="reading a stream gave str"):
        decode(Text())  # type: ignore[arg-type]


def test_what_is_owned_outlives_the_callers_changes(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(PNG)
    array, tensor, pillow = PIXELS.copy(), _chw(torch.uint8).clone(), Image.fromarray(PIXELS)
    with path.open("rb") as stream:
        kept = [owned(source) for source in (array, tensor, pillow, stream, bytearray(PNG), path)]
    array[:], tensor[:] = 0, 0
    pillow.paste((0, 0, 0), (0, 0, 5, 7))
    for source in kept:
        assert np.array_equal(np.asarray(decode(source)), PIXELS)


def test_a_broken_pillow_image_is_owned_and_refused_when_it_is_decoded() -> None:
    broken = Image.open(io.BytesIO(encoded(Image.effect_noise((300, 300), 90))[:5000]))
    kept = owned(broken)
    with pytest.raises(BadDataError, match="a Pillow image: broken or truncated"):
        decode(kept)


def test_pillow_images_are_seen_as_their_files_are_and_stay_as_they_are(golden: dict[str, bytes]) -> None:
    for name, data in golden.items():
        image = Image.open(io.BytesIO(data))
        assert np.array_equal(np.asarray(decode(image)), np.asarray(decode(data))), name
        with Image.open(io.BytesIO(data)) as same:
            assert (image.mode, image.size, image.tell()) == (same.mode, same.size, 0), name
            assert np.array_equal(np.asarray(image), np.asarray(same)), name
            assert image.info.get("icc_profile") == same.info.get("icc_profile")


def test_a_pillow_image_counts_at_its_present_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    image = Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    image.seek(1)
    assert np.asarray(decode(image))[0, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize(
    ("mode", "reason"), [("F", "floating-point pixels"), ("I", "32-bit pixels have no defined range")]
)
def test_pillow_images_without_a_range_are_refused(mode: str, reason: str) -> None:
    with pytest.raises(BadDataError, match=f"a Pillow image: {reason}"):
        decode(Image.new(mode, (4, 4)))


def test_pillow_images_have_the_limit_of_files() -> None:
    with pytest.raises(BadDataError, match="16 x 16 pixels, the limit is 255"):
        decode(Image.new("RGB", (16, 16)), ImageLimits(max_pixels=255))


def test_tensors_are_recognised_without_an_import_of_torch() -> None:
    code = "import sys; from zoo.inputs.image import decode; decode(b'x') if 0 else None; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_paths_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(PNG)

    class Named(os.PathLike[str]):
        def __fspath__(self) -> str:
            return str(path)

    for source in (path, str(path), Named()):
        assert np.array_equal(fit(decode(source), SPEC), load(PIXELS, SPEC))
