"""The frames of a video as people see them: decoded in order, one at a time, each with its own time.

PyAV decodes, an extra that is imported with the first video. Nothing seeks, and nothing is computed from a rate: what a
container says of the number and the rate of its frames is wrong in too many files.
"""

from __future__ import annotations

import io
import math
import os
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.contract.policy import PolicyFile
from zoo.contract.verdict import Cause, Unseen
from zoo.errors import BadDataError, BadInputError
from zoo.inputs.colour import HDR_MAPPED, hdr_to_srgb, profile_of_video
from zoo.inputs.damage import BROKEN, END_MISSING, damage_of_video
from zoo.inputs.formats import demuxer, module_of_extra
from zoo.inputs.picture import ORIENTATION, Frame, check_pixels, current, spread
from zoo.inputs.pixels import ORIENTATIONS
from zoo.inputs.sources import Decoded, ImageLimits, ImageSource

#: Numbers of ITU-T H.273 for the matrix that makes YUV of RGB, as swscale takes them. 2 says nothing.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_BT709, _BT601, _SAYS_NOTHING = 1, 5, 2
#: Video of so many rows or more is BT.709 where it does not say, as in browsers.
_HD = 720
_LIMITED, _FULL = 1, 2
#: The note on colours of a matrix that swscale does not know.
_MATRIX_IGNORED = "colour matrix ignored"
#: Two frames are of two scenes where more than this share of a grid of so many squares a side differs by more levels.
_OTHER_SCENE, _GRID, _LEVELS = 0.25, 32, 32
#: Decoders that give transparency.
_LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
#: The end of a file is missing where the last frame would be shown longer than the longest before, by this factor.
_LAST = 1.5
#: Bytes that are read from a file at a time.
_BUFFER = 1 << 18


@dataclass(frozen=True)
class Video:
    """A video that is read piece by piece: `open` gives its file, `kind` is FFmpeg's name of its container."""

    name: str
    kind: str
    open: Callable[[], BinaryIO]

    def first(self, limits: ImageLimits, need: int | None) -> Decoded:
        """The first of its `frames`, as `decode` gives a picture. Raises BadDataError with the name and the reason."""
        film = Film(self, limits, need, None)
        ((_, _, picture),) = film
        picture.image.info["frames"] = film.frames
        return replace(picture, frames=film.frames, notes=(*film.damage, *picture.notes))

    def film(self, limits: ImageLimits, need: int | None, policy: PolicyFile) -> Film:
        """The frames that a policy asks for."""
        return Film(self, limits, need, policy)


def video_of(source: ImageSource, data: bytes, name: str) -> Video | None:
    """The video that a source is, of which these are the bytes, or of a path the first; None for a picture."""
    if (kind := demuxer(data[:4096])) is None:
        return None
    path = source if isinstance(source, (str, os.PathLike)) else None
    return Video(name, kind, lambda: io.BytesIO(data) if path is None else open(path, "rb"))


