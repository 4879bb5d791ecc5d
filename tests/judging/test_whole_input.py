"""The whole input is judged, or the verdict says what was not, and then it is never safe."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from zoo.commands.score import exit_status
from zoo.contract.card import ImageInput, ModelCard, TextInput
from zoo.contract.policy import Category, OperatingPoint, Policy, Threshold, panel_policy
from zoo.contract.verdict import Place, Unseen, Verdict
from zoo.errors import BadPolicyError
from zoo.inputs import image as image_input
from zoo.inputs.image import ImageLimits, owned
from zoo.inputs.text import TextCodec, train_tokenizer
from zoo.judging.judge import Judge, bind
from zoo.judging.scorer import Feeds, Scorer
from zoo.registry import model_card

SIZE, LENGTH = 16, 12
BASE = model_card("nsfwjs_mobilenet_v2.gantman")
SPEC = ImageInput(SIZE, "shortest_edge_crop", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
POLICY = Policy("red", "1", "", (Category("red", "block", Threshold(0.5)), Category("rest", "allow")))
CODEC = TextCodec(train_tokenizer([], 258), TextInput(LENGTH))
R = CODEC.encode(["r"]).ids[0, 2]  # behind the start and the space before a word


def _card() -> ModelCard:
    return replace(BASE, name="redness.test", score="sigmoid", labels=("red", "rest"), image=SPEC, requires=())


def _redness(feeds: Feeds) -> NDArray[np.float32]:
    """Red where any pixel is, or any letter r."""
    red = np.zeros(len(next(iter(feeds.values()))))
    if "image" in feeds:
        pixels = feeds["image"].astype(int)
        red = np.maximum(red, ((pixels[..., 0] > 150) & (pixels[..., 1] < 100)).any(axis=(1, 2)))
    if "input_ids" in feeds:
        red = np.maximum(red, (feeds["input_ids"] == R).any(axis=1))
    return np.stack([0.1 + 0.8 * red, 0.9 - 0.8 * red], axis=1).astype(np.float32)


def _scorer(policy: Policy = POLICY, *, text: bool = False, batch_size: int = 4) -> Scorer:
    card = replace(_card(), image=None, text=CODEC.spec) if text else _card()
    return Scorer(Judge(card, policy), CODEC if text else None, _redness, batch_size=batch_size)


def _signed(ratio: float, place: str, *, upright: bool = False) -> NDArray[np.uint8]:
    """A grey picture of this shape with a red square at its border."""
    picture = np.full((64, round(64 * ratio), 3), 128, np.uint8)
    where = {"left": np.s_[24:40, :12], "right": np.s_[24:40, -12:], "corner": np.s_[-12:, -12:], "none": np.s_[:0, :0]}
    picture[where[place]] = (220, 20, 20)
    return picture.transpose(1, 0, 2) if upright else picture


def _border(verdict: Verdict) -> tuple[float, bool]:
    """The share of the picture that is unseen, the only thing, and whether that is tolerated."""
    assert verdict.unseen is not None
    ((cause, unseen),) = verdict.unseen.items()
    assert (cause, unseen.total) == ("border", 1)
    return unseen.share, unseen.tolerated


@pytest.mark.parametrize("ratio", [1.5, 2, 3, 4, 6.5])
@pytest.mark.parametrize("place", ["left", "right", "corner"])
@pytest.mark.parametrize("upright", [False, True])
def test_a_sign_at_the_border_is_found_and_never_called_safe(ratio: float, place: str, upright: bool) -> None:
    picture = _signed(ratio, place, upright=upright)
    with _scorer() as scorer:
        verdict = scorer.verdict(picture)
    assert (verdict.decision, verdict.category, verdict.unseen) == ("unsafe", "red", {})
    assert verdict.place is not None
    left, top, right, bottom = verdict.place.box or (0, 0, 0, 0)
    assert (picture[top:bottom, left:right, 0] > 200).any(), "the deciding view shows the sign"
    with _scorer(replace(POLICY, views="centre")) as scorer:
        verdict = scorer.verdict(picture)
    assert (verdict.status, verdict.decision, verdict.is_safe) == ("ok", "review", False)
    assert _border(verdict) == pytest.approx((1 - 1 / ratio, False), abs=0.02)
    assert "border" in verdict.detail


@pytest.mark.parametrize("ratio", [1.5, 2, 3, 4])
def test_no_seam_cuts_a_sign_of_a_fifth_of_the_short_side(ratio: float) -> None:
    """The model knows the sign whole, and not the half of it."""
    side, pictures = 12, []
    for left in range(round(64 * ratio) - side):
        picture = _signed(ratio, "none")
        picture[20 : 20 + side, left : left + side] = (220, 20, 20)
        pictures.append(picture)

    def whole(feeds: Feeds) -> NDArray[np.float32]:
        red = (feeds["image"][..., 0].astype(int) > 150).sum(axis=(1, 2)) == side * side
        return np.stack([red, ~red], axis=1).astype(np.float32)

    judge = Judge(replace(_card(), image=replace(SPEC, size=64)), POLICY)
    with Scorer(judge, None, whole, batch_size=64) as scorer:
        assert all(verdict.decision == "unsafe" for verdict in scorer.verdicts(pictures))


@pytest.mark.parametrize("form", ["array", "JPEG", "PNG"])
def test_native_tiles_find_what_shrinking_blurs_away(form: str) -> None:
    """A sign of three pixels in a picture of sixteen times the size of the model."""
    picture = np.full((256, 320, 3), 128, np.uint8)
    plain = picture.copy()
    picture[200:203, 300:303] = (255, 0, 0)

    def given(pixels: NDArray[np.uint8]) -> Any:
        stream = io.BytesIO()
        if form != "array":
            Image.fromarray(pixels).save(stream, form, **({"quality": 100, "subsampling": 0} if form == "JPEG" else {}))
        return stream.getvalue() or pixels

    with _scorer(replace(POLICY, views="tiles"), batch_size=64) as scorer:
        assert scorer.verdict(given(picture)).is_safe
    native = replace(POLICY, views="tiles", scale="native", max_views=1000)
    with _scorer(native, batch_size=64) as scorer:
        found, safe = scorer.verdicts([given(picture), given(plain)])
    assert (found.decision, safe.decision) == ("unsafe", "safe")
    assert found.place is not None
    left, top, right, bottom = found.place.box or (0, 0, 0, 0)
    assert (right - left, bottom - top) == (SIZE, SIZE)
    assert left <= 300 < right
    assert top <= 200 < bottom
    with _scorer(replace(native, max_views=8), batch_size=64) as scorer:
        assert scorer.verdict(given(plain)).decision == "review"
    with pytest.raises(BadPolicyError, match="scale: native is of tiles, and the views are auto"):
        Policy.from_dict(POLICY.to_dict() | {"scale": "native"})


def test_a_picture_that_was_seen_whole_is_safe_and_its_margin_is_tolerated() -> None:
    with _scorer() as scorer:
        assert all(scorer.verdict(_signed(ratio, "none")).is_safe for ratio in (1, 1.1, 1.5, 3))
        verdict = scorer.verdict(_signed(1.1, "none"))
    assert _border(verdict) == pytest.approx((1 - 1 / 1.1, True), abs=0.04)


def test_too_long_a_picture_is_for_review_and_still_flagged_where_a_view_shows_it() -> None:
    with _scorer(replace(POLICY, max_views=2)) as scorer:
        safe, flagged = scorer.verdicts([_signed(5, "none"), _signed(5, "left")])
    assert (safe.decision, safe.category, set(safe.unseen or {})) == ("review", None, {"border"})
    assert (flagged.decision, set(flagged.unseen or {})) == ("unsafe", {"border"})
    assert (safe.is_flagged, flagged.is_flagged) == (False, True)
    assert [exit_status(given) for given in ([flagged], [safe], [flagged, safe])] == [3, 4, 4]


def test_allow_tolerates_everything_and_still_says_it() -> None:
    with _scorer(replace(POLICY, unseen="allow")) as scorer:
        verdict = scorer.verdict(_signed(3, "left"))
    assert verdict.is_safe
    assert _border(verdict) == pytest.approx((2 / 3, True), abs=0.02)


def test_items_of_many_views_share_batches_no_larger_than_the_engine_takes() -> None:
    sizes = []

    def engine(feeds: Feeds) -> NDArray[np.float32]:
        sizes.append(len(feeds["image"]))
        return _redness(feeds)

    pictures = [_signed(ratio, "left" if number % 2 else "none") for number, ratio in enumerate([3, 1, 2.5, 5, 4])]
    with _scorer(batch_size=4) as scorer:
        scorer.engine = engine
        together = scorer.verdicts(pictures)
        assert max(sizes) == 4
        assert together == [scorer.verdict(picture) for picture in pictures]
    assert [verdict.decision for verdict in together] == ["safe", "unsafe", "safe", "unsafe", "safe"]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF", "TIFF", "MPO"])
def test_later_frames_are_never_called_safe(form: str) -> None:
    first, *later = [Image.fromarray(_signed(1, place)) for place in ("none", "none", "left")]
    stream = io.BytesIO()
    first.save(stream, form, save_all=True, append_images=later)
    with _scorer() as scorer:
        verdict = scorer.verdict(stream.getvalue())
    assert (verdict.decision, verdict.category) == ("review", None)
    assert (verdict.unseen or {})["frames"].total in (2, 3)  # WebP and GIF join frames that are alike


#: Formats with several frames, and how many: Pillow writes an MPO whose index is wrong from the fourth on.
FRAMES = {"GIF": 7, "WEBP": 7, "PNG": 7, "AVIF": 7, "TIFF": 7, "MPO": 3}


def _animation(form: str, flagged: int) -> bytes:
    """Frames that differ, one of which bears the sign, half a second each where the format knows time."""
    frames = []
    for number in range(FRAMES[form]):
        pixels = _signed(1, "left" if number == flagged else "none")
        pixels[-20:, 10 * number : 10 * number + 10] = (0, 0, 255)
        frames.append(Image.fromarray(pixels))
    options: dict[str, Any] = {"duration": 500} if form in ("GIF", "WEBP", "PNG", "AVIF") else {}
    options |= {"lossless": True} if form == "WEBP" else {}
    stream = io.BytesIO()
    frames[0].save(stream, form, save_all=True, append_images=frames[1:], **options)
    return stream.getvalue()


@pytest.mark.parametrize("form", FRAMES)
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_sign_in_any_frame_is_flagged_where_all_are_judged(form: str, share: float, tmp_path: Path) -> None:
    flagged = round(share * (FRAMES[form] - 1))
    data = _animation(form, flagged)
    with _scorer(replace(POLICY, frames=7)) as scorer:
        verdict, plain = scorer.verdicts([data, _animation(form, -1)])
        (tmp_path / "file").write_bytes(data)
        with (tmp_path / "file").open("rb") as stream:
            found = [scorer.verdict(tmp_path / "file"), scorer.verdict(stream)]
    assert (verdict.decision, verdict.unseen) == ("unsafe", {})
    assert (plain.decision, plain.unseen) == ("safe", {})
    assert verdict.place is not None
    assert verdict.place.frame == flagged
    if flagged and form not in ("TIFF", "MPO"):
        assert verdict.place.seconds == pytest.approx(flagged / 2)
    assert [replace(one, source="") for one in found] == [verdict, verdict]


@pytest.mark.parametrize("form", [form for form, count in FRAMES.items() if count == 7])
def test_some_frames_leave_the_others_unseen(form: str) -> None:
    with _scorer(replace(POLICY, frames=3)) as scorer:  # 0, 3 and 6
        flagged, missed = scorer.verdicts([_animation(form, 6), _animation(form, 2)])
    assert (flagged.decision, missed.decision) == ("unsafe", "review")
    assert missed.unseen is not None
    assert (missed.unseen["frames"].amount, missed.unseen["frames"].total) == (4, 7)
    with _scorer(replace(POLICY, frames=3, unseen={"frames": 0.6})) as scorer:
        assert scorer.verdict(_animation(form, 2)).decision == "safe"


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_frames_that_are_broken_or_too_much_work_are_unseen(form: str) -> None:
    data = _animation(form, FRAMES[form] - 1)
    with _scorer(replace(POLICY, frames=7)) as scorer:
        whole = scorer.verdict(data)
        side = _signed(1, "none").shape[0]
        scorer.limits = ImageLimits(max_pixels=side * side + 1)
        assert scorer.verdict(data).decision == "review"
        scorer.limits = ImageLimits()
        cut = scorer.verdict(data[: -len(data) // 3])
    assert whole.decision == "unsafe"
    assert cut.decision in ("review", "unknown")


@pytest.mark.parametrize(
    "name",
    [
        b"xap\0<x hdrgm='http://ns.adobe.com/hdr-gain-map/1.0/'/>",
        b"urn:iso:std:iso:ts:21496:-1\0",
    ],
)
def test_a_gain_map_is_no_frame(name: bytes) -> None:
    """Phones with a bright screen write a smaller picture behind a photo, which says how to brighten it."""
    stream = io.BytesIO()
    photo = Image.fromarray(_signed(1, "none"))
    photo.save(stream, "MPO", save_all=True, append_images=[Image.new("L", (20, 20), 128)])
    data = stream.getvalue()
    second = data.rindex(b"\xff\xd8\xff") + 2
    marked = data[:second] + b"\xff\xe2" + (len(name) + 2).to_bytes(2) + name + data[second:]
    with _scorer() as scorer:
        plain, verdict = scorer.verdicts([data, marked])
    assert plain.unseen == {"frames": Unseen(1, 2)}
    assert (verdict.decision, verdict.unseen) == ("safe", {})


def _jpeg(place: str = "none") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(_signed(1, place)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["cut", "more", "checksum"])
def test_a_damaged_picture_is_never_called_safe_and_still_flagged(name: str) -> None:
    png = io.BytesIO()
    Image.fromarray(_signed(1, "none")).save(png, "PNG")
    flipped = bytearray(png.getvalue())
    flipped[-1] ^= 1  # of the checksum of IEND
    broken = {"cut": png.getvalue()[:-12], "more": _jpeg() + b"more", "checksum": bytes(flipped)}[name]
    words = {"cut": "end missing", "more": "bytes after the end", "checksum": "png checksum"}[name]
    with _scorer() as scorer:
        whole, verdict = scorer.verdicts([_jpeg(), broken])
        assert (scorer.verdict(owned(io.BytesIO(broken))), whole.unseen) == (verdict, {})
        flagged = scorer.verdict(_jpeg("left") + b"more")
    assert (verdict.status, verdict.decision, verdict.category) == ("ok", "review", None)
    assert (verdict.unseen or {})["damaged"].note == words
    assert verdict.detail == f"not looked at: damaged ({words})"
    assert (flagged.decision, set(flagged.unseen or {})) == ("unsafe", {"damaged"})
    with _scorer(replace(POLICY, unseen={"damaged": 1.0})) as scorer:
        assert scorer.verdict(broken).is_safe


def test_a_profile_that_is_ignored_is_noted_and_tolerated_in_the_service_too() -> None:
    picture = Image.fromarray(_signed(1, "none"))
    picture.info["icc_profile"] = b"no profile"
    with _scorer() as scorer:
        verdict = scorer.verdict(picture)
        assert scorer.verdict(owned(picture)) == verdict
    assert verdict.is_safe
    assert verdict.unseen == {"colours": Unseen(1, tolerated=True, note="profile ignored")}
    with _scorer(replace(POLICY, unseen={"colours": 0.0})) as scorer:
        assert scorer.verdict(picture).decision == "review"


def _rgba(colours: NDArray[np.uint8], alpha: NDArray[np.uint8], form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.dstack([colours, alpha])).save(stream, form, lossless=True, exact=True)
    return stream.getvalue()


def _transparent(kind: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture whose red is seen on one ground alone, as RGB and alpha."""
    red, alpha = _signed(1, "left"), np.full((64, 64), 255, np.uint8)
    sign = red[..., 0] > 200
    if kind == "black":  # on white it is pink: the ground shines through
        red[sign], alpha[sign] = (255, 0, 0), 153
    elif kind == "bare":
        alpha[:, :32] = 2
    else:
        red[sign] = 128
        alpha[:32] = 0
        red[:32] = 128
    return red, alpha


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize(
    ("kind", "place"), [("black", "centre on black"), ("bare", "centre without transparency"), ("plain", "")]
)
def test_a_transparent_picture_is_judged_on_every_ground(form: str, kind: str, place: str) -> None:
    data = _rgba(*_transparent(kind), form)
    white = replace(POLICY, unseen={"hidden": 1.0})
    with _scorer() as scorer, _scorer(white) as as_shown:
        verdict, shown = scorer.verdict(data), as_shown.verdict(data)
        image = Image.open(io.BytesIO(data))
        assert scorer.verdict(image) == scorer.verdict(owned(image)) == verdict
    assert shown.is_safe
    assert set(shown.unseen or {}) == {"hidden"}
    assert verdict.unseen == {}
    assert verdict.decision == ("unsafe" if place else "safe")
    assert not place or (verdict.place and verdict.place.view) == place


