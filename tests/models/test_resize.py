"""One resize everywhere: Pillow on the crop is Pillow on the whole, and the differentiable one equals it."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from zoo.contract.card import ImageInput
from zoo.inputs import image as images
from zoo.inputs.image import Pixels, decode, fit, load, resizer
from zoo.models.base import Normalise, Resize
from zoo.registry import list_models, model_entry

SIZES = [(640, 480), (333, 500), (224, 224), (97, 61), (1000, 64), (40, 300), (30, 20)]


def _specs() -> list[ImageInput]:
    """Every way that a registered model resizes, and the ways that none does yet; small, for speed."""
    found = {(s.resize, s.interpolation) for s in (model_entry(n).card.image for n in list_models()) if s is not None}
    found |= {("shortest_edge_crop", "bilinear"), ("squash", "bilinear"), ("squash", "bicubic")}
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    ways = [ImageInput(side, *how, mean, std) for how in sorted(found) for side in (64, 97)]
    return ways + [replace(spec, margin=1 / 16) for spec in ways if (spec.resize, spec.interpolation) in MARGINS]


MARGINS = {("squash", "bicubic"), ("squash", "bilinear")}


def _named(spec: ImageInput) -> str:
    return f"{spec.resize}-{spec.interpolation}-{spec.size}" + "-margin" * (spec.margin > 0)


def _drawn(width: int, height: int) -> Image.Image:
    """A picture with smooth gradients and soft shapes."""
    rng = np.random.default_rng(width * height)
    image = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((width, height))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        colour = tuple(rng.integers(0, 256, 3).tolist())
        draw.ellipse([x - width // 6, y - height // 6, x + width // 6, y + height // 6], fill=colour)
    return image.filter(ImageFilter.GaussianBlur(2))


def _by_torch(image: Image.Image, spec: ImageInput) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    found: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = Resize(spec)(pixels)[0].permute(1, 2, 0).numpy() * 255
    return found


def _whole_then_crop(image: Image.Image, spec: ImageInput) -> Pixels:
    """What CLIP's own preprocessing does."""
    method = Image.Resampling.BICUBIC if spec.interpolation == "bicubic" else Image.Resampling.BILINEAR
    short = min(image.size)
    width, height = (spec.size * edge // short for edge in image.size)
    left, top = (width - spec.size) // 2, (height - spec.size) // 2
    whole = image.resize((width, height), method)
    return np.asarray(whole.crop((left, top, left + spec.size, top + spec.size)))


CROPS = [spec for spec in _specs() if spec.resize == "shortest_edge_crop"]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("spec", CROPS, ids=lambda spec: f"{spec.interpolation}-{spec.size}")
def test_resizing_the_crop_is_cropping_the_resized(spec: ImageInput, size: tuple[int, int]) -> None:
    image = _drawn(*size)
    difference = np.abs(fit(image, spec).astype(int) - _whole_then_crop(image, spec))
    # Pillow rounds to 8 bits between its two passes and may take them in another order for the smaller box.
    assert difference.max() <= 2
    assert (difference > 1).mean() < 1e-3


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("spec", _specs(), ids=_named)
def test_torch_equals_pillow_on_drawn_images(spec: ImageInput, size: tuple[int, int]) -> None:
    image = _drawn(*size)
    assert np.abs(_by_torch(image, spec) - fit(image, spec)).max() <= 1.1


@pytest.mark.shared_data
@pytest.mark.parametrize("spec", _specs(), ids=_named)
def test_torch_equals_pillow_on_photos(spec: ImageInput, shared: Path) -> None:
    for path in sorted((shared / "flickr8k_small" / "images").glob("*.jpg"))[:12]:
        image = decode(path)
        assert np.abs(_by_torch(image, spec) - fit(image, spec)).max() <= 1.1, path.name


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_margin_is_a_larger_resize_whose_edges_are_cut_off(
    size: tuple[int, int], chosen_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    image = _drawn(*size)
    spec = ImageInput(224, "squash", "bilinear", (0.0,) * 3, (1.0,) * 3, margin=1 / 16)
    whole = image.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    np.testing.assert_array_equal(fit(image, spec), np.asarray(whole))


def test_pixels_of_the_models_own_size_are_what_it_reads() -> None:
    spec = ImageInput(64, "squash", "bilinear", (0.0,) * 3, (1.0,) * 3, margin=1 / 16, recompress=75)
    image = _drawn(64, 64)
    np.testing.assert_array_equal(load(np.asarray(image), spec), np.asarray(image))
    assert np.abs(_by_torch(image, spec) - np.asarray(image)).max() <= 0.1
    assert np.abs(fit(image, spec).astype(int) - np.asarray(image)).max() > 3, "a file of that size is cut"


def test_recompressed_pixels_are_those_of_a_jpeg() -> None:
    image = _drawn(97, 61)
    spec = ImageInput(64, "squash", "bilinear", (0.0,) * 3, (1.0,) * 3)
    stream = io.BytesIO()
    Image.fromarray(fit(image, spec)).save(stream, "JPEG", quality=40)
    found = fit(image, replace(spec, recompress=40))
    np.testing.assert_array_equal(found, np.asarray(Image.open(stream)))
    assert found.flags.writeable
    assert np.abs(found.astype(int) - fit(image, spec)).max() > 3


@pytest.mark.parametrize(
    "changes",
    [
        {"margin": 0.5},
        {"margin": -0.1},
        {"recompress": 0},
        {"recompress": 101},
        {"margin": 0.1, "resize": "shortest_edge_crop"},
        {"margin": 0.1, "interpolation": "bilinear_align_corners"},
    ],
)
def test_a_margin_or_a_quality_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "size": 8,
        "resize": "squash",
        "interpolation": "bilinear",
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
    }
    with pytest.raises(ValueError, match=r"margin|recompress"):
        ImageInput(**fields | changes)


@pytest.fixture
def chosen_anew() -> Iterator[None]:
    images._one_pass.cache_clear()
    yield
    images._one_pass.cache_clear()


#: The last three are those of which Pillow 13 resizes the height first; the third is no larger than what is made of it.
SHRUNK = [(1024, 768), (640, 401), (97, 150), (333, 1001), (360, 640), (240, 3000)]


@pytest.mark.parametrize("size", SHRUNK, ids=str)
@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
def test_the_extra_shrinks_detail_as_pillow_does(
    how: Any, size: tuple[int, int], chosen_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cykooz_resizer", reason='the extra "fast" is not installed')
    assert resizer().startswith("cykooz-resizer ")
    rng = np.random.default_rng(0)
    detailed = np.asarray(_drawn(*size)) * 0.5 + rng.integers(0, 128, (size[1], size[0], 3))
    image = Image.fromarray(detailed.astype(np.uint8))
    side = float(min(size))
    ways = [ImageInput(97, resize, how, (0.0,) * 3, (1.0,) * 3) for resize in ("shortest_edge_crop", "squash")]
    width, height = size
    boxes = [(0.0, 0.0, side, side), (width - side, height - side, width, height), (1.5, 2.25, side, side)]

    def made() -> list[Pixels]:
        return [fit(image, spec) for spec in ways] + [images.resize(image, ways[0], (97, 60), box) for box in boxes]

    found = made()
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    images._one_pass.cache_clear()
    assert resizer() == f"pillow {PIL.__version__}"
    for pixels, wanted in zip(found, made(), strict=True):
        assert np.abs(pixels.astype(int) - wanted).max() <= 1


def test_an_extra_that_does_not_fit_pillow_is_not_used(
    chosen_anew: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fast = pytest.importorskip("cykooz_resizer", reason='the extra "fast" is not installed')
    monkeypatch.setattr(fast.Resizer, "resize_pil", lambda self, source, result, options: None)
    with caplog.at_level(logging.WARNING):
        assert resizer().startswith("pillow ")
    assert "its pixels differ" in caplog.text


def test_align_corners_is_tensorflows() -> None:
    ramp = np.repeat(np.array([0, 100, 200], dtype=np.uint8)[None, :, None], 3, axis=2).repeat(3, axis=0)
    spec = ImageInput(5, "squash", "bilinear_align_corners", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert fit(Image.fromarray(ramp), spec)[0, :, 0].tolist() == [0, 50, 100, 150, 200]
    assert _by_torch(Image.fromarray(ramp), spec)[0, :, 0].round().tolist() == [0, 50, 100, 150, 200]


@pytest.mark.parametrize("spec", _specs(), ids=_named)
def test_a_gradient_reaches_every_pixel_that_counts(spec: ImageInput) -> None:
    pixels = (0.2 + 0.6 * torch.rand(1, 3, 80, 120, generator=torch.Generator().manual_seed(0))).requires_grad_()
    Normalise(spec)(Resize(spec)(pixels)).square().sum().backward()
    assert pixels.grad is not None
    hit = pixels.grad.abs().sum(dim=(0, 1)) > 0
    if spec.resize == "shortest_edge_crop":
        hit = hit[:, 22:98]
    if spec.margin:
        hit = hit[5:-5, 8:-8]
    # Without antialiasing a few source pixels may fall between the samples.
    assert hit.float().mean() > (0.6 if spec.interpolation == "bilinear_align_corners" else 0.99)


def test_normalise_by_hand() -> None:
    spec = ImageInput(8, "squash", "bicubic", (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    values = Normalise(spec)(torch.full((1, 3, 1, 1), 0.5)).flatten().tolist()
    assert values == pytest.approx([0.0, 1.0, 0.25])
    assert not Normalise(spec).state_dict()
