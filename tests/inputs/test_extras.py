"""HEIC and JPEG XL: read by packages of their own where they are installed, and named where they are not."""

from __future__ import annotations

import builtins
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.inputs import profiles
from tests.inputs.heic import HEIC, heic
from tests.inputs.test_colour import by_littlecms, drawn
from zoo.errors import BadDataError
from zoo.inputs.image import DEFAULT_LIMITS, ImageLimits, decode, decode_with_notes
from zoo.inputs.picture import later_frames
from zoo.judging.scorer import Scorer
from zoo.release.store import load_scorer

JXL = (b"\xff\x0a\xfa\x1f\x01\x90\x08\x06\x01\x00\x10\x00", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40))


def colours(image: Image.Image, *places: tuple[int, int]) -> Any:
    return np.array([image.getpixel(place) for place in places])


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] in ("pi_heif", "pillow_heif", "pylibjxl"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("zoo.inputs.formats.import_module", lambda name: without(name))


@pytest.mark.parametrize(
    ("data", "extra"), [(heic("turned"), "heic"), (JXL[0], "jxl"), (JXL[1], "jxl")], ids=["heic", "jxl", "jxl in boxes"]
)
def test_what_is_missing_is_named_and_no_picture_is_lost(data: bytes, extra: str, nothing_installed: None) -> None:
    with pytest.raises(
        BadDataError, match=rf'bytes: a file that the extra "{extra}" reads: pip install "safety-zoo.{extra}'
    ):
        decode(data)
    with load_scorer("test_safeclip.random") as scorer:
        assert isinstance(scorer, Scorer)
        lost, found = scorer.verdicts([data, np.zeros((8, 8, 3), dtype=np.uint8)])
    assert (lost.status, lost.decision, found.status) == ("unreadable", "unknown", "ok")
    assert extra in lost.detail


@pytest.fixture
def reads_heic() -> None:
    pytest.importorskip("pi_heif")


@pytest.fixture
def jxl() -> Any:
    return pytest.importorskip("pylibjxl")


@pytest.mark.usefixtures("reads_heic")
class TestHeic:
    def test_a_picture_is_turned_once(self) -> None:
        image = decode(heic("turned"))
        assert image.size == (16, 32)
        assert np.abs(colours(image, (8, 8), (8, 24)) - [[255, 0, 0], [0, 0, 255]]).max() <= 6

    def test_the_primary_picture_counts(self) -> None:
        first = decode_with_notes(heic("second_is_primary"))
        assert first.frames == 2
        assert np.abs(colours(first.image, (8, 8)) - [255, 0, 0]).max() <= 6
        (other,) = later_frames(heic("second_is_primary"), DEFAULT_LIMITS, None, 2)
        assert np.abs(colours(other.picture.image, (8, 8)) - [0, 255, 0]).max() <= 6

    def test_transparency_is_laid_on_white(self) -> None:
        assert np.abs(colours(decode(heic("alpha")), (2, 8), (13, 8)) - [[255, 0, 0], [255, 255, 255]]).max() <= 6

    def test_a_profile_is_followed(self) -> None:
        wanted = by_littlecms(Image.new("RGB", (1, 1), (60, 200, 60)), profiles.SWAPPED)[0]
        decoded = decode_with_notes(heic("profile"))
        assert np.abs(colours(decoded.image, (8, 8)) - wanted).max() <= 8
        assert decoded.notes == ()

    def test_limits_and_damage(self) -> None:
        data = heic("turned")
        with pytest.raises(BadDataError, match="16 x 32 pixels, the limit is 100"):
            decode(data, ImageLimits(max_pixels=100))
        with pytest.raises(BadDataError):
            decode(data[: len(data) // 2])

    def test_pillow_itself_learns_nothing(self) -> None:
        decode(heic("turned"))
        with pytest.raises(OSError, match="cannot identify"):
            Image.open(io.BytesIO(heic("turned")))


class TestJpegXL:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
    def test_pixels_come_back(self, mode: str, jxl: Any) -> None:
        image = drawn(mode)
        if mode == "RGBA":
            image.putalpha(255)
        found = decode(jxl.encode(np.asarray(image), lossless=True))
        assert np.array_equal(np.asarray(found), np.asarray(image.convert("RGB")))

    def test_transparency_is_laid_on_white(self, jxl: Any) -> None:
        image = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
        image.paste((0, 0, 0, 0), (8, 0, 16, 16))
        found = decode(jxl.encode(np.asarray(image), lossless=True))
        assert colours(found, (2, 2), (13, 2)).tolist() == [[255, 0, 0], [255, 255, 255]]

    def test_a_large_picture_with_transparency_is_the_one_that_was_made(self, jxl: Any) -> None:
        image = Image.new("RGBA", (2000, 1200), (200, 20, 20, 255))
        image.paste((0, 0, 0, 0), (0, 0, 100, 100))
        found = decode(jxl.encode(np.asarray(image), lossless=True))
        assert colours(found, (50, 50), (1500, 900)).tolist() == [[255, 255, 255], [200, 20, 20]]

    def test_a_profile_is_followed(self, jxl: Any) -> None:
        data = jxl.encode(np.asarray(drawn()), lossless=True, icc=profiles.SWAPPED)
        difference = np.asarray(decode(data)).astype(int) - by_littlecms(drawn(), profiles.SWAPPED)
        assert np.abs(difference).max() <= 3

    def test_exif_turns_nothing_because_the_decoder_has(self, jxl: Any) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        assert decode(jxl.encode(np.asarray(drawn())[:20], lossless=True, exif=exif.tobytes())).size == (48, 20)

    def test_limits_come_before_pixels(self, jxl: Any) -> None:
        data = jxl.encode(np.zeros((3000, 3000, 3), dtype=np.uint8), lossless=True)
        with pytest.raises(BadDataError, match="3000 x 3000 pixels, the limit is 1,000,000"):
            decode(data, ImageLimits(max_pixels=1_000_000))
        with pytest.raises(BadDataError, match="broken or truncated"):
            decode(data[:-8])


def test_the_samples_are_whole() -> None:
    assert all(heic(name)[4:12] == b"ftypheic" for name in HEIC)