def test_transparency_is_seen_in_every_tile_and_turned_as_the_picture_is() -> None:
    colours, alpha = _signed(3, "right"), np.full((64, 192), 255, np.uint8)
    alpha[:, 160:] = 2
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(np.dstack([colours, alpha])).save(stream, "PNG", exif=exif)
    with _scorer() as scorer:
        verdict = scorer.verdict(stream.getvalue())
    assert verdict.decision == "unsafe"
    assert verdict.place == Place("tile 4 of 4 without transparency", (0, 128, 64, 192))


@pytest.mark.parametrize("words", [1, 8, 80, 500, 5000])
def test_a_word_behind_the_context_is_found_by_windows_and_never_called_safe(words: int) -> None:
    text = "so " * words + "r"
    with _scorer(replace(POLICY, windows=5000), text=True, batch_size=64) as scorer:
        verdict = scorer.verdict(text=text)
        assert scorer.verdict(text="so " * words).is_safe
    assert (verdict.decision, verdict.unseen) == ("unsafe", {})
    if words > 1:
        assert verdict.place is not None
        first, last = verdict.place.characters or (0, 0)
        assert "r" in text[first:last]
    with _scorer(text=True) as scorer:
        verdict = scorer.verdict(text=text)
    assert verdict.decision == ("unsafe" if words == 1 else "review")
    assert sorted(verdict.unseen or {}) == ([] if words == 1 else ["tokens"])


