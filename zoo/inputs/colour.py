"""From the colours of a file to sRGB: ICC profiles, PNG's gAMA, cHRM and cICP, the colour box of AVIF and HEIC, video.

LittleCMS converts (Pillow's ImageCms), so that pixels are what a viewer with colour management shows. What is sRGB
already, to two levels, is left alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from zoo.inputs.containers import png_chunks

if TYPE_CHECKING:
    from PIL import ImageCms

#: Notes on colours that could not be followed.
PROFILE_IGNORED = "profile ignored"
HDR_IGNORED = "high dynamic range ignored"
#: The note on a video of high dynamic range: its colours are those of a screen without it.
HDR_MAPPED = "high dynamic range mapped by BT.2390"

#: A larger profile is not read; those of printers take up to 3 MB.
MOST_BYTES = 4_000_000
#: Colours that are no further from sRGB, in levels of 255, count as sRGB.
_SAME = 2
#: A gamma within this share of 1 / 2.2 is taken for sRGB's curve, as libpng does.
_NEAR_GAMMA = 0.05

#: x and y of red, green, blue and white.
_D65 = (0.3127, 0.3290)
_SRGB = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *_D65)
#: The same by the number that cICP and `nclx` give (ITU-T H.273).
_PRIMARIES = {
    4: (0.670, 0.330, 0.210, 0.710, 0.140, 0.080, 0.310, 0.316),
    5: (0.640, 0.330, 0.290, 0.600, 0.150, 0.060, *_D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),
}
#: Curves that are powers, by number. Those of video (1, 6, 14, 15) are shown as sRGB's, as in browsers.
_POWERS = {4: 2.2, 5: 2.8, 8: 1.0}
_HDR = (16, 18)  # PQ and HLG
#: Primaries of video that are followed: BT.2020's and P3's. Those of BT.601 and NTSC lie near sRGB's, and players show
#: them as they are.
_WIDE = (9, 11, 12)


class Colours:
    """What makes sRGB of the pixels of one picture, strip by strip. `note` says what could not be followed."""

    def __init__(self, image: Image.Image, data: bytes = b"") -> None:
        """`image` as it was opened, and the file that it comes from."""
        self.note: str | None = None
        self._transform: ImageCms.ImageCmsTransform | None = None
        self._mode = image.mode
        try:
            profile = self._profile(image, data)
            if profile is not None:
                self._mode = _mode_for(profile, image.mode)
                self._transform = _transform(profile, self._mode)
        except Exception:  # LittleCMS refuses broken profiles by several kinds of errors
            self.note = PROFILE_IGNORED

    @property
    def same(self) -> bool:
        """Whether the pixels are sRGB as they are."""
        return self._transform is None

    def srgb(self, strip: Image.Image) -> Image.Image:
        """A strip of 8-bit grey, RGB, CMYK or LAB without transparency, as RGB in sRGB; an RGB strip is changed."""
        if self._transform is None:
            return _from_lab().apply(strip) if strip.mode == "LAB" else strip.convert("RGB")
        strip = strip if strip.mode == self._mode else strip.convert(self._mode)
        return self._transform.apply_in_place(strip) if self._mode == "RGB" else self._transform.apply(strip)

    def _profile(self, image: Image.Image, data: bytes) -> bytes | None:
        """The profile of the colours; None for sRGB, and for a picture that does not say."""
        coded = _coded(image, data)
        if coded is not None and coded[1] in _HDR:
            self.note, coded = HDR_IGNORED, None
        if coded is not None:
            return _made(_PRIMARIES[coded[0]], _POWERS.get(coded[1])) if coded[0] in _PRIMARIES else None
        if "icc_profile" in image.info:
            profile: bytes | None = image.info["icc_profile"]
            if profile is None or len(profile) > MOST_BYTES:
                raise ValueError("a profile that is not whole, or too large")
            return profile
        return None if "srgb" in image.info else _of_gamma(image)


def _coded(image: Image.Image, data: bytes) -> tuple[int, int] | None:
    """Primaries and curve by number: PNG's cICP, before any profile, or the `nclx` box of AVIF and HEIC, after it."""
    if image.format == "PNG":
        for chunk in png_chunks(data):
            if chunk.kind == b"cICP" and chunk.until - chunk.inside == 4:
                return data[chunk.inside], data[chunk.inside + 1]
            if chunk.kind == b"IDAT":
                break
    elif image.format in ("AVIF", "HEIF") and "icc_profile" not in image.info:
        place = data.find(b"colrnclx", 0, 65536)
        if 0 < place <= len(data) - 12:
            return struct.unpack_from(">HH", data, place + 8)
    return None


