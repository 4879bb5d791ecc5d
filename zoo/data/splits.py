"""Split membership: near-identical images and texts form groups, and a group is never divided. No torch."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from zoo.data.manifest import SPLITS, Row, Split
from zoo.errors import BadInputError
from zoo.inputs.image import decode
from zoo.inputs.text import clean

_WORD = re.compile(r"\w+")
#: Shares of train, val and test.
Fractions = tuple[float, float, float]


def assign_splits(rows: Sequence[Row], prints: Mapping[Path, int], fractions: Fractions, seed: int) -> list[Split]:
    """The split of each row: its own where the manifest names one, else by a seeded hash of the content.

    Rows whose images look alike (`prints`, see `fingerprint`, within 4 bits), or which have no image and the
    same cleaned text, form a group that is never divided. If a member names its split, all members take it. A row's
    split depends on its group alone, so it does not move when other rows are added, removed or reordered.
    """
    leaders = _joined(len(rows), _equal_rows(rows, prints))
    named: dict[int, Split] = {}
    drawn: dict[int, float] = {}
    for leader, row in zip(leaders, rows, strict=True):
        if row.split is not None:
            # The strictest use wins: what anyone tests on must not be trained on.
            named[leader] = max(named.get(leader, row.split), row.split, key=SPLITS.index)
        print_ = prints.get(row.image) if row.image else None
        content = f"image:{print_}" if print_ else clean(row.text or str(row.image)).casefold()
        drawn[leader] = min(drawn.get(leader, 1.0), draw(content, seed))
    return [
        row.split or named.get(leader) or _split_at(drawn[leader], fractions)
        for leader, row in zip(leaders, rows, strict=True)
    ]


def hashed_splits(
    texts: Sequence[str], groups: Sequence[int], seed: int, fractions: Fractions = (0.8, 0.1, 0.1)
) -> list[Split]:
    """The split of each text by a seeded hash of the first text of its group."""
    return [_split_at(draw(texts[group], seed), fractions) for group in groups]


def near_groups(texts: Sequence[str], overlap: float = 0.8) -> list[int]:
    """The group of each text, named by its first member. Near-duplicates, and theirs, are in one group.

    Two texts are near-duplicates if at least a share `overlap` of all words that occur in either occurs in both
    (Jaccard index). The search is exact. A text without words is like no other.
    """
    return _joined(len(texts), _near_texts([frozenset(_WORD.findall(text)) for text in texts], overlap))


def fingerprint(image: Image.Image) -> int:
    """A 64-bit difference hash: which of two neighbours is brighter on a 9 x 8 grey thumbnail.

    It survives resizing and recompression, so copies of one photo differ in few bits.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).flatten()
    return int(np.packbits(bits).view(">u8")[0])


def fingerprints(
    paths: Sequence[Path], keep: Callable[[Path, Image.Image], None] | None = None
) -> tuple[dict[Path, int], dict[Path, str]]:
    """The fingerprint of each image file that can be read, and the reason for each that cannot.

    `keep` is called with every decoded image, in several threads.
    """

    def read(path: Path) -> int | str:
        try:
            image = decode(path)
        except BadInputError as problem:
            return str(problem)
        if keep is not None:
            keep(path, image)
        return fingerprint(image)

    with ThreadPoolExecutor() as pool:
        results = track(pool.map(read, paths), "Reading images", total=len(paths), transient=True)
        read_as = dict(zip(paths, results, strict=True))
    prints = {path: result for path, result in read_as.items() if isinstance(result, int)}
    return prints, {path: result for path, result in read_as.items() if isinstance(result, str)}


def draw(key: str, seed: int) -> float:
    """A number in [0, 1) from a seeded hash."""
    return int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()[:13], 16) / 16**13


def _split_at(drawn: float, fractions: Fractions) -> Split:
    cuts = np.cumsum(fractions) / sum(fractions)
    return SPLITS[min(int(np.searchsorted(cuts, drawn, "right")), 2)]


def _joined(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The group of each of `count` items, named by its first member, after the items of each pair are joined."""
    parent = list(range(count))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for one, other in pairs:
        one, other = find(one), find(other)
        parent[max(one, other)] = min(one, other)
    return [find(index) for index in range(count)]


def _equal_rows(rows: Sequence[Row], prints: Mapping[Path, int]) -> Iterator[tuple[int, int]]:
    """Pairs of rows of the same file or text, and pairs of images that look alike."""
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        key = str(row.image) if row.image is not None else "text:" + clean(row.text or "").casefold()
        yield index, first.setdefault(key, index)
    known = {index: prints.get(path, 0) for index in first.values() if (path := rows[index].image) is not None}
    yield from _near_prints({index: print_ for index, print_ in known.items() if print_})


def _near_prints(prints: Mapping[int, int], distance: int = 4) -> Iterator[tuple[int, int]]:
    """Pairs of keys within `distance` bits: of distance + 1 bands of a hash, at least one must then be equal."""
    for band in np.array_split(np.arange(64), distance + 1):
        mask = sum(1 << int(bit) for bit in band)
        buckets: defaultdict[int, list[int]] = defaultdict(list)
        for index, print_ in prints.items():
            buckets[print_ & mask].append(index)
        for bucket in buckets.values():
            values = np.array([prints[index] for index in bucket], dtype=np.uint64)
            for place, index in enumerate(bucket):
                differing = (values[place + 1 :] ^ values[place])[:, None].view(np.uint8)
                close = np.unpackbits(differing, axis=1).sum(axis=1) <= distance  # numpy 1 has no bitwise_count
                yield from ((index, bucket[place + 1 + int(at)]) for at in np.flatnonzero(close))


def _near_texts(words: Sequence[frozenset[str]], overlap: float) -> Iterator[tuple[int, int]]:
    """Pairs of near-duplicates by prefix filtering (Chaudhuri, Ganti & Kaushik 2006): they share a rare word."""
    frequency = Counter(word for bag in words for word in bag)
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for index, bag in enumerate(words):
        rare = sorted(bag, key=lambda word: (frequency[word], word))
        # Of n words at most n - ceil(overlap * n) may be missing in the other text: one of the first of these is there.
        prefix = rare[: len(rare) - math.ceil(overlap * len(rare) - 1e-9) + 1]
        for other in {holder for word in prefix for holder in holders[word]}:
            sizes = len(bag), len(words[other])
            common = len(bag & words[other]) if min(sizes) >= overlap * max(sizes) else 0
            if common >= overlap * (sum(sizes) - common):
                yield index, other
        for word in prefix:
            holders[word].append(index)
