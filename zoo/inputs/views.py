"""What a model is shown of a picture, of its frames and on which grounds, and what that leaves out. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from zoo.contract.card import ImageInput
from zoo.contract.policy import PolicyFile
from zoo.contract.verdict import Cause, Place, Unseen
from zoo.inputs.damage import DAMAGE, FILM
from zoo.inputs.image import (
    DEFAULT_LIMITS,
    Box,
    Decoded,
    ImageLimits,
    ImageSource,
    Pixels,
    fit,
    frames_for,
    load,
    own_box,
)

#: The share of the short side by which tiles overlap at least: what is no larger lies whole in one of them, wherever it
#: is. With a fifth, 4:3 and 16:9 still take two tiles; with a quarter, 16:9 would take three.
OVERLAP = 0.2

#: The name of the view that the card describes.
_OWN = "centre"


@dataclass(frozen=True)
class View:
    """A part of a picture, resized to the model's square; `pad` keeps its aspect ratio by bars."""

    name: str
    box: Box
    pad: bool = False

    def place(self, ground: str = "", frame: int | None = None, seconds: float | None = None) -> Place:
        """Its name and box, as verdicts hold it, with the ground that a transparent picture lies on, and the frame."""
        left, top, right, bottom = (round(edge) for edge in self.box)
        return Place(f"{self.name} {ground}".strip(), (left, top, right, bottom), frame=frame, seconds=seconds)

    def cut(self, image: Image.Image | Decoded, spec: ImageInput) -> Pixels:
        """The `[size, size, 3]` uint8 of an upright RGB picture."""
        return fit(image, spec, self.box, pad=self.pad)


@dataclass(frozen=True)
class Shown:
    """What a model is shown of an image, a row for each view: `pixels` uint8 `[R, size, size, 3]`.

    `places` names the rows; the place of the only one of a picture is empty. `unseen` is what no row shows.
    """

    places: tuple[Place, ...]
    pixels: Pixels
    unseen: dict[Cause, Unseen]


def shown(image: ImageSource, spec: ImageInput, policy: PolicyFile, limits: ImageLimits = DEFAULT_LIMITS) -> Shown:
    """All that a policy wants to be shown of an image, for a model that reads `spec`. Raises what `decode` raises.

    Pixels `[size, size, 3]` are what the model reads, whatever the policy says.
    """
    if isinstance(image, np.ndarray) and image.shape == (spec.size, spec.size, 3):
        return Shown((Place(),), load(image, spec, limits)[None], {})
    rows: list[tuple[View, tuple[str, int | None, float | None]]] = []
    pixels, unseen, judged = list[Pixels](), dict[Cause, Unseen](), 0
    frames = frames_for(image, spec, limits, policy)
    for number, seconds, picture in frames:
        views, left_out = plan(*picture.size, spec, policy)
        grounds = shown_on(picture, policy)
        for ground, laid in grounds:
            pixels += [view.cut(laid, spec) for view in views]
            rows += [(view, (ground, number, seconds)) for view in views]
        counted = spec.margin > 0 and views[0].name == _OWN
        for cause, one in unseen_of(picture, left_out, len(grounds), counted=counted).items():
            if cause not in unseen or one.share > unseen[cause].share:
                unseen[cause] = one
        judged += 1
    unseen.pop("frames", None)  # of the first one
    unseen |= frames.unseen(judged)
    places = tuple(view.place(*where) for view, where in rows) if len(rows) > 1 else (Place(),)
    return Shown(places, np.stack(pixels), unseen)


def border(width: int, height: int, spec: ImageInput) -> float:
    """The share of a picture's area that the card's own view leaves out."""
    left, top, right, bottom = own_box(width, height, spec)
    left_out = 1 - (right - left) * (bottom - top) / (width * height)
    return left_out if left_out > 1e-9 else 0.0  # the crop of a square is the square, but for rounding


def shown_on(picture: Decoded, policy: PolicyFile) -> list[tuple[str, Decoded]]:
    """A picture on all grounds on which it is to be judged, each with its name: "" where it covers the ground."""
    if not picture.grounds or picture.transparent <= policy.tolerated("hidden"):
        return [("", picture)]
    others = [(name, replace(picture, image=image)) for name, image in picture.grounds.items()]
    return [("on white", picture), *others]


def unseen_of(picture: Decoded, left_out: float, grounds: int = 1, *, counted: bool = False) -> dict[Cause, Unseen]:
    """What no model looks at of a picture, of whose area its views leave out a share, on so many grounds.

    What is left out is tolerated where it is `counted`: a margin, which no figure of the model was measured without.
    """
    unseen: dict[Cause, Unseen] = {"border": Unseen(left_out, 1, tolerated=counted)} if left_out else {}
    if picture.transparent and grounds == 1:
        unseen["hidden"] = Unseen(picture.transparent, 1)
    if picture.frames > 1:
        unseen["frames"] = Unseen(picture.frames - 1, picture.frames)
    damage = [note.removeprefix("damaged: ") for note in picture.notes if note in DAMAGE]
    colours = [note for note in picture.notes if note not in (*DAMAGE, FILM)]
    noted: dict[Cause, list[str]] = {"damaged": damage, "film": [FILM] * (FILM in picture.notes), "colours": colours}
    return unseen | {cause: Unseen(1, note=", ".join(notes)) for cause, notes in noted.items() if notes}


def plan(width: int, height: int, spec: ImageInput, policy: PolicyFile) -> tuple[list[View], float]:
    """The views of a picture of this size under a policy, and the share of its area that they leave out.

    Tiles are the fewest that overlap by `OVERLAP`: of the short side, or with `scale` `native` of the model's own size,
    in rows. Where `max_views` allows fewer, they are spread over the picture, and
    the share is of what so many cannot cover with that overlap: what lies on their seams is not seen whole.

    >>> from zoo.registry import model_card
    >>> from zoo.contract.policy import read_policy
    >>> views, unseen = plan(1024, 768, model_card("safeclip_vit_b32.zeroshot").image, read_policy("safeclip"))
    >>> [view.box for view in views], unseen
    ([(0.0, 0.0, 768.0, 768.0), (256.0, 0.0, 1024.0, 768.0)], 0.0)
    """
    whole = (0.0, 0.0, float(width), float(height))
    if policy.views == "pad" or policy.views == "squash":
        return [View(policy.views, whole, pad=policy.views == "pad")], 0.0
    left_out = border(width, height, spec)
    # A squash leaves out no more than its margin, which belongs to the model.
    enough = spec.resize == "squash" or left_out <= policy.tolerated("border")
    if policy.views == "centre" or (policy.views == "auto" and enough):
        return [View(_OWN, own_box(width, height, spec))], left_out
    side = min(width, height, *([spec.size] if policy.scale == "native" else []))
    step = side - int(OVERLAP * side)
    counts = [1 - (side - length) // step for length in (width, height)]
    while counts[0] * counts[1] > policy.max_views:
        counts[counts.index(max(counts))] -= 1
    lefts, tops = (_starts(length - side, count) for length, count in zip((width, height), counts, strict=True))
    boxes = [(left, top, left + side, top + side) for top in tops for left in lefts]
    views = [View(f"tile {number} of {len(boxes)}", box) for number, box in enumerate(boxes, 1)]
    across, down = (side + (count - 1) * step for count in counts)
    return views, 1 - min(width, across) * min(height, down) / (width * height)


def _starts(room: int, count: int) -> list[float]:
    """Where so many squares begin that share out a side, of which one leaves that much room."""
    return np.linspace(0, room, count).round().tolist() if count > 1 else [float(room // 2)]