def _of_gamma(image: Image.Image) -> bytes | None:
    """A profile of PNG's gAMA and cHRM. What lacks one of them has sRGB's."""
    white_first: Sequence[float] = image.info.get("chromaticity", ())
    primaries = (*white_first[2:], *white_first[:2]) if white_first else _SRGB
    gamma = image.info.get("gamma")
    power = None if gamma is None or abs(2.2 * gamma - 1) <= _NEAR_GAMMA else 1 / gamma
    return None if power is None and not white_first else _made(primaries, power)


def _mode_for(profile: bytes, mode: str) -> str:
    """The mode in which pixels go through a profile. Raises ValueError where the two do not belong together."""
    space = profile[16:20]
    if mode in ("CMYK", "LAB"):
        wanted = {"CMYK": b"CMYK", "LAB": b"Lab "}[mode]
        if space == wanted:
            return mode
    elif space == b"RGB ":
        return "RGB"
    elif space == b"GRAY" and (mode in ("1", "L", "LA", "La") or mode.startswith("I")):
        return "L"
    raise ValueError(f"a profile of {space!r} for an image of mode {mode}")


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What takes pixels through a profile to sRGB; None where that changes nothing that counts."""
    from PIL import ImageCms  # LittleCMS takes 20 ms to load, and most pictures have no profile

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    transform = ImageCms.ImageCmsTransform(ImageCms.ImageCmsProfile(BytesIO(profile)), srgb, mode, "RGB")
    if mode in ("RGB", "L"):
        probe = _probe(mode)
        before = np.asarray(probe.convert("RGB"), dtype=np.int16)
        if np.abs(np.asarray(transform.apply(probe)) - before).max() <= _SAME:
            return None
    return transform


@lru_cache(maxsize=1)
def _from_lab() -> ImageCms.ImageCmsTransform:
    from PIL import ImageCms

    lab, srgb = (ImageCms.ImageCmsProfile(ImageCms.createProfile(name)) for name in ("LAB", "sRGB"))
    return ImageCms.ImageCmsTransform(lab, srgb, "LAB", "RGB")


def _probe(mode: str) -> Image.Image:
    """All greys, and for RGB a grid of colours."""
    greys = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(greys[None])
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    return Image.fromarray(np.concatenate([grid, np.repeat(greys[:, None], 3, axis=1)])[None])


#: From XYZ to the responses of the eye's cones, in which white is adapted to D50 (Bradford).
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.96422, 1.0, 0.82521])
#: ICC's parametric curve of sRGB: its kind and parameters.
_SRGB_CURVE = (3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))


@lru_cache(maxsize=8)
def _made(primaries: tuple[float, ...], power: float | None) -> bytes:
    """An ICC profile of primaries and white `(x, y)` and a curve: a power, or sRGB's for None."""
    colours, white = _to_xyz(primaries)
    cones = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    adapted = np.linalg.solve(_BRADFORD, cones @ _BRADFORD @ colours)
    kind, numbers = (0, (power,)) if power is not None else _SRGB_CURVE
    curve = b"para" + struct.pack(">IHH", 0, kind, 0) + b"".join(map(_fixed, numbers))
    tags = {
        name: b"XYZ \0\0\0\0" + b"".join(map(_fixed, adapted[:, i])) for i, name in enumerate(("rXYZ", "gXYZ", "bXYZ"))
    }
    tags |= {"wtpt": b"XYZ \0\0\0\0" + b"".join(map(_fixed, _D50)), "rTRC": curve, "gTRC": curve, "bTRC": curve}
    return _icc(tags)


