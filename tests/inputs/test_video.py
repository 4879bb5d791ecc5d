"""Videos: told from pictures, decoded as players show them, bounded, and never silently less than the whole."""

from __future__ import annotations

import io
import mmap
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.inputs.videos import GREY, SIZE, av, plain, signed, video
from zoo.contract.card import ImageInput
from zoo.contract.policy import Category, Policy, Threshold
from zoo.errors import BadDataError
from zoo.inputs.colour import HDR_MAPPED
from zoo.inputs.damage import BROKEN, BYTES_AFTER_END, END_MISSING
from zoo.inputs.formats import demuxer
from zoo.inputs.image import DEFAULT_LIMITS, Frame, ImageLimits, ImageSource, decode, decode_with_notes, frames_for
from zoo.inputs.video import Film

SPEC = ImageInput(32, "shortest_edge_crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
POLICY = Policy("any", "1", "", (Category("red", "block", Threshold(0.5)), Category("rest", "allow")))
CLIP = video([signed(number, None) for number in range(10)])
ALL = replace(POLICY, frames=1000)


def film(source: ImageSource, policy: Policy = ALL, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[list[Frame], Film]:
    """The frames that a policy asks for, and what was read."""
    read = frames_for(source, SPEC, limits, policy)
    assert isinstance(read, Film)
    return list(read), read


def middle(frame: Frame) -> NDArray[np.int_]:
    width, height = frame.picture.image.size
    return np.array(frame.picture.image.getpixel((width // 2, height // 2)))


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "mov"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "mov"),
        (b"\0\0\0\x08wide\0\1\2\3mdat", "mov"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86", "matroska"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", None),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", None),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", None),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"RIFF\0\0\0\0AVI LIST", None),
        (b"", None),
    ],
)
def test_a_video_is_told_from_a_picture_by_its_first_bytes(head: bytes, kind: str | None) -> None:
    assert demuxer(head) == kind


