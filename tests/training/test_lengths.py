"""Batches of similar length: every item once, little padding, another order each time."""

from __future__ import annotations

import numpy as np
import torch

from zoo.training.data import SimilarLengths


def test_every_item_once_and_little_padding() -> None:
    torch.manual_seed(0)
    lengths = np.random.default_rng(0).integers(1, 200, 1003).tolist()
    sampler = SimilarLengths(lengths, batch_size=8, pool=20)
    first, second = list(sampler), list(sampler)
    assert len(sampler) == len(first) == 1003
    assert sorted(first) == sorted(second) == list(range(1003))
    assert first != second
    batches = [[lengths[index] for index in first[start : start + 8]] for start in range(0, 1000, 8)]
    assert np.mean([max(batch) - min(batch) for batch in batches]) < 20  # about 150 without sorting
    assert [max(batch) for batch in batches] != sorted(max(batch) for batch in batches)