def test_a_text_of_more_windows_than_the_policy_allows_says_what_is_left() -> None:
    with _scorer(replace(POLICY, windows=3), text=True) as scorer:
        verdict = scorer.verdict(text="so " * 100)
    assert verdict.decision == "review"
    (tokens,) = (verdict.unseen or {}).values()
    assert tokens.total == pytest.approx(300, abs=2)
    assert 0.85 < tokens.share < 0.95


def test_windows_overlap_and_begin_at_words_whatever_their_length() -> None:
    text = "one three " + "x" * 40 + " five"
    windows = CODEC.windows(text, 100)
    assert windows.unseen == {}
    starts = [first for first, _ in windows.characters]
    shown = np.zeros(len(text), dtype=bool)
    for first, last in windows.characters:
        shown[first:last] = True
        cut_inside = 10 < first < 50
        assert cut_inside or first == 0 or text[first - 1] == " " or text[first] == " "
    assert all(seen or character == " " for seen, character in zip(shown, text, strict=True))
    assert starts == sorted(set(starts))


def test_the_mean_of_views_is_the_mean_of_their_logits() -> None:
    scores = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    (verdict,) = Judge(_card(), replace(POLICY, pool="mean")).verdicts(scores, places=[[None] * 3])  # type: ignore[list-item]
    logit = np.log([9, 1, 0.25]).mean()
    assert verdict.scores["red"] == pytest.approx(1 / (1 + np.exp(-logit)))
    assert verdict.place is None


