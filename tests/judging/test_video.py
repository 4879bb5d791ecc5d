"""Videos are judged as a policy asks, their worst moment is named, and what was not looked at is never called safe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from export.runtime.service import Service
from tests.inputs.videos import signed, video
from tests.judging.test_whole_input import POLICY, _scorer
from zoo.cli import run
from zoo.commands.score import exit_status
from zoo.contract.policy import panel_policy
from zoo.contract.verdict import Unseen, Verdict
from zoo.errors import BadPolicyError

FORMS = {"mp4": "libx264", "mov": "mpeg4", "webm": "libvpx-vp9"}
AT_TWO = replace(POLICY, frames=20, frames_per_second=2.0)
COUNT = 20
CLIP = "test_safeclip.random"


def _clip(form: str, flagged: int | None) -> bytes:
    """Two seconds of ten frames each, one of which bears the sign."""
    return video([signed(number, flagged) for number in range(COUNT)], form, FORMS[form])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("flagged", [0, 10, 19])
def test_a_sign_is_flagged_with_its_moment(form: str, flagged: int, tmp_path: Path) -> None:
    data = _clip(form, flagged)
    path = tmp_path / "clip"
    path.write_bytes(data)
    with _scorer(AT_TWO) as scorer:
        verdict = scorer.verdict(data)
        with path.open("rb") as stream:
            found = [scorer.verdict(path), scorer.verdict(stream)]
        with Service(scorer) as service:
            found += [service.verdict(data), service.submit(path).result()]
    assert (verdict.decision, verdict.category) == ("unsafe", "red")
    assert verdict.place is not None
    assert verdict.place.frame == flagged
    assert verdict.place.seconds == pytest.approx(flagged / 10, abs=0.001)
    assert [replace(one, source="") for one in found] == [verdict] * 4


@pytest.mark.parametrize("form", FORMS)
def test_what_the_policy_asks_for_decides_what_may_be_unseen(form: str) -> None:
    plain, between = _clip(form, None), _clip(form, 7)
    with _scorer() as scorer:
        verdict = scorer.verdict(plain)
    assert (verdict.decision, verdict.category, verdict.is_safe) == ("review", None, False)
    assert verdict.unseen == {"frames": Unseen(COUNT - 1, COUNT)}
    with _scorer(AT_TWO) as scorer:
        assert scorer.verdict(plain).is_safe
        verdict = scorer.verdict(between)
    assert (verdict.decision, verdict.unseen) == ("safe", {"frames": Unseen(COUNT - 5, COUNT, tolerated=True)})
    with _scorer(replace(AT_TWO, unseen={"frames": 0.0})) as scorer:
        assert scorer.verdict(between).decision == "review"
    with _scorer(replace(AT_TWO, frames=3)) as scorer:  # three of the five moments
        assert scorer.verdict(plain).decision == "review"
    with _scorer(replace(POLICY, frames=COUNT)) as scorer:
        every = scorer.verdicts([plain, between])
    assert [(verdict.decision, verdict.unseen) for verdict in every] == [("safe", {}), ("unsafe", {})]


def test_a_clip_that_is_cut_is_for_review_and_still_flagged(tmp_path: Path) -> None:
    frames = [signed(number, 2) for number in range(COUNT)]
    data = video(frames, options={"g": "1"}, index_first=True)
    plain = video([signed(number, None) for number in range(COUNT)], "webm", "libvpx-vp9", options={"g": "1"})
    with _scorer(AT_TWO) as scorer:
        safe, flagged, lost = scorer.verdicts([plain[: len(plain) * 2 // 3], data[: len(data) * 2 // 3], data[:200]])
    assert (safe.decision, safe.category) == ("review", None)
    assert "damaged (end missing; read up to" in safe.detail
    assert (lost.status, lost.decision) == ("unreadable", "unknown")
    assert flagged.decision in ("unsafe", "review")
    assert [exit_status([one]) for one in (safe, lost)] == [4, 4]


def test_a_policy_says_which_frames_and_keeps_its_id_where_it_does_not() -> None:
    assert len({policy.id for policy in (POLICY, AT_TWO, replace(AT_TWO, scenes=True))}) == 3
    plain = POLICY.to_dict()
    without = {key: value for key, value in plain.items() if key not in ("frames_per_second", "scenes")}
    assert type(POLICY).from_dict(without).id == type(POLICY).from_dict(plain).id == POLICY.id
    assert panel_policy({"a": AT_TWO, "b": POLICY}, "any").frames_per_second == 2.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 8, "frames_per_second": 0}, "frames_per_second"),
        ({"frames": 8, "frames_per_second": "fast"}, "frames_per_second"),
        ({"frames": 8, "frames_per_second": 1e9}, "frames_per_second"),
        ({"frames": 8, "scenes": "yes"}, "scenes"),
        ({"frames_per_second": 2}, "frames_per_second: 2 with frames: 1 has one frame judged"),
        ({"scenes": True}, "scenes with frames: 1 has one frame judged"),
        ({"frame_per_second": 2}, "frames_per_second"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadPolicyError, match=message):
        type(POLICY).from_dict(POLICY.to_dict() | fields)


def test_zoo_score_judges_a_clip_from_end_to_end(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, broken, path = (tmp_path / name for name in ("clip.mp4", "broken.webm", "policy.yaml"))
    clip.write_bytes(_clip("mp4", None))
    broken.write_bytes(_clip("webm", None)[:60])
    bundle = str(bundles[CLIP])
    plain = yaml.safe_load((bundles[CLIP] / "policy.yaml").read_text(encoding="utf-8")) | {"rule": "each"}

    def score(threshold: float, *more: Path, **reading: object) -> tuple[int, list[Verdict]]:
        limit = {"threshold": {"value": threshold}}
        categories = [one | (limit if one["threshold"] else {}) for one in plain["categories"]]
        path.write_text(yaml.safe_dump(plain | reading | {"categories": categories}), encoding="utf-8")
        status = run(["score", "--model", bundle, "--policy", str(path), str(clip), *map(str, more), "--json"])
        return status, [Verdict.from_dict(json.loads(line)) for line in capsys.readouterr().out.splitlines()]

    assert score(1.0)[0] == 4
    assert score(0.0)[0] == 3
    assert score(0.0, broken)[0] == 4
    status, (whole,) = score(1.0, frames=9, frames_per_second=3)
    assert (status, whole.decision) == (0, "safe")
    assert run(["score", "--model", bundle, "--policy", str(path), str(clip)]) == 0
    assert "frame" not in capsys.readouterr().out
    status, (flagged,) = score(0.0, frames=9, frames_per_second=3)
    assert (status, flagged.place is not None) == (3, True)
    assert run(["score", "--model", bundle, "--policy", str(path), str(clip)]) == 3
    moment = flagged.place and f"frame {flagged.place.frame} at {flagged.place.seconds:.2f} s"
    assert f"{moment}" in " ".join(capsys.readouterr().out.split())
