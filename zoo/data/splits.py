"""Split membership: copies of images and near-identical texts form groups, and a group is never divided. No torch."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import track

from zoo.contract.card import ImageInput, SplitRule
from zoo.data.copies import copies, fingerprint, image_draws
from zoo.data.manifest import SPLITS, Row, Split
from zoo.errors import BadDataError, BadInputError
from zoo.inputs.image import Decoded, decode_for
from zoo.inputs.text import clean

log = logging.getLogger("zoo.data")

_WORD = re.compile(r"\w+")
#: Shares of train, val and test.
Fractions = tuple[float, float, float]
#: Splits whose shares miss by more than this are warned of.
_MISS = 0.05
#: Where no model is given, images are decoded for the one that most are: a large picture is decoded at a smaller scale.
_USUAL = ImageInput(224, "shortest_edge_crop", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def assign_splits(rows: Sequence[Row], prints: Mapping[Path, bytes], fractions: Fractions, seed: int) -> list[Split]:
    """The split of each row: its own where the manifest names one, else by a seeded hash of the content of its group.

    Rows whose images are copies of each other (recompressed, resized, slightly cropped; `prints`, see `fingerprint`),
    or which have no image and the same cleaned text, form a group that is never divided. If a member names its split,
    all members take it. Else each member draws a split by its own content, and the group takes the last of train, val
    and test that is drawn. So the split of a row depends on its group alone. A row that joins a group can move the
    group towards test, never towards train.

    Logs a warning with the largest group if the shares miss `fractions` by more than 5 points.
    """
    if all(row.split for row in rows):  # to compare the pictures would take seconds, and change nothing
        return [row.split for row in rows if row.split]
    group = groups_of(rows, prints)
    images = image_draws(prints, int(2**32 * draw("images", seed)))
    named = _strictest((leader, row.split) for leader, row in zip(group, rows, strict=True) if row.split is not None)
    numbers = [_number(row, images, seed) for row in rows]
    drawn = _strictest(zip(group, (_split_at(number, fractions) for number in numbers), strict=True))
    splits = [row.split or named.get(one) or drawn[one] for one, row in zip(group, rows, strict=True)]
    left = [index for index, leader in enumerate(group) if leader not in named]
    _warn_of_shares([rows[i] for i in left], [splits[i] for i in left], [group[i] for i in left], fractions)
    return splits


def apply_rule(rows: Sequence[Row], rule: SplitRule, spec: ImageInput | None) -> list[Split]:
    """The split that training used for each of these rows, by the rule in the card.

    `spec` is what the model reads: training decoded large pictures at a scale that just suffices for it, and looked at
    none for a model that reads none.

    Raises BadInputError for a rule of another version.
    """
    if rule.rule != SplitRule().rule:
        raise BadDataError(
            f'the card names the split rule "{rule.rule}", this version knows "{SplitRule().rule}" and cannot tell '
            "which rows training saw: fill the column split of the manifest, train again, or judge all with --split all"
        )
    paths = sorted({row.image for row in rows if row.image is not None}) if spec else []
    return assign_splits(rows, fingerprints(paths, spec)[0], rule.shares, rule.seed)


def hashed_splits(
    texts: Sequence[str],
    groups: Sequence[int],
    seed: int,
    fractions: Fractions = (0.8, 0.1, 0.1),
    founders: Iterable[int] = (),
) -> list[Split]:
    """The split of each text by a seeded hash of the first text of its group.

    `founders` are texts that no text before them resembles. A later text may join the groups of two: then all take the
    last of train, val and test that the founders draw, so that texts which are added move none towards train.
    """
    drawn = _strictest(
        (groups[index], _split_at(draw(texts[index], seed), fractions)) for index in {*groups, *founders}
    )
    return [drawn[group] for group in groups]


def groups_of(rows: Sequence[Row], prints: Mapping[Path, bytes]) -> list[int]:
    """The group of each row, named by its first member; see `assign_splits`."""
    return joined(len(rows), _equal_rows(rows, prints))


def fingerprints(
    paths: Sequence[Path],
    spec: ImageInput | None = None,
    keep: Callable[[Path, Decoded], None] | None = None,
    *,
    compare: bool = True,
) -> tuple[dict[Path, bytes], dict[Path, str]]:
    """The fingerprint of each image file that can be read, and the reason for each that cannot.

    `keep` is called with every image, decoded for a model that reads `spec`, in several threads. Without `compare` no
    fingerprint is made.
    """

    def read(path: Path) -> bytes | str:
        try:
            decoded = decode_for(path, spec or _USUAL)
        except BadInputError as problem:
            return str(problem)
        if keep is not None:
            keep(path, decoded)
        return fingerprint(decoded.image) if compare else b""

    with ThreadPoolExecutor() as pool:
        results = track(pool.map(read, paths), "Reading images", total=len(paths), transient=True)
        read_as = dict(zip(paths, results, strict=True))
    prints = {path: result for path, result in read_as.items() if result and isinstance(result, bytes)}
    return prints, {path: result for path, result in read_as.items() if isinstance(result, str)}


def draw(key: str, seed: int) -> float:
    """A number in [0, 1) from a seeded hash."""
    return int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()[:13], 16) / 16**13


def _split_at(number: float, fractions: Fractions) -> Split:
    cuts = np.cumsum(fractions) / sum(fractions)
    return SPLITS[min(int(np.searchsorted(cuts, number, "right")), 2)]


def _strictest(splits: Iterable[tuple[int, Split]]) -> dict[int, Split]:
    """The split of each group, the strictest of its members': what anyone tests on must not be trained on."""
    strictest: dict[int, Split] = {}
    for group, split in splits:
        strictest[group] = max(strictest.get(group, split), split, key=SPLITS.index)
    return strictest