def test_a_part_without_an_answer_leaves_the_item_unknown_unless_another_blocks() -> None:
    judge = Judge(_card(), POLICY)
    nan = float("nan")
    rows = np.array([[0.1, 0.9], [nan, 0.5], [0.9, 0.1], [nan, 0.5]])
    places = [[view.place() for view in _views()]] * 2
    unknown, unsafe = judge.verdicts(rows, places=places)
    assert (unknown.status, unknown.decision) == ("invalid_scores", "unknown")
    assert (unsafe.decision, unsafe.place) == ("unsafe", places[0][0])


def _views() -> list[Any]:
    from zoo.inputs.views import plan

    return plan(45, 30, SPEC, POLICY)[0]


def test_a_panel_reads_as_its_heads_do_or_refuses() -> None:
    tiles = replace(POLICY, views="tiles")
    assert panel_policy({"a": POLICY, "b": tiles}, "any").views == "tiles"
    with pytest.raises(BadPolicyError, match="a=views: tiles; b=views: pad"):
        panel_policy({"a": tiles, "b": replace(POLICY, views="pad")}, "any")


@pytest.mark.parametrize(
    ("found", "views", "warned"),
    [
        *[("", "centre", 0), ("", "auto", 1), ("", "tiles", 1), ("centre", "tiles", 1), ("tiles", "centre", 1)],
        *[("tiles", "tiles", 0), ("auto", "auto", 0)],
    ],
)
def test_a_threshold_that_was_found_with_other_views_is_warned_of(
    found: Any, views: Any, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    point = OperatingPoint("fpr", 0.01, 0.009, "photos", 100, 900, views=found)
    red = replace(POLICY.categories[0], threshold=Threshold(0.5, "operating_point", "", point))
    policy = replace(POLICY, categories=(red, POLICY.categories[1]), views=views)
    bind(_card(), policy)
    bind(replace(_card(), image=None, text=CODEC.spec), policy)  # there are no views of a text
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warned
    assert all('the threshold of "red" was found with' in message for message in messages)


def test_the_box_of_a_jpeg_that_is_decoded_at_a_smaller_scale_is_in_its_own_pixels() -> None:
    stream = io.BytesIO()
    Image.fromarray(_signed(2, "right")).resize((1024, 512), Image.Resampling.NEAREST).save(stream, "JPEG")
    with _scorer() as scorer:
        verdict = scorer.verdict(stream.getvalue())
        assert image_input.decode_for(stream.getvalue(), SPEC).scale == 8
    assert verdict.decision == "unsafe"
    assert verdict.place is not None
    assert verdict.place.box == (512, 0, 1024, 512)


def test_reading_and_tolerance_change_the_id_of_a_policy() -> None:
    changed: list[dict[str, Any]] = [
        {"views": "tiles"},
        {"max_views": 4},
        {"views": "tiles", "scale": "native"},
        {"windows": 2},
        {"pool": "mean"},
        {"unseen": "allow"},
    ]
    changed += [{"unseen": {"border": 0.2}}]
    policies = [POLICY, *(replace(POLICY, **fields) for fields in changed)]
    assert len({policy.id for policy in policies}) == len(policies)
    assert [Policy.from_dict(policy.to_dict()) for policy in policies] == policies


def test_a_verdict_of_version_1_keeps_that_its_text_was_cut() -> None:
    plain = Verdict("ok", "safe", "a", {"a": 0.1}, "p", "m.t").to_dict()
    for name in ("unseen", "place"):
        del plain[name]
    cut = Verdict.from_dict(plain | {"schema_version": 1, "text_truncated": True})
    assert cut.unseen == {"tokens": Unseen(1)}
    assert Verdict.from_dict(plain | {"schema_version": 1, "text_truncated": False}).unseen is None