@pytest.mark.parametrize(
    ("form", "codec", "pix_fmt"),
    [
        ("mp4", "libx264", "yuv420p"),
        ("mp4", "mpeg4", "yuv420p"),
        ("mov", "prores_ks", "yuv422p10le"),
        ("mov", "mjpeg", "yuvj420p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("webm", "libvpx", "yuv420p"),
        ("matroska", "libx264", "yuv444p"),
        ("matroska", "ffv1", "yuv420p"),
    ],
)
def test_a_path_its_bytes_and_a_stream_of_it_give_the_same_frames(
    form: str, codec: str, pix_fmt: str, tmp_path: Path
) -> None:
    data = video([signed(n, None) for n in range(6)], form, codec, pix_fmt=pix_fmt, full=codec == "mjpeg")
    path = tmp_path / "without ending"
    path.write_bytes(data)
    with path.open("rb") as stream:
        every = [film(source) for source in (data, path, str(path), stream, bytearray(data))]
    for frames, read in every:
        assert [frame.number for frame in frames] == list(range(6))
        assert [frame.seconds for frame in frames] == pytest.approx([n / 10 for n in range(6)], abs=0.001)
        assert (read.frames, read.damage, read.unseen(6)) == (6, (), {})
        for one, same in zip(frames, every[0][0], strict=True):
            assert np.array_equal(np.asarray(one.picture.image), np.asarray(same.picture.image))
    still = decode_with_notes(path)
    assert (still.frames, still.size, still.image.info["frames"]) == (6, SIZE, 6)
    assert np.array_equal(np.asarray(still.image), np.asarray(every[0][0][0].picture.image))


def test_a_path_is_not_bounded_by_bytes_and_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(CLIP)
    small = ImageLimits(max_bytes=1000)
    assert decode(path, small).size == SIZE
    for source in (CLIP, io.BytesIO(CLIP)):
        with pytest.raises(BadDataError, match="larger than the limit of 1,000 bytes"):
            decode(source, small)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("zoo.inputs.formats.import_module", without)
    with pytest.raises(
        BadDataError, match=r'bytes: a file that the extra "video" reads: pip install "safety-zoo.video'
    ):
        decode(CLIP)


@pytest.mark.parametrize("keep", [40, 4096])
def test_other_bytes_after_the_header_of_a_video_are_no_video(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(CLIP[:32] + np.random.default_rng(0).bytes(keep))
    with pytest.raises(BadDataError, match=r"broken\.mp4: broken or truncated video"):
        decode(path)


def test_sound_alone_is_no_video() -> None:
    file = io.BytesIO()
    with av.open(file, "w", "mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(BadDataError, match="no video track: the file holds audio"):
        decode(file.getvalue())


def test_pixels_are_bounded_for_one_frame_and_for_all() -> None:
    with pytest.raises(BadDataError, match="64 x 48 pixels, the limit is 3,071"):
        decode(CLIP, ImageLimits(max_pixels=3071))
    frames, read = film(CLIP, limits=ImageLimits(max_video_pixels=3072 * 4))
    unseen = read.unseen(len(frames))["frames"]
    assert (len(frames), unseen.amount, unseen.total, unseen.tolerated) == (5, 5, 10, False)
    assert "max_video_pixels" in unseen.note


def test_a_frame_that_grows_beyond_the_limit_is_not_decoded() -> None:
    parts = [video([plain(size=size)] * 3, "h264", options={"bf": "0"}) for size in (SIZE, (640, 480))]
    file = io.BytesIO()
    with av.open(io.BytesIO(b"".join(parts)), format="h264") as given, av.open(file, "w", "matroska") as made:
        track = made.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(packet for packet in given.demux() if packet.size):
            packet.pts = packet.dts = number * 100
            packet.time_base, packet.stream = Fraction(1, 1000), track
            made.mux(packet)
    assert [frame.picture.size for frame in film(file.getvalue())[0]] == [SIZE] * 3 + [(640, 480)] * 3
    with pytest.raises(BadDataError, match="640 x 480 pixels, the limit is 4,000"):
        film(file.getvalue(), limits=ImageLimits(max_pixels=4000))


def test_of_several_tracks_one_is_judged_and_the_others_are_told() -> None:
    file = io.BytesIO()
    with av.open(file, "w", "mp4") as container:
        tracks = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for track in tracks:
            track.width, track.height, track.pix_fmt = *SIZE, "yuv420p"
        for track in tracks:
            for number in range(6):
                frame = av.VideoFrame.from_ndarray(plain())
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
    frames, read = film(file.getvalue(), replace(ALL, frames_per_second=2.0))
    unseen = read.unseen(len(frames))["frames"]
    assert (unseen.amount, unseen.total, unseen.tolerated, unseen.note) == (10, 12, False, "in several tracks")
    assert read.unseen(6)["frames"].amount == 6


def test_frames_come_with_their_own_times_where_the_rate_is_uneven() -> None:
    times = [0, 0.04, 0.5, 0.52, 1.7, 1.74, 3.0]
    for form, codec in (("mp4", "libx264"), ("webm", "libvpx-vp9")):
        frames, _ = film(video([signed(n, None) for n in range(7)], form, codec, times=times))
        assert [frame.seconds for frame in frames] == pytest.approx(times, abs=0.001)


def test_frames_that_refer_to_later_ones_come_in_the_order_of_their_times() -> None:
    colours = [(20 * n, 0, 255 - 20 * n) for n in range(12)]
    data = video([plain(colour) for colour in colours], options={"bf": "3", "b-adapt": "0"})
    frames, _ = film(data)
    assert [frame.seconds for frame in frames] == pytest.approx([n / 10 for n in range(12)], abs=0.001)
    assert np.abs([middle(frame) - colour for frame, colour in zip(frames, colours, strict=True)]).max() <= 12


def test_a_clip_of_one_frame_is_seen_whole() -> None:
    for policy in (POLICY, ALL, replace(ALL, frames_per_second=2.0), replace(ALL, scenes=True)):
        frames, read = film(video([plain()]), policy)
        assert (len(frames), read.frames, read.unseen(1)) == (1, 1, {})


def _cut_by_edit_list(data: bytes, start: int, length: int) -> bytes:
    """An MP4 whose edit list shows `length` of it from `start`, in milliseconds."""
    place = data.index(b"elst")
    (first,) = struct.unpack_from(">I", data, place + 16)  # later than 0 where frames refer to later ones
    (movie,) = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)
    (media,) = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)
    entry = struct.pack(">III", 1, length * movie // 1000, first + start * media // 1000)
    return data[: place + 8] + entry + data[place + 20 :]


def test_what_an_edit_list_cuts_away_is_not_shown() -> None:
    data = _cut_by_edit_list(video([plain((25 * n, 0, 0)) for n in range(10)]), 300, 400)
    frames, read = film(data)
    assert read.unseen(len(frames)) == {}
    assert [round(int(middle(frame)[0]) / 25) for frame in frames] == [3, 4, 5, 6]
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3], abs=0.001)


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_of_a_file_that_is_cut_what_is_left_is_read_and_said(form: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, *SIZE[::-1], 3), np.uint8)
    data = video(list(noise), form, "libx264" if form == "mp4" else "libvpx-vp9", index_first=form == "mp4")
    assert film(data)[1].damage == ()
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) // 2])
    frames, read = film(path)
    assert 5 < len(frames) < 35
    unseen = read.unseen(len(frames))
    assert unseen["damaged"].note.startswith("end missing")
    assert "; read up to " in unseen["damaged"].note
    assert END_MISSING in decode_with_notes(path).notes


