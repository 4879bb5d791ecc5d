"""Large WebP files are decoded row by row, to the pixels of Pillow's decoder; what is damaged is left to that one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.inputs.files import encoded
from tests.inputs.test_memory import _detailed
from zoo.errors import BadDataError
from zoo.inputs import webp
from zoo.inputs.image import Decoded, decode_with_notes

pytestmark = pytest.mark.skipif(webp._libwebp() is None, reason="the libwebp of this Pillow cannot be called")


def _picture(mode: str, width: int = 259, height: int = 1027) -> Image.Image:
    image = _detailed(width, height)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _parts(decoded: Decoded) -> list[Any]:
    pictures = [decoded.image, *decoded.grounds.values()]
    about = (decoded.size, decoded.scale, decoded.notes, decoded.frames, decoded.transparent, list(decoded.grounds))
    return [about, *(picture.tobytes() for picture in pictures)]


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """All pictures are large, and rows are converted eight at a time."""
    monkeypatch.setattr("zoo.inputs.picture._MUCH", 0)
    monkeypatch.setattr("zoo.inputs.pixels._STRIP", 8 * 259)
    return monkeypatch


@pytest.mark.parametrize("orientation", [1, 4, 6])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [{"lossless": True, "quality": 0}, {"quality": 60}], ids=["lossless", "lossy"])
def test_the_pixels_are_those_of_pillow(
    options: dict[str, Any], mode: str, orientation: int, by_rows: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(_picture(mode), "WEBP", method=0, exif=exif, **options)
    with by_rows.context() as rows:
        rows.setattr("PIL.WebPImagePlugin.WebPImageFile.load", None)  # which is not asked
        found = {need: decode_with_notes(data, need=need) for need in (None, 16)}
    by_rows.setattr("zoo.inputs.webp._libwebp", lambda: None)
    for need, decoded in found.items():
        assert _parts(decoded) == _parts(decode_with_notes(data, need=need))
    assert found[16].scale == 4


def _outcome(data: bytes) -> object:
    try:
        return _parts(decode_with_notes(data))
    except BadDataError as problem:
        return str(problem)


@pytest.mark.parametrize("lossless", [True, False])
def test_what_is_damaged_comes_out_as_by_pillow(lossless: bool, by_rows: pytest.MonkeyPatch) -> None:
    data = encoded(_picture("RGBA", 64, 48), "WEBP", method=0, lossless=lossless)
    places = np.random.default_rng(0).integers(0, 8 * len(data), 60).tolist()
    files = [data[: len(data) * part // 8] for part in range(1, 8)]
    files += [data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :] for bit in places]
    found = [_outcome(file) for file in files]
    by_rows.setattr("zoo.inputs.webp._libwebp", lambda: None)
    assert found == [_outcome(file) for file in files]
    assert len({type(outcome) for outcome in found}) == 2  # some are refused, some are not


def test_animations_are_left_to_pillow(by_rows: pytest.MonkeyPatch) -> None:
    frames = [_picture("RGB", 64, 48), Image.new("RGB", (64, 48), "red")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    decoded = decode_with_notes(data)
    assert decoded.frames == 2
    assert np.array_equal(np.asarray(decoded.image), np.asarray(frames[0]))
    rows = webp.webp_rows(data, (64, 48), "RGB")
    assert rows is not None
    with pytest.raises(webp.RowsError):
        rows.crop((0, 0, 64, 48))
