"""What several test files ask of verdicts."""

from __future__ import annotations

import pytest

from zoo.contract.verdict import Verdict


def same_verdict(one: Verdict, other: Verdict, tolerance: float) -> bool:
    """Whether two verdicts, and those of their heads, are alike but for scores that differ by no more than this."""
    alike = one.heads.keys() == other.heads.keys() and one.scores == pytest.approx(other.scores, abs=tolerance)
    plain = [{**verdict.to_dict(), "scores": 0, "heads": 0} for verdict in (one, other)]
    if not alike or plain[0] != plain[1]:
        return False
    return all(same_verdict(one.heads[name], other.heads[name], tolerance) for name in one.heads)
