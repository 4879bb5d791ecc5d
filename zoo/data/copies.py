"""Which images are copies of each other: recompressed, resized, slightly cropped. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

#: Side of the grey thumbnail that images are compared by.
_SIDE = 64
#: Two images are copies if their thumbnails, at 16 x 16, differ by less than this share of the contrast once a small
#: shift, stretch and change of brightness and contrast are undone, and by less than the second before that; in grey
#: levels at least, as a page with a few thin lines has little contrast.
_COPY, _UNALIGNED, _FLOOR = 0.16, 0.6, 2.0
#: The share for images of which one may have been made of the other by leaving out pixels, and for tiny ones, of which
#: neither was: MNIST's ones are that similar.
_SHRUNK, _TINY = 0.25, 0.1
#: The shorter side from which images are compared at 32 x 32 and at 64 x 64: below it they have no such details.
_LEVELS = (30, 90)
#: And if each window of this side is alike at least so much, whatever small shift of its own is undone, and the windows
#: of all the image, laid on the other, at least so much.
_WINDOW, _ALIKE, _SAME = 6, 0.7, 0.65
#: See `image_draws`.
_PERIOD = 16.0
#: By the side that is compared: how far details are smoothed, so that a shift of 2 % is small against them, and which
#: variance a strong compression leaves of nothing.
_SMOOTH, _NOISE = {64: 1.5, 32: 1.0, 16: 0.7}, {64: 5.0, 32: 20.0, 16: 20.0}
#: Images compared at once with eight times as many: smaller products leave threads waiting for each other.
_BLOCK = 512


def fingerprint(image: Image.Image) -> bytes:
    """The basis for comparing images: a grey thumbnail of 64 x 64 bytes, one of 4 x 4 RGB colours, the shorter side."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    colours = small.reduce(_SIDE // 4).convert("RGB")
    return small.convert("L").tobytes() + colours.tobytes() + bytes([min(*image.size, 255)])


