"""The threshold at a fixed false positive rate, found on safe items that nobody attacked."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from zoo.errors import BadArgumentError, BadDataError


def threshold_height(heights: NDArray[np.float64], fpr: float) -> float:
    """The lowest height that at most a share `fpr` of safe items `[N]` lies above.

    Raises BadInputError for a rate outside (0, 1), or for fewer safe items than make such a rate: of 10 items none can
    be flagged at 5 %, and the threshold would be the highest of them, whatever the rate.
    """
    if not 0 < fpr < 1:
        raise BadArgumentError(f"--fpr is a share in (0, 1), got {fpr}")
    if not len(heights):
        raise BadDataError("no safe item to find the threshold on: --fpr needs rows that are not unsafe")
    allowed = math.floor(fpr * len(heights) + 1e-9)
    if not allowed:
        raise BadDataError(
            f"{len(heights)} safe items are too few for a false positive rate of {fpr:g}: at least "
            f"{math.ceil(1 / fpr)} are needed; give more data, a higher --fpr, or --points policy"
        )
    return float(np.sort(heights)[::-1][allowed])
