"""Batches of similar length: every item once, little padding, another order each time."""

from __future__ import annotations

import numpy as np
import torch

from zoo.training.data import similar_lengths


def test_every_item_once_and_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 1003).tolist()
    generator = torch.Generator().manual_seed(0)
    first, second = (similar_lengths(lengths, 8, generator, pool=20) for _ in range(2))
    assert len(first) == 1003
    assert sorted(first) == sorted(second) == list(range(1003))
    assert first != second
    batches = [[lengths[index] for index in first[start : start + 8]] for start in range(0, 1000, 8)]
    assert np.mean([max(batch) - min(batch) for batch in batches]) < 20  # about 150 without sorting
    assert [max(batch) for batch in batches] != sorted(max(batch) for batch in batches)