def _thumbnails(prints: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Grey `[N, 64, 64]` and colours `[N, 16, 3]` in [0, 255], and the shorter side of each image, at most 255."""
    content = np.frombuffer(b"".join(prints), np.uint8).reshape(len(prints), -1)
    grey, colours, shorter = np.split(content, [_SIDE**2, _SIDE**2 + 48], axis=1)
    numbers = colours.reshape(-1, 16, 3).astype(np.float32), shorter[:, 0].astype(np.float32)
    return grey.reshape(-1, _SIDE, _SIDE), *numbers


def image_draws(prints: Mapping[Path, bytes], seed: int) -> dict[Path, float]:
    """A number in [0, 1) for each image by a seed below 2 ** 32: nearly the same for its copies, unlike others'.

    How far the details lie along a random direction, modulo a length that copies are small against (the phase of a
    random Fourier feature, Rahimi & Recht 2007). Copies that drew by themselves would all need to draw train to stay in
    it.
    """
    if not prints:
        return {}
    grey, colours, _ = _thumbnails(list(prints.values()))
    small = _reduced(grey, 32).astype(np.float64)
    fine = gaussian_filter(small, (0, 0.6, 0.6)) - gaussian_filter(small, (0, 2, 2), mode="nearest")
    # Margins and lines of text, which all pages have, are the means of columns and rows.
    fine -= fine.mean(1, keepdims=True) + fine.mean(2, keepdims=True) - fine.mean((1, 2), keepdims=True)
    fine = fine.reshape(len(fine), -1)
    fine = (fine / (fine.std(1, keepdims=True) + 1e-3)).clip(-2, 2)
    # RandomState's numbers are the same in all versions of numpy.
    numbers = np.random.RandomState(seed)
    along = fine @ numbers.standard_normal(32 * 32) + colours.mean(1) / 2 @ numbers.standard_normal(3)
    return dict(zip(prints, (np.round(along / _PERIOD + numbers.uniform(), 9) % 1).tolist(), strict=True))


def _reduced(grey: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    step = _SIDE // side
    return np.asarray(grey.reshape(len(grey), side, step, side, step).mean((2, 4), dtype=np.float32))


def copies(prints: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Pairs of sorted, distinct prints that join all copies. How two compare does not depend on the others.

    First all of a picture is compared, coarsely, by a tangent distance (Simard et al. 1993): what a shift, a stretch
    and a change of brightness and contrast explain, to first order, is taken out. Then the details, in each window, by
    structural similarity (Wang et al. 2004), so that what a template shares does not outweigh a line of other text.
    """
    grey, colours, shorter = _thumbnails(prints)
    mean = grey.mean((1, 2), dtype=np.float32)
    order = np.argsort(mean, kind="stable")
    grey, colours, shorter, mean = grey[order], colours[order], shorter[order], mean[order]
    whole = gaussian_filter(_reduced(grey, 16), (0, 0.7, 0.7), mode="nearest") - 128
    contrast = whole.std((1, 2))
    hue = ((colours - colours.mean(2, keepdims=True)) / 8).reshape(len(grey), -1)
    points = np.concatenate([whole.reshape(len(grey), -1) / 16, hue], axis=1)
    # Means of cells are no farther apart than all: what is far by these needs no closer look.
    coarse = _reduced(grey, 8).reshape(len(grey), -1) / 8 - 16
    wide, square = (coarse**2).sum(1), (points**2).sum(1)
    member = np.arange(len(grey))  # of which group: pairs within one need no closer look
    for start in range(0, len(grey), _BLOCK):
        rows = slice(start, start + _BLOCK)
        reach = mean[rows][-1] + max(_FLOOR, _UNALIGNED * float(contrast[rows].max()))
        last = int(np.searchsorted(mean, reach, "right"))  # the means of copies differ by no more than the copies
        for begin in range(start, last, 8 * _BLOCK):
            columns = slice(begin, min(begin + 8 * _BLOCK, last))
            limit = np.minimum(contrast[rows, None], contrast[columns])
            near = wide[rows, None] + wide[columns] - 2 * coarse[rows] @ coarse[columns].T
            close = near <= np.maximum(_FLOOR, _UNALIGNED * limit) ** 2
            close &= np.arange(len(close))[:, None] + start < np.arange(close.shape[1]) + begin
            i, j = np.flatnonzero(close.any(1)), np.flatnonzero(close.any(0))
            if not len(i):
                continue
            some, one, other = np.ix_(i, j), start + i, begin + j
            whole_apart = square[one, None] + square[other] - 2 * points[one] @ points[other].T
            rest = whole_apart - _explained(whole[one], points[one], points[other])
            close, limit, least = close[some], limit[some], np.minimum(shorter[one, None], shorter[other])
            level = np.array([16, 32, 64])[np.searchsorted(_LEVELS, least, "right")]
            share = np.where(level > 16, _COPY, _TINY)
            share[least < 0.9 * np.maximum(shorter[one, None], shorter[other])] = _SHRUNK
            close &= whole_apart <= np.maximum(_FLOOR, _UNALIGNED * limit) ** 2
            close &= rest <= np.maximum(_FLOOR, share * limit) ** 2
            for side in (16, 32, 64):
                at = close & (level == side)
                alike = ((one[a], other[b]) for a, b in _alike(grey[one], grey[other], side, at))
                apart = ((a, b) for a, b in alike if member[a] != member[b])
                while pairs := list(islice(apart, 64)):
                    for a, b in compress(pairs, _same(grey, pairs, side)):
                        member[member == member[b]] = member[a]
                        yield int(order[a]), int(order[b])


def _explained(grey: NDArray[Any], points: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """How much of the squared distance of `points` `[A, D]` from `others` `[B, D]` their tangents explain `[A, B]`."""
    down, across = np.gradient(grey, axis=(1, 2))
    side = grey.shape[1]
    place = np.linspace(-1, 1, side, dtype=np.float32)
    ways = np.stack([across, down, across * place, down * place[:, None], np.ones_like(grey)], axis=1) / side
    flat = np.zeros((len(grey), 6, points.shape[1]))
    flat[:, :5, : side * side] = ways.reshape(len(grey), 5, -1)
    flat[:, 5] = points
    gram = flat @ flat.swapaxes(1, 2) + 1e-3 * np.eye(6)  # an image of one colour has no tangents
    basis = np.linalg.solve(np.linalg.cholesky(gram), flat).astype(np.float32)
    own = np.einsum("akd,ad->ka", basis, points)
    return np.asarray(np.sum([(basis[:, k] @ others.T - own[k][:, None]) ** 2 for k in range(6)], axis=0))


def _alike(
    grey: NDArray[np.uint8], others: NDArray[np.uint8], side: int, close: NDArray[np.bool_]
) -> Iterator[tuple[int, int]]:
    """The pairs of `close` `[A, B]` whose details are alike in every window, at `side` x `side` pixels.

    A window's similarity is 2 cov(a, b) / (var(a) + var(b)), with `_NOISE` added to both and what a small shift of the
    window explains. It is written as a product, a quadratic form of both windows that must not be negative.
    """
    i, j = np.flatnonzero(close.any(1)), np.flatnonzero(close.any(0))
    if not len(i):
        return
    close = close[np.ix_(i, j)]
    details = _details(grey[i], side, _SMOOTH[side])
    slopes: Any = np.gradient(details, axis=(1, 2))
    own, down, across = map(_windows, (details, *slopes))
    right = _windows(_details(others[j], side, _SMOOTH[side]))
    energy = [_inner(x, x) for x in (own, right)]
    left = np.zeros((*own.shape[:2], 3, _WINDOW**2 + 2), np.float32)
    left[:, :, 0, :-2] = 2 * own
    left[:, :, 0, -2] = (1 - _ALIKE) * _NOISE[side] * _WINDOW**2 - _ALIKE * energy[0][..., 0]
    left[:, :, 0, -1] = 1
    # Three grey levels of noise against a shift of 1 % of the side: a shift that little suggests explains little.
    noise = (300 / side) ** 2
    norm, both, other = (_inner(*two) for two in ((down, down), (down, across), (across, across)))
    left[:, :, 1, :-2] = down / np.sqrt(norm + noise)
    left[:, :, 2, :-2] = (across - both / (norm + noise) * down) / np.sqrt(other + noise - both**2 / (norm + noise))
    left[:, :, 1:, -2] = -(left[:, :, 1:, :-2] @ own[..., None])[..., 0]
    right = np.concatenate([right, np.ones_like(energy[1]), -_ALIKE * energy[1]], axis=2)
    for start in range(0, len(i), 32):  # so few that a product stays in the cache
        rows = slice(start, start + 32)
        for a, b in _none_negative(left[:, rows], right, close[rows]):
            yield int(i[start + a]), int(j[b])


def _inner(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.einsum("wnd,wnd->wn", one, other)[..., None])


def _none_negative(
    left: NDArray[np.float32], right: NDArray[np.float32], close: NDArray[np.bool_]
) -> Iterator[tuple[int, int]]:
    """The pairs of `close` `[A, B]` for which no window of `[W, A, 3, D]` times `[W, B, D]` is negative in sum.

    The first of the three products counts as it is, the others squared.
    """
    # Most pairs differ in the windows in which the pictures do.
    order = np.argsort(-left[..., 0, :-2].var(1).sum(1), kind="stable")
    seen = 0
    while seen < len(order) and close.mean() > 0.1:
        flat = left[order[seen]].swapaxes(0, 1).reshape(-1, left.shape[-1])
        good, *shifts = (flat @ right[order[seen]].T).reshape(3, len(close), -1)
        close &= good + shifts[0] ** 2 + shifts[1] ** 2 >= 0
        seen += 1
    for a in np.flatnonzero(close.any(1)):  # of the few pairs that are left, one picture with the others
        near = np.flatnonzero(close[a])
        for part in np.split(order, range(seen, len(order), 8))[1:]:
            product = left[part, a] @ right[part[:, None], near].swapaxes(1, 2)
            near = near[(product[:, 0] + product[:, 1] ** 2 + product[:, 2] ** 2 >= 0).all(0)]
        yield from ((int(a), int(b)) for b in near)


def _same(grey: NDArray[np.uint8], pairs: Sequence[tuple[int, int]], side: int) -> NDArray[np.bool_]:
    """Whether the pictures of each pair show the same details once one is laid on the other."""
    one, other = (grey[list(part)].astype(np.float32) for part in zip(*pairs, strict=True))
    same = _similarity(one, other, side) >= _SAME
    todo = np.flatnonzero(~same)
    if not len(todo):
        return same
    one, other = one[todo], other[todo]
    move = np.zeros((2, len(todo), 2), np.float32)
    for scale in (side // 2, side):
        for _ in range(2):
            move = _closer(one, other, scale, move)
    same[todo] = _similarity(one, _moved(other, move), side) >= _SAME
    return same


def _similarity(one: NDArray[np.float32], other: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The least structural similarity of the windows of `[N, 64, 64]` in [-1, 1], the edge left out."""
    edge = slice(side // 32, side - side // 32)
    a, b = (_smoothed(x, side, 0.8)[:, edge, edge] for x in (one, other))
    a, b = a - a.mean((1, 2), keepdims=True), b - b.mean((1, 2), keepdims=True)
    mean = [_sums(x) / 64 for x in (a, b, a * a, b * b, a * b)]
    variance = mean[2] + mean[3] - mean[0] ** 2 - mean[1] ** 2
    return np.asarray(((2 * (mean[4] - mean[0] * mean[1]) + _NOISE[side]) / (variance + _NOISE[side])).min((1, 2)))


def _sums(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sums of windows of 8 x 8 that overlap by half."""
    many = maps.shape[1] // 4
    cells = maps[:, : 4 * many, : 4 * many].reshape(len(maps), many, 4, many, 4).sum((2, 4))
    pairs = cells[:, 1:] + cells[:, :-1]
    return np.asarray(pairs[:, :, 1:] + pairs[:, :, :-1])


def _moved(maps: NDArray[np.float32], move: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[N, 64, 64]` stretched and shifted down and across by `move` `[2, N, 2]`, in shares of half the side."""
    place = (np.arange(_SIDE, dtype=np.float32) + 0.5) / _SIDE * 2 - 1
    at = ((1 + move[..., :1]) * place + move[..., 1:] + 1) / 2 * _SIDE - 0.5
    down, across = np.maximum(0, 1 - np.abs(at.clip(0, _SIDE - 1)[..., None] - np.arange(_SIDE, dtype=np.float32)))
    return np.asarray(down @ maps @ across.swapaxes(1, 2))


def _closer(
    one: NDArray[np.float32], other: NDArray[np.float32], side: int, move: NDArray[np.float32]
) -> NDArray[np.float32]:
    """A step of Gauss and Newton towards the move that lays `other` on `one` (Lucas & Kanade 1981)."""
    a, b = _smoothed(one, side, 0.7), _smoothed(_moved(other, move), side, 0.7)
    down, across = np.gradient(a * (side / 2), axis=(1, 2))
    place = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    brighter = a - a.mean((1, 2), keepdims=True)
    ways = np.stack([down * place[:, None], down, across * place, across, np.ones_like(a), brighter], axis=1)
    inner = np.zeros((side, side), np.float32)
    edge = side // 32 + 1
    inner[edge:-edge, edge:-edge] = 1
    ways, kept = ways.reshape(len(a), 6, -1), (ways * inner).reshape(len(a), 6, -1)
    # Moves are of about 2 %, against four grey levels of noise.
    prior = (4 / np.array([0.02, 0.02, 0.02, 0.02, 1e3, 0.3])) ** 2
    gram = kept @ ways.swapaxes(1, 2) + np.diag(prior).astype(np.float32)
    step = np.linalg.solve(gram, kept @ (b - a).reshape(len(a), -1, 1))[:, :4, 0]
    return np.asarray((move - step.reshape(-1, 2, 2).swapaxes(0, 1)).clip(-0.06, 0.06))


def _details(grey: NDArray[np.uint8], side: int, width: float) -> NDArray[np.float32]:
    return _smoothed(grey.astype(np.float32), side, width)


def _smoothed(maps: NDArray[np.float32], side: int, width: float) -> NDArray[np.float32]:
    """`[N, 64, 64]` reduced to `side` x `side` pixels and smoothed."""
    place = np.arange(side)
    smooth = np.exp(-((place[:, None] - place) ** 2) / (2 * width**2))
    smooth = np.repeat(smooth / smooth.sum(1, keepdims=True), _SIDE // side, axis=1).astype(np.float32) * (side / _SIDE)
    return np.asarray(smooth @ maps @ smooth.T)


def _windows(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[W, N, 36]`: the windows of `[N, side, side]`, side by side, each less its mean."""
    count, side, _ = maps.shape
    many = side // _WINDOW
    inner = slice((side - many * _WINDOW) // 2, (side + many * _WINDOW) // 2)
    cut = maps[:, inner, inner].reshape(count, many, _WINDOW, many, _WINDOW)
    flat = cut.transpose(1, 3, 0, 2, 4).reshape(many**2, count, _WINDOW**2)
    return np.asarray(flat - flat.mean(2, keepdims=True))