def test_what_a_reader_passes_over_without_an_error_is_missed_at_the_end() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, *SIZE[::-1], 3), np.uint8)
    data = video(list(noise), "webm", "libvpx", options={"g": "5"})
    holed = data[: len(data) // 2] + bytes(len(data) // 4) + data[len(data) * 3 // 4 :]
    for policy in (POLICY, ALL):
        frames, read = film(holed, policy)
        assert 0 < len(frames) < 40
        assert END_MISSING in read.damage or BROKEN in read.damage
    assert data.count(b"00:00:04.000") == 1
    for policy in (POLICY, ALL):
        assert film(data, policy)[1].damage == ()
        assert film(data.replace(b"00:00:04.000", b"00:00:04.300"), policy)[1].damage == (END_MISSING,)


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_bytes_after_the_end_are_told_and_padding_is_none(form: str) -> None:
    data = video([plain()] * 3, form, "libx264" if form == "mp4" else "libvpx-vp9")
    for more, notes in ((b"", ()), (b"and more", (BYTES_AFTER_END,)), (bytes(100), ())):
        assert decode_with_notes(data + more).notes == notes


@pytest.mark.parametrize(("codec", "form"), [("libx264", "matroska"), ("libvpx-vp9", "webm")])
def test_frames_that_lack_those_that_they_need_are_told(codec: str, form: str) -> None:
    """A decoder drops them, and most say nothing."""
    file = io.BytesIO()
    whole = video([signed(n, None) for n in range(20)], form, codec, options={"g": "10", "bf": "0"})
    with av.open(io.BytesIO(whole)) as given, av.open(file, "w", form) as made:
        track = made.add_stream_from_template(given.streams.video[0])
        for packet in [packet for packet in given.demux() if packet.size][1:]:
            packet.dts, packet.stream = packet.pts, track
            made.mux(packet)
    for policy in (ALL, replace(ALL, frames_per_second=5.0), replace(ALL, scenes=True)):
        frames, read = film(file.getvalue(), policy)
        assert read.damage == (BROKEN,)
        assert read.frames == 19
        assert 0 < len(frames) < 19


def test_frames_that_cannot_be_decoded_are_told() -> None:
    data = bytearray(video([signed(n, None) for n in range(20)], options={"g": "5", "bf": "0"}))
    start = data.index(b"mdat") + 4
    end = start + int.from_bytes(data[start - 8 : start - 4]) - 8
    data[(start + end) // 2 : end - (end - start) // 4] = bytes(end - (end - start) // 4 - (start + end) // 2)
    frames, read = film(bytes(data))
    assert frames
    assert read.damage == (BROKEN,)
    assert "frames that cannot be decoded" in read.unseen(len(frames))["damaged"].note


@pytest.mark.parametrize(
    ("height", "matrix", "full", "tagged"),
    [
        (719, 5, False, False),
        (720, 1, False, False),
        *((height, matrix, full, True) for height in (48, 720) for matrix in (1, 5) for full in (False, True)),
    ],
)
def test_colours_are_those_that_were_coded(height: int, matrix: int, full: bool, tagged: bool) -> None:
    tags = {"colorspace": matrix, "color_range": 2 if full else 1} if tagged else {}
    for colour in ((0, 255, 0), (255, 0, 0), (20, 40, 200), (255, 255, 255), (0, 0, 0)):
        frame = plain(colour, (64, height))
        data = video([frame], "matroska", "ffv1", matrix=matrix, full=full, tags=tags)
        assert np.abs(np.asarray(decode(data), dtype=int) - colour).max() <= 4


@pytest.mark.parametrize("size", [(63, 47), (65, 49), (31, 30)])
def test_odd_sides_come_whole(size: tuple[int, int]) -> None:
    frame = plain((200, 60, 40), size)
    image = decode(video([frame], "matroska", "ffv1"))
    assert image.size == size
    assert np.abs(np.asarray(image, dtype=int) - frame).max() <= 4


#: What turns and mirrors a frame, as the matrix of an MP4, and where the corner that was on the upper left is seen.
MATRICES = {
    (1, 0, 0, 1): "upper left",
    (0, 1, -1, 0): "upper right",
    (-1, 0, 0, -1): "lower right",
    (0, -1, 1, 0): "lower left",
    (-1, 0, 0, 1): "upper right",
    (1, 0, 0, -1): "lower left",
}


def _turned(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An MP4 whose track header has this matrix."""
    a, b, c, d = (number << 16 for number in matrix)
    place = data.index(b"tkhd") + 4 + 4 + 36
    return data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :]


@pytest.mark.parametrize("matrix", MATRICES)
def test_frames_are_turned_as_the_file_says(matrix: tuple[int, int, int, int]) -> None:
    frame = plain()
    frame[:16, :16] = (220, 20, 20)
    image = decode(_turned(video([frame]), matrix))
    assert image.size == (SIZE if matrix[0] else SIZE[::-1])
    down, across = MATRICES[matrix].split()
    corner = (4 if across == "left" else image.width - 5, 4 if down == "upper" else image.height - 5)
    assert np.abs(np.array(image.getpixel(corner)) - (220, 20, 20)).max() < 40


@pytest.mark.parametrize(
    ("form", "codec", "pix_fmt"),
    [("mov", "png", "rgba"), ("webm", "libvpx-vp9", "yuva420p"), ("webm", "libvpx", "yuva420p")],
)
def test_transparent_frames_are_seen_on_white_and_on_black(form: str, codec: str, pix_fmt: str) -> None:
    clear = np.dstack([plain((250, 30, 30)), np.zeros(SIZE[::-1], np.uint8)])
    clear[:, :32, 3] = 255
    options = {"auto-alt-ref": "0"} if form == "webm" else {}
    decoded = decode_with_notes(video([clear], form, codec, pix_fmt=pix_fmt, options=options))
    assert decoded.transparent == pytest.approx(0.5, abs=0.05)
    places = [(decoded.image, 5, (250, 30, 30)), (decoded.image, 60, (255, 255, 255))]
    for image, across, colour in (*places, (decoded.grounds["on black"], 60, (0, 0, 0))):
        assert np.abs(np.array(image.getpixel((across, 5))) - colour).max() <= 8


def test_wide_colours_are_followed() -> None:
    red = plain((200, 60, 40))
    tags = {"colorspace": 1, "color_range": 1, "color_primaries": 12, "color_trc": 1}
    found = np.asarray(decode(video([red], "matroska", "ffv1", matrix=1, tags=tags)), dtype=int)[0, 0]
    assert np.abs(found - (216, 41, 24)).max() <= 4  # by hand, from Display P3


@pytest.mark.parametrize(("curve", "codes"), [(16, (0.0, 0.3, 0.508, 0.581, 0.752)), (18, (0.0, 0.3, 0.6, 0.75, 1.0))])
def test_high_dynamic_range_is_mapped_and_noted(curve: int, codes: tuple[float, ...]) -> None:
    tags = {"colorspace": 9, "color_range": 2, "color_primaries": 9, "color_trc": curve}
    levels = []
    for code in codes:
        frame = plain([round(255 * code)] * 3)
        decoded = decode_with_notes(video([frame], "matroska", "ffv1", matrix=5, full=True, tags=tags))
        assert decoded.notes == (HDR_MAPPED,)
        levels.append(np.asarray(decoded.image, dtype=int)[0, 0])
    assert np.ptp(levels, axis=1).max() <= 2, "grey stays grey"
    assert np.diff([level[0] for level in levels]).min() > 20, "brighter stays brighter"
    assert (levels[0].max(), levels[-1].min()) == (0, 255)


def test_at_a_rate_the_first_frame_of_each_moment_is_judged_and_the_last() -> None:
    data = video([signed(n, None) for n in range(24)])
    frames, read = film(data, replace(ALL, frames_per_second=2.0))
    assert [frame.number for frame in frames] == [0, 5, 10, 15, 20, 23]
    assert read.unseen(6)["frames"].tolerated
    frames, read = film(data, replace(POLICY, frames=3, frames_per_second=2.0))
    assert [frame.number for frame in frames] == [0, 10, 23]
    assert not read.unseen(3)["frames"].tolerated
    frames, read = film(data, replace(POLICY, frames=4))
    assert [frame.number for frame in frames] == [0, 8, 15, 23]
    assert not read.unseen(4)["frames"].tolerated


@pytest.mark.parametrize("options", [{"bf": "3"}, {"bf": "8", "b-adapt": "0"}, {"g": "6", "bf": "2"}])
def test_frames_that_no_other_needs_are_left_out_and_the_others_are_the_same(options: dict[str, str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    data = video([np.roll(noise, n, axis=1)[:48, :64] for n in range(40)], options=options)
    every, _ = film(data)
    some, read = film(data, replace(ALL, frames_per_second=3.0))
    assert (len(every), read.frames) == (40, 40)
    assert [frame.number for frame in some] == [0, 4, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 39]
    for frame in some:
        same = every[frame.number or 0]
        assert frame.seconds == same.seconds
        assert np.array_equal(np.asarray(frame.picture.image), np.asarray(same.picture.image))


def test_a_slow_rate_of_uneven_frames_asks_for_what_is_there() -> None:
    data = video([signed(n, None) for n in range(6)], times=[0, 0.1, 0.2, 3.3, 3.4, 9.0])
    frames, _ = film(data, replace(ALL, frames_per_second=1.0))
    assert [frame.number for frame in frames] == [0, 3, 5]


def test_scenes_are_where_the_picture_changes_as_a_whole() -> None:
    scenes = [GREY] * 4 + [(30, 120, 40)] * 3 + [(30, 40, 160)] * 5 + [GREY] * 2
    clip = video([plain(colour) for colour in scenes])
    frames, read = film(clip, replace(ALL, scenes=True))
    assert [frame.number for frame in frames] == [0, 4, 7, 12, 13]
    assert read.unseen(5)["frames"].tolerated
    frames, read = film(clip, replace(POLICY, frames=3, scenes=True))
    assert [frame.number for frame in frames] == [0, 4, 13]
    assert not read.unseen(3)["frames"].tolerated
    frames, _ = film(clip, replace(ALL, scenes=True, frames_per_second=1.0))
    assert [frame.number for frame in frames] == [0, 4, 7, 10, 12, 13]
    still, _ = film(video([signed(n, None) for n in range(9)]), replace(ALL, scenes=True))
    assert [frame.number for frame in still] == [0, 8]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is read there")
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    path = tmp_path / "long.mp4"
    frames = [plain((n, 255 - n, 128), (640, 360)) for n in range(180)]
    path.write_bytes(video(frames, codec="mpeg4", rate=25))
    del frames
    early = late = 0
    for frame in frames_for(path, SPEC, DEFAULT_LIMITS, ALL):
        if (frame.number or 0) < 40:
            early = max(early, held())
        late = max(late, held())
    assert frame.number == 179
    assert late - early < 60_000_000, "each of 140 more frames takes a megabyte"
