"""Splits: shares on photos, drawings, pages and digits; copies share a group; growing data move no row to train."""

from __future__ import annotations

import io
import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.contract.test_card import CARD
from zoo.contract.card import ModelCard, SplitRule, Training
from zoo.data.copies import fingerprint
from zoo.data.manifest import SPLITS, Row, Split
from zoo.data.splits import apply_rule, assign_splits, groups_of, hashed_splits
from zoo.errors import BadInputError

TENTHS = (0.8, 0.1, 0.1)
SHARED = Path(os.environ.get("SAFETY_ZOO_SHARED", Path(__file__).parents[2].parent / "shared"))
PHOTOS = SHARED / "data" / "flickr8k_small"


def make_drawings(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        image = Image.new("RGB", (256, 256), "white")
        pen = ImageDraw.Draw(image)
        x, y = (int(value) for value in rng.integers(60, 196, 2))
        r, kind, colour = int(rng.integers(15, 50)), int(rng.integers(0, 3)), tuple(map(int, rng.integers(0, 200, 3)))
        if kind == 2:
            pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
        else:
            (pen.ellipse if kind else pen.rectangle)((x - r, y - r, x + r, y + r), fill=colour)
        pictures.append(image)
    return pictures


def make_pages(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    words = ["the", "of", "and", "to", "in", "that", "for", "as", "with", "be", "on", "this", "have", "from", "they"]
    font = ImageFont.load_default(13)
    pages = []
    for _ in range(count):
        image = Image.new("RGB", (400, 520), "white")
        pen = ImageDraw.Draw(image)
        for y in range(30, 480, 17):
            pen.text((30, y), " ".join(rng.choice(words, int(rng.integers(9, 14)))), fill="black", font=font)
        pages.append(image)
    return pages


def _phrase(rng: np.random.Generator, least: int, most: int) -> str:
    words = [
        "plan",
        "team",
        "budget",
        "review",
        "market",
        "growth",
        "result",
        "next",
        "step",
        "data",
        "river",
        "garden",
        "museum",
        "harvest",
        "window",
        "letter",
    ]
    return " ".join(rng.choice(words, int(rng.integers(least, most))))


def make_slides(count: int) -> list[Image.Image]:
    """Slides of one template: a dark bar with a title, a logo, points of text."""
    rng, title, text = np.random.default_rng(0), ImageFont.load_default(30), ImageFont.load_default(20)
    slides = []
    for _ in range(count):
        image = Image.new("RGB", (720, 405), "white")
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, 0, 720, 68), fill=(25, 40, 90))
        pen.ellipse((660, 12, 705, 57), fill=(240, 160, 30))
        pen.text((30, 15), _phrase(rng, 2, 5), fill="white", font=title)
        for y in range(98, 98 + 45 * int(rng.integers(3, 7)), 45):
            pen.ellipse((38, y + 8, 47, y + 17), fill=(25, 40, 90))
            pen.text((60, y), _phrase(rng, 3, 9), fill="black", font=text)
        slides.append(image)
    return slides


def make_forms(count: int) -> list[Image.Image]:
    """Filled-in forms of one template."""
    rng, title, text = np.random.default_rng(0), ImageFont.load_default(28), ImageFont.load_default(16)
    labels = [
        "Name",
        "Street",
        "Town",
        "Date of birth",
        "Phone",
        "Email",
        "Number of guests",
        "Remarks",
        "Account",
        "Reference",
    ]
    forms = []
    for _ in range(count):
        image = Image.new("RGB", (560, 720), "white")
        pen = ImageDraw.Draw(image)
        pen.text((32, 24), "Registration form", fill="black", font=title)
        for number, label in enumerate(labels):
            y = 96 + 50 * number
            pen.text((32, y), label, fill=(60, 60, 60), font=text)
            pen.rectangle((192, y - 6, 528, y + 26), outline="black", width=2)
            entry = _phrase(rng, 1, 4) if number % 2 else str(rng.integers(10, 10 ** int(rng.integers(3, 10))))
            if rng.random() < 0.85:
                pen.text((202, y), entry, fill=(20, 20, 120), font=text)
        forms.append(image)
    return forms


