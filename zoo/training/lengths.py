"""Batches of texts of similar length: a batch costs what its longest text costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class SimilarLengths(Sampler[int]):
    """Draws every item once, so that each run of `batch_size` items has similar lengths.

    Items are shuffled, sorted by length within pools of `pool` batches, and the batches shuffled again: what stands
    together changes with every epoch. The batch that the items do not fill comes last.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, pool: int = 50) -> None:
        self.lengths, self.batch_size, self.pool = lengths, batch_size, pool

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order: list[int] = torch.randperm(len(self.lengths)).tolist()
        whole = len(order) - len(order) % self.batch_size
        size = self.pool * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, whole, size):
            pool = sorted(order[start : min(start + size, whole)], key=lambda index: self.lengths[index])
            batches += [pool[first : first + self.batch_size] for first in range(0, len(pool), self.batch_size)]
        for number in torch.randperm(len(batches)).tolist():
            yield from batches[number]
        yield from order[whole:]
