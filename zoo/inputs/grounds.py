"""What else people may see of a transparent picture than it shows on white: on black, and without its transparency."""

from __future__ import annotations

import numpy as np
from PIL import Image

#: How a picture is shown beside on white, as verdicts name it.
ON_BLACK, BARE = "on black", "without transparency"

#: White and black differ visibly in pixels that let through more of the ground, in levels of 255; and in a picture
#: where so large a share of them does.
_VISIBLE = 16
_SHARE = 0.001
#: Colours of pixels that are no more opaque are hardly seen, in levels of 255.
_CLEAR = 64
#: They may be a picture where they differ by more levels, on a hundredth of the area or more.
_STRUCTURE = 6
_AREA = 0.01
#: Larger pictures are shown on white alone: three of them would take 200 MB more.
_MOST_PIXELS = 16_000_000


class Grounds:
    """Collects the layers of one transparent picture, strip by strip; it costs nothing for a picture without alpha."""

    def __init__(self, size: tuple[int, int]) -> None:
        """`size` of the picture that is made."""
        self._size = size
        self._counts = np.zeros(256, dtype=np.int64)
        self._layers: dict[str, Image.Image] = {}

    def layers(self, strip: Image.Image, alpha: Image.Image) -> dict[str, Image.Image]:
        """The layers of a strip of RGB beside that on white, for `paste`."""
        self._counts += alpha.histogram()
        if self._size[0] * self._size[1] > _MOST_PIXELS:
            return {}
        return {ON_BLACK: laid_on("black", strip, alpha), BARE: strip, "alpha": alpha}

    def paste(self, name: str, block: Image.Image, place: tuple[int, int]) -> None:
        """Put a block of a layer where it belongs in the picture."""
        if name not in self._layers:
            self._layers[name] = Image.new(block.mode, self._size)
        self._layers[name].paste(block, place)

    @property
    def transparent(self) -> float:
        """The share of the picture through which the ground is seen; 0 where that is too little to matter."""
        clear = int(self._counts[: 256 - _VISIBLE].sum()) / max(int(self._counts.sum()), 1)
        return clear if clear >= _SHARE else 0.0

    def pictures(self) -> dict[str, Image.Image]:
        """The picture on black where that differs visibly, and without transparency where that may show another one."""
        if not self.transparent or not self._layers:
            return {}
        pictures = {ON_BLACK: self._layers[ON_BLACK]}
        return pictures | ({BARE: self._layers[BARE]} if self._hides_a_picture() else {})

    def _hides_a_picture(self) -> bool:
        alpha, colours = (self._layers[name].resize((64, 64), Image.Resampling.BOX) for name in ("alpha", BARE))
        hidden = np.asarray(alpha) <= _CLEAR
        return bool(hidden.mean() >= _AREA and np.asarray(colours)[hidden].std(axis=0).max() > _STRUCTURE)


def laid_on(ground: str, strip: Image.Image, alpha: Image.Image) -> Image.Image:
    """RGB pixels on a ground of one colour."""
    result = Image.new("RGB", strip.size, ground)
    result.paste(strip, mask=alpha)
    return result