def make_charts(count: int) -> list[Image.Image]:
    """Thin lines on white."""
    rng, colours = np.random.default_rng(0), [(31, 119, 180), (255, 127, 14), (44, 160, 44)]
    charts = []
    for _ in range(count):
        image = Image.new("RGB", (640, 400), "white")
        pen = ImageDraw.Draw(image)
        pen.line((50, 20, 50, 360, 620, 360), fill="black")
        for y in range(20, 360, 68):
            pen.line((50, y, 620, y), fill=(220, 220, 220))
        for colour in colours[: int(rng.integers(1, 4))]:
            heights = np.clip(190 + np.cumsum(rng.normal(0, 14, 58)) + rng.normal(0, 40), 25, 355)
            pen.line([(50 + 10 * step, float(y)) for step, y in enumerate(heights)], fill=colour)
        charts.append(image)
    return charts


def make_icons(count: int) -> list[Image.Image]:
    """Shapes on a rounded square of a colour, of 64 x 64 pixels."""
    rng = np.random.default_rng(0)
    icons = []
    for _ in range(count):
        image = Image.new("RGB", (256, 256), "white")
        pen = ImageDraw.Draw(image)
        pen.rounded_rectangle((8, 8, 247, 247), 48, fill=tuple(map(int, rng.integers(40, 220, 3))))
        for _ in range(int(rng.integers(2, 5))):
            (x, y), r = (int(value) for value in rng.integers(50, 206, 2)), int(rng.integers(18, 60))
            colour, sides = tuple(map(int, rng.choice([0, 255, 120, 200], 3))), int(rng.integers(2, 7))
            if sides == 2:
                pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
            else:
                pen.regular_polygon((x, y, r), sides, int(rng.integers(0, 90)), fill=colour)
        icons.append(image.resize((64, 64), Image.Resampling.LANCZOS))
    return icons


def make_digits(count: int) -> list[Image.Image]:
    digits = pytest.importorskip("sklearn.datasets").load_digits().images[:count]
    return [Image.fromarray((pixels * 15.9).astype(np.uint8)).convert("RGB") for pixels in digits]


def _photos(count: int) -> list[Image.Image]:
    if not PHOTOS.is_dir():
        pytest.skip(f"{PHOTOS} is not there")
    return [Image.open(path).convert("RGB") for path in sorted(PHOTOS.rglob("*.jpg"))[:count]]


def recompressed(image: Image.Image, quality: int = 50) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def half_recompressed(image: Image.Image) -> Image.Image:
    return recompressed(half(image), 60)


