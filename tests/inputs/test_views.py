"""Views cover a picture, or say what share of it they leave out."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.contract.card import ImageInput
from zoo.contract.policy import Category, Policy, Threshold
from zoo.inputs.image import fit
from zoo.inputs.views import OVERLAP, border, plan, shown

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


#: Width over height, and the fewest squares that overlap by a fifth and cover it; 1.1 is within the tolerated border.
FEWEST = {1: 1, 1.1: 1, 4 / 3: 2, 1.5: 2, 16 / 9: 2, 1.8: 2, 2: 3, 2.5: 3, 3: 4, 4: 5, 6.6: 8}


@pytest.mark.parametrize(("ratio", "fewest"), FEWEST.items())
@pytest.mark.parametrize("upright", [False, True])
def test_the_default_shows_the_whole_of_a_picture_in_as_few_squares_as_can_be(
    ratio: float, fewest: int, upright: bool
) -> None:
    size = (round(120 * ratio), 120)
    count, uncovered, said = _uncovered(*(size[::-1] if upright else size), CROP, _policy())
    assert count == fewest
    assert max(uncovered, said) <= 0.1
    assert said == pytest.approx(uncovered, abs=0.01)
    assert (said == 0) == (ratio != 1.1)


@pytest.mark.parametrize("ratio", [1, 1.2, 4 / 3, 1.5, 16 / 9, 2, 3, 4, 10])
@pytest.mark.parametrize("short", [1, 4, 64, 77, 120, 768])
def test_what_is_no_larger_than_the_overlap_is_whole_in_a_tile_wherever_it_is(ratio: float, short: int) -> None:
    long, size = round(ratio * short), int(OVERLAP * short)
    views, left_out = plan(long, short, CROP, _policy(views="tiles", max_views=16))
    spans = [(view.box[0], view.box[2]) for view in views]
    assert left_out == 0
    assert all(any(left <= at and at + size <= right for left, right in spans) for at in range(long - size + 1))
    fewer = replace(_policy(views="tiles"), max_views=max(1, len(views) - 1))
    assert (plan(long, short, CROP, fewer)[1] > 0) == (len(views) > 1), "one less would not do"


@pytest.mark.parametrize(
    ("width", "height", "count"), [(32, 32, 1), (100, 33, 8), (20, 90, 6), (1024, 768, 0), (33, 32, 2)]
)
def test_native_tiles_are_as_large_as_the_model_and_cover_a_picture_with_their_overlap(
    width: int, height: int, count: int
) -> None:
    policy = _policy(views="tiles", scale="native", max_views=10_000)
    views, left_out = plan(width, height, CROP, policy)
    side, whole = min(width, 32), int(OVERLAP * min(width, 32))
    assert left_out == 0
    assert len({view.name for view in views}) == len(views) == (count or len(views))
    assert {view.box[2] - view.box[0] for view in views} | {view.box[3] - view.box[1] for view in views} == {side}
    for axis, length in ((0, width), (1, height)):
        spans = {(view.box[axis], view.box[axis + 2]) for view in views}
        assert all(any(a <= at and at + whole <= b for a, b in spans) for at in range(length - whole + 1))
    if len(views) > 1:
        few = replace(policy, max_views=len(views) - 1)
        fewer, said = plan(width, height, CROP, few)
        assert len(fewer) < len(views)
        assert said > 0


@pytest.mark.parametrize(("ratio", "squares", "left_out"), [(10, 4, 0.66), (10, 1, 0.9), (3, 2, 0.4), (8, 8, 0.175)])
def test_more_squares_than_the_policy_allows_leave_the_rest_and_the_seams_unseen(
    ratio: int, squares: int, left_out: float
) -> None:
    for views in ("auto", "tiles"):
        count, uncovered, said = _uncovered(120 * ratio, 120, CROP, _policy(views=views, max_views=squares))
        assert (count, said) == pytest.approx((squares, left_out))
        assert uncovered == pytest.approx(1 - squares / ratio)
    assert _uncovered(1200, 120, CROP, _policy(max_views=13))[::2] == (13, 0.0)


def test_the_cards_own_view_alone_says_what_it_crops() -> None:
    assert _uncovered(300, 100, CROP, _policy(views="centre"))[::2] == pytest.approx((1, 2 / 3), abs=0.01)
    assert plan(300, 100, SQUASH, _policy(views="centre"))[1] == border(300, 100, SQUASH) == 0.0
    assert len(plan(300, 100, SQUASH, _policy())[0]) == 1
    assert len(plan(300, 100, SQUASH, _policy(views="tiles"))[0]) == 4
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


MARGIN = replace(SQUASH, margin=1 / 16)


@pytest.mark.parametrize("unseen", [{}, "allow"])
@pytest.mark.parametrize("views", ["auto", "centre"])
def test_a_margin_is_told_and_tolerated_and_makes_no_tiles(views: str, unseen: Any) -> None:
    policy = _policy(views=views, unseen=unseen)
    (view,), left_out = plan(320, 160, MARGIN, policy)
    assert view.box == (20, 10, 300, 150)
    assert left_out == pytest.approx(1 - (7 / 8) ** 2)
    rows = shown(Image.new("RGB", (320, 160)), MARGIN, policy)
    weighed = policy.weigh(rows.unseen)
    assert weighed["border"].tolerated
    assert weighed["border"].share == pytest.approx(left_out)


def test_pad_squash_and_tiles_show_what_the_margin_leaves_out() -> None:
    for views, count in (("pad", 1), ("squash", 1), ("tiles", 3)):
        found, uncovered, said = _uncovered(320, 160, MARGIN, _policy(views=views))
        assert (found, uncovered, said) == (count, 0, 0), views
    fewer = _policy(views="tiles", max_views=1)
    rows = shown(Image.new("RGB", (320, 160)), MARGIN, fewer)
    assert not fewer.weigh(rows.unseen)["border"].tolerated, "tiles that are too few are no margin"


def test_the_square_that_is_padded_is_recompressed_as_a_whole() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8))
    ((view,), _) = plan(90, 40, replace(MARGIN, recompress=30), _policy(views="pad"))
    plain = Image.fromarray(view.cut(image, MARGIN))
    stream = io.BytesIO()
    plain.save(stream, "JPEG", quality=30)
    np.testing.assert_array_equal(view.cut(image, replace(MARGIN, recompress=30)), np.asarray(Image.open(stream)))
