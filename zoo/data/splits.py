"""Split membership: near-identical images and texts are grouped, and a group is never divided. No torch."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.data.manifest import SPLITS, Row, Split
from zoo.inputs.text import clean

_WORD = re.compile(r"\w+")


def assign_splits(
    rows: list[Row], prints: NDArray[np.uint64] | None, fractions: tuple[float, float, float], seed: int
) -> list[Split]:
    """The split of each row: its own where the manifest names one, else by a seeded hash of the content.

    Rows whose images look alike (`prints`, see `fingerprint`, within 4 bits), or which have no image and the
    same cleaned text, form a group that is never divided; where a member names its split, all take it. A row's
    split depends on its group alone, so it does not move when other rows are added, removed or reordered.
    """
    group = _groups(rows, prints)
    named: dict[int, Split] = {}
    keys: dict[int, str] = {}
    for index, row in enumerate(rows):
        leader = int(group[index])
        if row.split is not None:
            # The strictest use wins: what anyone tests on must not be trained on.
            named[leader] = max(named.get(leader, row.split), row.split, key=SPLITS.index)
        key = _content_key(row, None if prints is None else int(prints[index]), seed)
        keys[leader] = min(keys.get(leader, key), key)
    cuts = np.cumsum(fractions) / sum(fractions)
    result: list[Split] = []
    for index, row in enumerate(rows):
        leader = int(group[index])
        drawn = int(keys[leader][:15], 16) / 16**15
        result.append(row.split or named.get(leader) or SPLITS[min(int(np.searchsorted(cuts, drawn, "right")), 2)])
    return result


def fingerprint(image: Image.Image) -> int:
    """A 64-bit difference hash: which of two neighbours is brighter on a 9 x 8 grey thumbnail.

    It survives resizing and recompression, so copies of one photo differ in few bits.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).flatten()
    return int(np.packbits(bits).view(">u8")[0])


def near_groups(texts: Sequence[str], overlap: float = 0.8) -> list[int]:
    """The group of each text, named by the first of its members: near-duplicates, and theirs, are of one group.

    Two texts are near-duplicates when at least a share `overlap` of all words that occur in either occurs in both
    (Jaccard index). Exact, by prefix filtering (Chaudhuri, Ganti & Kaushik 2006): two such texts share one of their
    rarest words. A text without words is like no other.
    """
    words = [frozenset(_WORD.findall(text)) for text in texts]
    frequency = Counter(word for bag in words for word in bag)
    parent = list(range(len(texts)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    holders: defaultdict[str, list[int]] = defaultdict(list)
    for index, bag in enumerate(words):
        rare = sorted(bag, key=lambda word: (frequency[word], word))
        # Of n words at most n - ceil(overlap * n) may be missing in the other text: one of the first of these is there.
        prefix = rare[: len(rare) - math.ceil(overlap * len(rare) - 1e-9) + 1]
        for other in {holder for word in prefix for holder in holders[word]}:
            together = words[other]
            if min(len(bag), len(together)) >= overlap * max(len(bag), len(together)):
                common = len(bag & together)
                if common >= overlap * (len(bag) + len(together) - common):
                    first, second = find(index), find(other)
                    parent[max(first, second)] = min(first, second)
        for word in prefix:
            holders[word].append(index)
    return [find(index) for index in range(len(texts))]


def hashed_splits(
    texts: Sequence[str], groups: Sequence[int], seed: int, shares: tuple[float, float] = (0.8, 0.1)
) -> list[Split]:
    """The split of each text by a seeded hash of the first text of its group; `shares` are those of train and val."""
    splits: list[Split] = []
    for group in groups:
        drawn = int(hashlib.sha256(f"{seed}:{texts[group]}".encode()).hexdigest()[:15], 16) / 16**15
        splits.append(SPLITS[(drawn >= shares[0]) + (drawn >= sum(shares))])
    return splits


def _groups(rows: list[Row], prints: NDArray[np.uint64] | None) -> NDArray[np.int64]:
    """Leader index of each row's group, by union-find."""
    parent = np.arange(len(rows))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    def join(first: int, second: int) -> None:
        a, b = find(first), find(second)
        parent[max(a, b)] = min(a, b)

    seen: dict[str, int] = {}
    for index, row in enumerate(rows):
        key = str(row.image) if row.image is not None else "text:" + clean(row.text or "").casefold()
        join(index, seen.setdefault(key, index))
    if prints is not None:
        pictured = [index for index in seen.values() if rows[index].image is not None and prints[index]]
        for first, second in _near_pairs(prints, pictured):
            join(first, second)
    return np.array([find(index) for index in range(len(rows))])


def _near_pairs(prints: NDArray[np.uint64], candidates: list[int], distance: int = 4) -> Iterable[tuple[int, int]]:
    """Pairs within `distance` bits: of distance + 1 bands of a hash, at least one must then be equal."""
    bands = np.array_split(np.arange(64), distance + 1)
    for band in bands:
        mask = sum(1 << int(bit) for bit in band)
        buckets: dict[int, list[int]] = {}
        for index in candidates:
            buckets.setdefault(int(prints[index]) & mask, []).append(index)
        for bucket in buckets.values():
            values = prints[bucket]
            for position in range(len(bucket) - 1):
                differing = np.bitwise_count(values[position + 1 :] ^ values[position])
                for offset in np.flatnonzero(differing <= distance):
                    yield bucket[position], bucket[position + 1 + int(offset)]


def _content_key(row: Row, print_: int | None, seed: int) -> str:
    content = f"image:{print_}" if row.image is not None and print_ else clean(row.text or str(row.image)).casefold()
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()
