"""Verdicts: round trips, and nothing that was not judged can be called safe."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zoo.contract.verdict import Verdict, unjudged
from zoo.errors import BadCardError

VERDICT = Verdict("ok", "unsafe", "gore", {"gore": 0.75, "neutral": 0.25}, "demo@1#0", "guard.demo", "a/ü.jpg")


@pytest.mark.parametrize("verdict", [VERDICT, unjudged("unreadable", "a.jpg: empty file", policy="p", model="m.t")])
def test_a_verdict_survives_json(verdict: Verdict) -> None:
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


def test_only_what_was_judged_safe_is_safe() -> None:
    assert Verdict("ok", "safe", None, {}, "p", "m.t").is_safe
    assert not VERDICT.is_safe
    assert not unjudged("missing_input", "", policy="p", model="m.t").is_safe


@pytest.mark.parametrize("status", ["unreadable", "missing_input", "invalid_scores"])
def test_a_status_and_a_decision_that_contradict_are_refused(status: Any) -> None:
    with pytest.raises(ValueError, match="does not go with decision"):
        Verdict(status, "safe", None, {}, "p", "m.t")
    with pytest.raises(ValueError, match="does not go with decision"):
        Verdict("ok", "unknown", None, {}, "p", "m.t")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"decisions": "safe"}, 'unknown field "decisions"; did you mean "decision"'),
        ({"schema_version": 3}, "3 is newer"),
        ({"scores": {"gore": float("nan")}}, "finite"),
        ({"scores": {"gore": "high"}}, "'high'"),
        ({"text_truncated": "yes"}, "text_truncated"),
        ({"status": "fine"}, "'fine'"),
    ],
)
def test_a_wrong_field_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(BadCardError, match=named):
        Verdict.from_dict(VERDICT.to_dict() | change)