def joined(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
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


def _place(row: Row) -> str:
    if row.image is not None:
        return f"image:{row.image}"
    try:
        return "text:" + clean(row.text or "").casefold()
    except BadInputError:  # training and evaluation set such rows aside
        return f"unreadable:{row.text}"


def _number(row: Row, images: Mapping[Path, float], seed: int) -> float:
    """What a row draws: by its image, the name of a file that was not looked at, or its text."""
    if row.image is not None and row.image in images:
        return images[row.image]
    return draw(_place(row) if row.image is None else f"file:{row.image.name}", seed)


def _equal_rows(rows: Sequence[Row], prints: Mapping[Path, bytes]) -> Iterator[tuple[int, int]]:
    """Pairs of rows of the same file or text, and pairs of images that are copies."""
    first: dict[str, int] = {}
    of_print: dict[bytes, int] = {}
    for index, row in enumerate(rows):
        yield index, first.setdefault(_place(row), index)
        if row.image is not None and row.image in prints:
            yield index, of_print.setdefault(prints[row.image], index)
    if of_print:
        known = sorted(of_print)
        for one, other in copies(known):
            yield of_print[known[one]], of_print[known[other]]


def _warn_of_shares(rows: Sequence[Row], splits: Sequence[Split], group: Sequence[int], fractions: Fractions) -> None:
    """Say where the shares of the rows that drew their split miss."""
    wanted = {split: part / sum(fractions) for split, part in zip(SPLITS, fractions, strict=True)}
    shares = {split: count / len(rows) for split, count in Counter(splits).items()}
    if not rows or all(abs(shares.get(split, 0.0) - share) <= _MISS for split, share in wanted.items()):
        return
    (largest, size), *others = Counter(group).most_common()
    one = rows[group.index(largest)]
    log.warning(
        "splits: %s of %d rows in %d groups, where %s were asked for; the largest group has %d rows, one is line %d",
        ", ".join(f"{split} {shares.get(split, 0.0):.1%}" for split in SPLITS),
        len(rows),
        1 + len(others),
        ", ".join(f"{split} {share:.1%}" for split, share in wanted.items()),
        size,
        one.line,
    )


def near_texts(texts: Sequence[str], overlap: float = 0.8) -> Iterator[tuple[int, int]]:
    """Pairs of near-duplicates, the later text first; a text without words is like no other.

    Two texts are near-duplicates if at least a share `overlap` of all words that occur in either occurs in both
    (Jaccard index). The search is exact, by prefix filtering (Chaudhuri, Ganti & Kaushik 2006): near-duplicates share
    a rare word.
    """
    words = [frozenset(_WORD.findall(text)) for text in texts]
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
