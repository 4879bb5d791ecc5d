"""Views cover a picture, or say what share of it they leave out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.contract.card import ImageInput
from zoo.contract.policy import Category, Policy, Threshold
from zoo.inputs.image import fit
from zoo.inputs.views import border, plan

CROP = ImageInput(32, "shortest_edge_crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SQUASH = replace(CROP, resize="squash")


def _policy(**fields: Any) -> Policy:
    return Policy("p", "1", "", (Category("red", "block", Threshold(0.5)), Category("rest", "allow")), **fields)


def _uncovered(width: int, height: int, spec: ImageInput, policy: Policy) -> tuple[int, float, float]:
    """How many views, the share that lies in none of them, and the share that the plan says is left out."""
    views, said = plan(width, height, spec, policy)
    shown = np.zeros((height, width), dtype=bool)
    for view in views:
        left, top, right, bottom = view.place().box or (0, 0, width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        shown[top:bottom, left:right] = True
    return len(views), 1 - shown.mean(), said


@pytest.mark.parametrize("ratio", [1, 1.1, 1.5, 2, 3, 4, 7.9])
@pytest.mark.parametrize("upright", [False, True])
def test_the_default_shows_the_whole_of_a_picture_in_as_few_squares_as_can_be(ratio: float, upright: bool) -> None:
    size = (round(120 * ratio), 120)
    count, uncovered, said = _uncovered(*(size[::-1] if upright else size), CROP, _policy())
    assert count == (1 if ratio <= 1.1 else np.ceil(ratio))
    assert max(uncovered, said) <= 0.1
    assert said == pytest.approx(uncovered, abs=0.01)
    assert (said == 0) == (ratio != 1.1)


def test_more_squares_than_the_policy_allows_leave_the_rest_unseen() -> None:
    for views in ("auto", "tiles"):
        count, uncovered, said = _uncovered(1200, 120, CROP, _policy(views=views, max_views=4))
        assert (count, said) == pytest.approx((4, 0.6))
        assert uncovered == pytest.approx(0.6, abs=0.01)
    assert _uncovered(1200, 120, CROP, _policy(max_views=10))[::2] == (10, 0.0)


def test_the_cards_own_view_alone_says_what_it_crops() -> None:
    assert _uncovered(300, 100, CROP, _policy(views="centre"))[::2] == pytest.approx((1, 2 / 3), abs=0.01)
    assert plan(300, 100, SQUASH, _policy(views="centre"))[1] == border(300, 100, SQUASH) == 0.0
    assert len(plan(300, 100, SQUASH, _policy())[0]) == 1
    assert len(plan(300, 100, SQUASH, _policy(views="tiles"))[0]) == 3
    # With `allow`, the card's own view is enough for any picture.
    assert len(plan(300, 100, CROP, _policy(unseen="allow"))[0]) == 1


@pytest.mark.parametrize("spec", [CROP, SQUASH])
def test_a_square_is_one_view_the_same_as_ever(spec: ImageInput) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (77, 77, 3), dtype=np.uint8))
    for views in ("auto", "centre", "tiles", "squash", "pad"):
        ((view,), left_out) = plan(77, 77, spec, _policy(views=views))
        assert left_out == 0
        assert np.array_equal(view.cut(picture, spec), fit(picture, spec))


def test_bars_keep_the_shape_and_have_the_models_mean_colour() -> None:
    picture = Image.new("RGB", (90, 30), (250, 0, 0))
    ((view,), left_out) = plan(90, 30, CROP, _policy(views="pad"))
    pixels = view.cut(picture, CROP)
    assert left_out == 0
    assert (pixels[:10] == 128).all()
    assert (pixels[-10:] == 128).all()
    assert (pixels[12:20] == (250, 0, 0)).all()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear_align_corners"])
def test_a_tile_is_what_its_box_shows(interpolation: Any) -> None:
    spec = replace(SQUASH, interpolation=interpolation)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 100, 3), dtype=np.uint8))
    for view in plan(100, 40, spec, _policy(views="tiles"))[0]:
        alone = fit(picture.crop(view.place().box), spec)
        assert np.abs(view.cut(picture, spec).astype(int) - alone).max() <= (24 if interpolation == "bicubic" else 2)
