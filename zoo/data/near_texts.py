"""Which texts are nearly the same, and splits that never divide them. No torch."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from zoo.data.manifest import SPLITS, Split

_WORD = re.compile(r"\w+")


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