def quarter(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 4, image.height // 4), Image.Resampling.LANCZOS)


def _cropped(image: Image.Image) -> Image.Image:
    return image.crop((round(image.width * 0.01), 0, image.width, round(image.height * 0.99)))


def rows_of(images: list[Image.Image]) -> tuple[list[Row], dict[Path, bytes]]:
    rows = [Row(number + 2, Path(f"{number}.png"), None, (), None) for number in range(len(images))]
    return rows, {Path(f"{number}.png"): fingerprint(image) for number, image in enumerate(images)}


CHANGES = (recompressed, half, half_recompressed, quarter, _cropped)
KINDS = [
    pytest.param(make_drawings, 500, CHANGES, id="drawings"),
    pytest.param(make_pages, 200, CHANGES, id="pages"),
    pytest.param(make_slides, 200, CHANGES, id="slides"),
    pytest.param(make_forms, 200, CHANGES, id="forms"),
    pytest.param(make_charts, 200, CHANGES, id="charts"),
    pytest.param(make_icons, 200, CHANGES[:4], id="icons"),
    pytest.param(make_digits, 1200, (), id="digits"),  # of 8 x 8 pixels no copy is left
    pytest.param(_photos, 600, CHANGES, id="photos", marks=pytest.mark.shared_data),
]
Change = Callable[[Image.Image], Image.Image]


@pytest.mark.parametrize(("draw", "count", "changes"), KINDS)
def test_shares_are_met_and_copies_never_straddle(
    draw: Callable[[int], list[Image.Image]], count: int, changes: tuple[Change, ...]
) -> None:
    images = draw(count)
    rows, prints = rows_of(images)
    counts = Counter(assign_splits(rows, prints, TENTHS, 0))
    for split, share in zip(SPLITS, TENTHS, strict=True):
        assert abs(counts[split] / count - share) <= 0.05, counts
    assert Counter(groups_of(rows, prints)).most_common(1)[0][1] <= 0.02 * count
    for change in changes:
        some = images[:40]
        both, prints = rows_of([*some, *map(change, some)])
        groups = groups_of(both, prints)
        assert groups[:40] == groups[40:], change.__name__
        assert len(set(groups)) >= 36


def test_growing_data_move_no_row_towards_train() -> None:
    images = make_drawings(150)
    more = [*images, *map(half, images[:100]), *map(_cropped, images), *make_drawings(300)[150:]]
    rows, prints = rows_of(more)
    before = assign_splits(rows[:150], prints, (1, 1, 1), 0)
    after = assign_splits(rows, prints, (1, 1, 1), 0)
    order = [SPLITS.index(split) for split in before]
    grown = [SPLITS.index(split) for split in after[:150]]
    assert all(new >= old for old, new in zip(order, grown, strict=True))
    assert grown != order  # some copy drew a stricter split
    shuffled = np.random.default_rng(1).permutation(len(rows))
    again = assign_splits([rows[place] for place in shuffled], prints, (1, 1, 1), 0)
    assert [again[place] for place in np.argsort(shuffled)] == after


def test_a_picture_that_joins_test_and_train_takes_both_to_test() -> None:
    # A ramp of steps too large to be copies at the ends, with one in between that is a copy of either.
    rng = np.random.default_rng(3)
    one, other = (rng.integers(0, 256, (6, 6, 3)).astype(float) for _ in range(2))

    def mixed(share: float) -> Image.Image:
        pixels = ((1 - share) * one + share * other).astype(np.uint8)
        return Image.fromarray(pixels).resize((120, 120), Image.Resampling.BICUBIC)

    rows, prints = rows_of([mixed(0.0), mixed(0.16), mixed(0.08)])
    assert groups_of(rows[:2], prints) == [0, 1]
    assert groups_of(rows, prints) == [0, 0, 0]
    seen: set[tuple[Split, Split]] = set()
    for seed in range(60):
        apart = assign_splits(rows[:2], prints, (1, 0, 1), seed)
        together = assign_splits(rows, prints, (1, 0, 1), seed)
        assert len(set(together)) == 1
        if "test" in apart:
            assert together[0] == "test"
        seen.add((apart[0], apart[1]))
    assert ("train", "test") in seen or ("test", "train") in seen


def test_blank_pictures_of_one_colour_are_copies_and_of_two_are_not() -> None:
    rows, prints = rows_of([Image.new("RGB", (80, 60), colour) for colour in ("black", "black", "white", "grey")])
    assert groups_of(rows, prints) == [0, 0, 2, 3]


def test_shares_that_are_missed_are_said_with_the_largest_group(caplog: pytest.LogCaptureFixture) -> None:
    images = [*make_drawings(30), *[Image.new("RGB", (50, 50), "white")] * 70]
    rows, prints = rows_of(images)
    with caplog.at_level(logging.WARNING, "zoo.data"):
        assign_splits(rows, prints, (0.5, 0.25, 0.25), 0)
    assert "of 100 rows in 31 groups" in caplog.text
    assert "the largest group has 70 rows, one is line 32" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "zoo.data"):
        assign_splits(rows_of(make_drawings(500))[0], {}, TENTHS, 0)
    assert not caplog.text


def test_texts_that_join_two_groups_move_none_towards_train() -> None:
    texts = [f"text {number}" for number in range(40)]
    for seed in range(20):
        a, b = hashed_splits(texts[:2], [0, 1], seed, (1, 0, 1))
        together = hashed_splits(texts[:3], [0, 0, 0], seed, (1, 0, 1), founders=[0, 1])
        assert together == ["test" if "test" in (a, b) else "train"] * 3


def test_the_rule_travels_in_the_card_and_gives_the_same_splits(tmp_path: Path) -> None:
    rule = SplitRule(seed=3, shares=(0.5, 0.2, 0.3))
    paths = []
    for number, image in enumerate(make_drawings(60)):
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    rows = [Row(number, path, f"text {number}", (), None) for number, path in enumerate(paths)]
    prints = {path: fingerprint(Image.open(path).convert("RGB")) for path in paths}
    assert apply_rule(rows, rule, CARD.image) == assign_splits(rows, prints, rule.shares, 3)
    assert apply_rule(rows, rule, None) == assign_splits(rows, {}, rule.shares, 3)
    with pytest.raises(BadInputError, match='the split rule "bits-1", this version knows "copies-3"'):
        apply_rule(rows, SplitRule("bits-1"), None)
    card = CARD.replace(training=Training(split=rule))
    assert ModelCard.from_dict(card.to_dict(), "card").training.split == rule
    old = card.to_dict()
    del old["training"]["split"]
    assert ModelCard.from_dict(old, "card").training.split is None
