"""What several test files ask of verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zoo.contract.verdict import Verdict


def same_verdict(one: Verdict, other: Verdict, tolerance: float) -> bool:
    """Whether two verdicts, and those of their heads, are alike but for scores that differ by no more than this."""
    alike = one.heads.keys() == other.heads.keys() and one.scores == pytest.approx(other.scores, abs=tolerance)
    if not alike or replace(one, scores={}, heads={}) != replace(other, scores={}, heads={}):
        return False
    return all(same_verdict(one.heads[name], other.heads[name], tolerance) for name in one.heads)