class Film:
    """The frames of a video that a policy asks for, once; afterwards `unseen` says what no model looked at.

    Raises BadDataError where not even the first can be decoded. What cannot be read later is left out and told.
    """

    def __init__(self, video: Video, limits: ImageLimits, need: int | None, policy: PolicyFile | None) -> None:
        """Without a policy it is the first frame alone."""
        self.frames = 0
        self.damage: tuple[str, ...] = ()
        self._video, self._limits, self._need = video, limits, need
        self._policy = policy if policy is not None and policy.frames > 1 else None
        self._choice = _Choice(None)
        self._packets = self._elsewhere = 0
        self._stopped = False
        self._reached, self._length, self._said = 0.0, 0.0, 0

    def __iter__(self) -> Iterator[Frame]:
        """Each frame when it is asked for: there is one in memory at a time, beside those that the decoder needs."""
        judged = 0
        try:
            with _reasons(self._video.name):
                self._av = module_of_extra("video", "av")
                self._look_ahead()
                for number, seconds, frame in self._chosen():
                    yield Frame(number, seconds, picture_of(frame, self._limits, self._need))
                    judged += 1
                if not judged:
                    raise BadDataError("broken or truncated video: none of its frames can be decoded")
        except BadDataError:
            if not judged:
                raise
            self._note(BROKEN)

    def unseen(self, judged: int) -> dict[Cause, Unseen]:
        """What no model looked at, after so many frames were judged; tolerated where the policy asks for no more."""
        unseen: dict[Cause, Unseen] = {}
        if judged < self.frames:
            note = "in several tracks" if self._elsewhere else ""
            if self._stopped and self._policy is not None:
                note = f"{self._progress} (`max_video_pixels`)"
            enough = self._choice.enough and not note
            unseen["frames"] = Unseen(self.frames - judged, self.frames, enough, note)
        if self.damage:
            causes = ", ".join(note.removeprefix("damaged: ") for note in self.damage)
            unseen["damaged"] = Unseen(1, note=f"{causes}; {self._progress}")
        return unseen

    @property
    def _progress(self) -> str:
        whole = f" of {self._length:.3g}" if self._length else ""
        return f"read up to {self._reached:.3g}{whole} s"

    def _note(self, cause: str) -> None:
        self.damage = (*self.damage, *{cause}.difference(self.damage))

    def _look_ahead(self) -> None:
        """Look for damage, and at the times of all frames where the policy asks for some of them by their time."""
        with self._video.open() as file:
            for cause in damage_of_video(file):
                self._note(cause)
        policy = self._policy
        if policy is None or (policy.scenes and not policy.frames_per_second):
            self._choice = _Choice(policy)
            return
        with self._track() as (container, stream):
            packets = self._read(container, stream)
            times = sorted(packet.pts for packet in packets if packet is not None and _is_shown(packet, stream))
            self._choice = _Choice(policy, times, float(1 / stream.time_base))

    def _chosen(self) -> Iterator[tuple[int, float | None, Any]]:
        """The frames that are judged, with number and time; the last one, too, where none came as late as was said."""
        left: tuple[int, float | None, Any] | None = None
        pixels = 0
        with self._track() as (container, stream):
            for number, frame in self._decoded(container, stream):
                pixels += frame.width * frame.height
                self._stopped = self._policy is None or pixels > self._limits.max_video_pixels
                # Not `frame.time`: what the decoder held to the end comes without a time base.
                seconds = None if frame.pts is None else float(frame.pts * stream.time_base)
                self._reached = seconds or self._reached
                left = (number, seconds, frame)
                if self._choice.takes(frame):
                    yield left
                    left = None
            if left is not None and self._choice.wants_last:
                yield left

    def _decoded(self, container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
        """All frames that are needed, with their numbers, in order. Once `_stopped`, what is left is only counted."""
        decoded, decoder = 0, self._decoder(stream)
        # H.264 says for certain which frames no other is decoded by: they are left out where they are not judged.
        planned = self._choice.planned if decoder.name == "h264" else None
        for packet in self._read(container, stream):
            if self._stopped or (packet is not None and packet.stream.index != stream.index):
                continue
            if planned is not None and packet is not None:
                decoder.skip_frame = "DEFAULT" if packet.pts in planned else "NONREF"
            try:
                frames = decoder.decode(packet)  # None gives what the decoder still holds
            except self._av.error.FFmpegError:
                self._note(BROKEN)
                continue
            for frame in frames:
                if self._stopped:
                    break
                if frame.is_corrupt:
                    self._note(BROKEN)
                decoded += 1
                yield decoded - 1 if planned is None else bisect_left(self._choice.times, frame.pts), frame
        lost = decoded < self._packets if planned is None else self._choice.missed
        if lost and not self._stopped:  # a decoder drops without an error what lacks the frames that it needs
            self._note(BROKEN)
        said = self._said if END_MISSING in self.damage else 0
        self.frames = self._elsewhere + max(decoded, self._packets, said)

    def _decoder(self, stream: Any) -> Any:
        """The decoder of a track: that of FFmpeg, which leaves out the transparency of VP8 and VP9, or libvpx."""
        own = stream.codec_context
        if own.name not in _LIBVPX or stream.metadata.get("alpha_mode") != "1":
            return own
        decoder = self._av.CodecContext.create(_LIBVPX[own.name], "r")
        decoder.extradata = own.extradata
        return decoder

    def _read(self, container: Any, stream: Any) -> Iterator[Any]:
        """All packets of the tracks that hold a film, up to the first that cannot be read; None is the end."""
        self._packets = self._elsewhere = end = gap = 0
        before: int | None = None
        try:
            for packet in container.demux(self._tracks(container)):
                if not packet.size:
                    continue
                if _is_shown(packet, stream):
                    self._packets += 1
                    end, gap = max(end, packet.pts + (packet.duration or 0)), max(gap, packet.duration or 0)
                    gap = gap if before is None or packet.dts is None else max(gap, packet.dts - before)
                    before = packet.dts
                self._elsewhere += packet.stream.index != stream.index
                yield packet
        except self._av.error.FFmpegError:
            self._note(BROKEN)
        # A reader of WebM passes over what it cannot read without an error. The last frame may be shown for longer.
        if (end + _LAST * gap) * stream.time_base < self._length:
            self._note(END_MISSING)
        yield None

    def _tracks(self, container: Any) -> list[Any]:
        cover = self._av.stream.Disposition.attached_pic
        return [track for track in container.streams.video if not track.disposition & cover]

    @contextmanager
    def _track(self) -> Iterator[tuple[Any, Any]]:
        """The opened file, and the track that a player shows. No frame is decoded."""
        bound = {"max_pixels": str(self._limits.max_pixels)}  # in FFmpeg, too: a frame may be larger than was said
        how: dict[str, Any] = {"metadata_errors": "replace", "buffer_size": _BUFFER, "options": bound}
        with self._video.open() as file, self._av.open(file, "r", self._video.kind, **how) as av:
            best, tracks = av.streams.best("video"), self._tracks(av)
            if not tracks:
                kinds = ", ".join(sorted({track.type for track in av.streams})) or "nothing"
                raise BadDataError(f"no video track: the file holds {kinds}")
            stream = next((track for track in tracks if best is not None and track.index == best.index), tracks[0])
            check_pixels((stream.codec_context.width, stream.codec_context.height), self._limits)
            stream.thread_type, stream.codec_context.options = "AUTO", bound
            self._said, self._length = stream.frames, _seconds(av, stream)
            yield av, stream


def _is_shown(packet: Any, stream: Any) -> bool:
    """Whether a packet is of the track, has a time, and holds a frame that is shown: by no edit list cut away."""
    if packet.stream.index != stream.index or packet.pts is None or packet.is_discard:
        return False
    return bool(stream.codec_context.name != "vp8" or memoryview(packet)[0] & 0x10)  # the others are for reference


def _seconds(container: Any, stream: Any) -> float:
    """How long a track is said to be, in seconds; 0 where only the length of all tracks is known."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if clock := re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", "")):  # a tag of Matroska
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    return (container.duration or 0) / 1_000_000 if len(container.streams) == 1 else 0.0


class _Choice:
    """Tells frame by frame which are judged. `enough` says whether these are all that the policy asks for."""

    def __init__(self, policy: PolicyFile | None, times: Sequence[int] | None = None, second: float = 1.0) -> None:
        """`times` of all frames, so many of them a `second`, where some are chosen by them.

        Without a policy it is the first frame.
        """
        self.times = times or ()
        self.enough = policy is not None and bool(policy.scenes or policy.frames_per_second) and times != []
        self._due, self._to_end, self._missed = deque([-math.inf]), not times, False
        self._scenes, self._spare = policy is not None and policy.scenes, 0
        self._seen: NDArray[np.int16] | None = None
        if policy is not None and times:
            asked = _asked(times, second, policy.frames_per_second)
            self.enough &= len(asked) <= policy.frames
            self._due = deque(times[asked[place]] for place in spread(len(asked), policy.frames))
        if policy is not None:
            self._spare = policy.frames - max(len(self._due), 2)

    @property
    def planned(self) -> frozenset[float] | None:
        """The times of the frames that will be taken, where that is known beforehand, and these are not all."""
        return None if self._scenes or len(self._due) >= len(self.times) else frozenset(self._due)

    @property
    def missed(self) -> bool:
        """Whether a frame that was planned did not come, after all that came."""
        return self._missed or bool(self._due)

    @property
    def wants_last(self) -> bool:
        """Whether the last frame is still to come when all are decoded."""
        return bool(self._due) or self._to_end

    def takes(self, frame: Any) -> bool:
        """Whether this frame is judged; they come in order."""
        due = bool(self._due) and (frame.pts is None or frame.pts >= self._due[0])
        while self._due and frame.pts is not None and frame.pts >= self._due[0]:
            self._missed |= self._due.popleft() not in (frame.pts, -math.inf)
        if not self._scenes:
            return due
        grid = _grid(frame)
        if not due and self._is_other_scene(grid):
            due, self._spare, self.enough = self._spare > 0, max(self._spare - 1, 0), self.enough and self._spare > 0
        if due:
            self._seen = grid
        return due

    def _is_other_scene(self, grid: NDArray[np.int16]) -> bool:
        """Whether the picture differs as a whole from the last one that was judged."""
        return self._seen is None or (np.abs(grid - self._seen).max(axis=2) > _LEVELS).mean() > _OTHER_SCENE


def _asked(times: Sequence[int], second: float, rate: float | None) -> list[int]:
    """The numbers of the frames that a rate asks for: the first at or after each of its moments, and the last."""
    if rate is None:
        return list(range(len(times)))
    asked, start, due = list[int](), times[0], float(times[0])
    for number, time in enumerate(times):
        if time >= due:
            asked.append(number)
            due = start + (math.floor((time - start) * rate / second) + 1) * second / rate
    return asked if asked[-1] == len(times) - 1 else [*asked, len(times) - 1]


def _grid(frame: Any) -> NDArray[np.int16]:
    """The mean colours `[32, 32, 3]` of a frame."""
    small = frame.reformat(width=_GRID, height=_GRID, format="rgb24", interpolation="AREA", threads=1)
    return np.asarray(small.to_ndarray(), dtype=np.int16)


def picture_of(frame: Any, limits: ImageLimits, need: int | None) -> Decoded:
    """A decoded frame as people see it: upright, in sRGB, on white. Raises BadDataError for too many pixels."""
    check_pixels((frame.width, frame.height), limits)
    clear = any(component.is_alpha for component in frame.format.components)
    matrix = _matrix(frame)
    shown = frame.reformat(
        format="rgba" if clear else "rgb24",
        src_colorspace=_BT601 if matrix is None else matrix,
        src_color_range=_FULL if _is_full(frame) else _LIMITED,
        dst_color_range=_FULL,
    )
    image = Image.fromarray(shown.to_ndarray())
    exif = Image.Exif()
    exif[ORIENTATION] = _orientation(frame)
    image.info["exif"] = exif.tobytes()
    to_srgb = hdr_to_srgb(frame.color_trc, frame.color_primaries)
    profile = profile_of_video(frame.color_primaries)
    if profile is not None and to_srgb is None:
        image.info["icc_profile"] = profile
    decoded = current(image, limits, need)
    notes = (*decoded.notes, *([_MATRIX_IGNORED] if matrix is None else []), *([HDR_MAPPED] if to_srgb else []))
    mapped = decoded.image.filter(to_srgb) if to_srgb else decoded.image
    return replace(decoded, image=mapped, notes=notes)


def _matrix(frame: Any) -> int | None:
    """The matrix that makes RGB of a frame's YUV, as it says, or as browsers guess; None for one that is not known."""
    if frame.colorspace == _SAYS_NOTHING or frame.format.is_rgb:
        return _BT709 if frame.height >= _HD else _BT601
    return _MATRICES.get(frame.colorspace)


def _is_full(frame: Any) -> bool:
    """Whether black is 0 and white is 255; of YUV that does not say so it is 16 to 235."""
    return bool(frame.color_range == _FULL or frame.format.is_rgb or frame.format.name.startswith("yuvj"))


def _orientation(frame: Any) -> int:
    """The EXIF orientation of a frame, by its display matrix; angles between are rounded to a quarter turn."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
            upright = abs(a) + abs(d) >= abs(b) + abs(c)
            axes = (a, 0, 0, d) if upright else (0, b, c, 0)
            return ORIENTATIONS.get(tuple((number > 0) - (number < 0) for number in axes), 1)  # type: ignore[arg-type]
    return 1


@contextmanager
def _reasons(name: str) -> Iterator[None]:
    """Whatever goes wrong ends as a BadDataError that begins with the name of the file."""
    try:
        yield
    except BadInputError as problem:
        raise BadDataError(f"{name}: {problem}") from None
    except Exception as problem:  # FFmpeg's errors are of many classes, and those of a file that went away
        why = getattr(problem, "strerror", None) or problem
        raise BadDataError(f"{name}: broken or truncated video: {why}") from None