def _to_xyz(primaries: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What takes linear RGB of primaries and white `(x, y)` to XYZ, `[3, 3]`, and their white in XYZ."""
    pairs = zip(primaries[::2], primaries[1::2], strict=True)
    red, green, blue, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in pairs)
    colours = np.stack([red, green, blue], axis=1)
    return colours * np.linalg.solve(colours, white), white


def _fixed(number: float) -> bytes:
    return struct.pack(">i", round(number * 65536))


def _icc(tags: dict[str, bytes]) -> bytes:
    """An ICC profile for RGB displays (version 4.2) with these tags."""
    table, body = struct.pack(">I", len(tags)), b""
    first = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name.encode() + struct.pack(">II", first + len(body), len(content))
        body += content
    size = first + len(body)
    head = struct.pack(">I4xI", size, 0x04200000) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    return head + b"".join(map(_fixed, _D50)) + bytes(48) + table + body


def profile_of_video(primaries: int) -> bytes | None:
    """The profile of a video's colours, by the number of its primaries; None for what is shown as sRGB."""
    return _made(_PRIMARIES[primaries], None) if primaries in _WIDE else None


#: In cd/m2: the brightest that BT.2390 expects of a film, and the white of a screen of common brightness (BT.2408).
_PEAK, _WHITE = 1000.0, 203.0


@lru_cache(maxsize=4)
def hdr_to_srgb(curve: int, primaries: int) -> ImageFilter.Color3DLUT | None:
    """What makes sRGB of the 8-bit codes of PQ and HLG, by the tone curve (EETF) of BT.2390; None for other curves."""
    if curve not in _HDR:
        return None
    steps = np.linspace(0, 1, 33)
    codes = np.stack(np.meshgrid(steps, steps, steps, indexing="ij")[::-1], axis=-1)  # red changes first
    light = _pq_light(codes) if curve == 16 else _hlg_light(codes)
    shown = _pq_light(_eetf(_pq_code(light))) / _WHITE
    to_srgb = np.linalg.solve(_to_xyz(_SRGB)[0], _to_xyz(_PRIMARIES.get(primaries, _PRIMARIES[9]))[0])
    linear = (shown @ to_srgb.T).clip(0, 1)
    table = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return ImageFilter.Color3DLUT(len(steps), table.ravel().tolist())


def _pq_light(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Codes of PQ in [0, 1] as light in cd/m2 (BT.2100)."""
    root = codes ** (32 / 2523)
    light = np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)
    return np.asarray(10_000 * light ** (8192 / 1305))


def _pq_code(light: NDArray[np.float64]) -> NDArray[np.float64]:
    power = (light / 10_000) ** (1305 / 8192)
    return np.asarray(((107 / 128 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32))


def _hlg_light(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Codes of HLG in [0, 1] as the light of a screen that reaches `_PEAK`, in cd/m2 (BT.2100)."""
    scene = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    bright = scene @ np.array([0.2627, 0.6780, 0.0593])
    return np.asarray(_PEAK * scene * bright[..., None] ** 0.2)


def _eetf(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Codes of PQ up to `_PEAK` as those up to `_WHITE`: dark ones stay, bright ones are bent (BT.2390, 5.4.1)."""
    peak, white = _pq_code(np.array([_PEAK, _WHITE]))
    most = white / peak
    knee = 1.5 * most - 0.5
    given = (codes / peak).clip(0, 1)
    t = (given - knee) / (1 - knee)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    return np.asarray(np.where(given < knee, given, bent) * peak)
