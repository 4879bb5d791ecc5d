"""What commit c937690 wrote (schema version 1) is read today: releases, bundles, policies, with the same decisions."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.assets import assets_root
from zoo.contract.card import Measurement, ModelCard
from zoo.contract.policy import Policy, read_policy
from zoo.contract.verdict import Unseen, Verdict
from zoo.errors import BadCardError, BadPolicyError
from zoo.inputs.image import Pixels, resizer
from zoo.judging.judge import bind
from zoo.release.store import load_scorer

V1 = Path(__file__).parents[1] / "fixtures" / "v1"
DECISIONS: dict[str, list[dict[str, Any]]] = json.loads((V1 / "decisions.json").read_text(encoding="utf-8"))
POLICY_IDS: dict[str, str] = json.loads((V1 / "policy_ids.json").read_text(encoding="utf-8"))
OPERATING_POINT = {"metric": "fpr", "target": 0.01, "measured": 0.008, "data": "a", "positives": 9, "negatives": 990}


def _picture(number: int) -> Pixels:
    """A pattern of its own for each number, the same on every machine: `[40 + 8 * number, 64, 3]` uint8."""
    steps = np.arange((40 + 8 * number) * 64 * 3)
    return (steps // (1 + 29 * number) * (7 + 3 * number) % 256).astype(np.uint8).reshape(-1, 64, 3)


@pytest.mark.parametrize("name", ["zeroshot", "classifier", "zeroshot_bundle", "classifier_bundle"])
def test_the_decisions_are_those_of_then(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(V1 / "bundles.zip") as bundles:
        bundles.extractall(tmp_path)
    folder = V1 / name if (V1 / name).is_dir() else tmp_path / name
    scorer = load_scorer(folder)
    scorer.judge = bind(scorer.card, replace(scorer.judge.policy, unseen="allow"))  # whatever is outside the crop
    verdicts = scorer.verdicts([_picture(number) for number in range(8)])
    then = [Verdict.from_dict(plain) for plain in DECISIONS[name]]
    assert len({verdict.decision for verdict in then}) > 1, "the fixture tells decisions apart"
    for verdict, old in zip(verdicts, then, strict=True):
        assert (verdict.status, verdict.decision, verdict.category) == (old.status, old.decision, old.category)
        assert (load_scorer(folder).judge.policy_id, verdict.model) == (old.policy, old.model)
        # The extra "fast" may differ from Pillow by one grey level.
        assert verdict.scores == pytest.approx(old.scores, abs=1e-5 if resizer().startswith("pillow") else 1e-3)


@pytest.mark.parametrize("name", sorted(POLICY_IDS))
def test_unchanged_policies_keep_their_id(name: str) -> None:
    shipped = assets_root() / "configs" / "policy" / name
    policy = read_policy(shipped if shipped.exists() else V1 / name)
    assert policy.id == POLICY_IDS[name]
    again = type(policy).from_dict(policy.to_dict())
    assert again.schema_version == 2
    assert (again, again.id) == (policy, policy.id)


def test_a_card_keeps_its_measurements_and_is_written_as_version_2() -> None:
    card = ModelCard.read(V1 / "classifier" / "card.json")
    assert [one.value for one in card.measurements] == [0.91, 0.4]
    assert card.measurements[1].threat == "Linf 4/255"
    assert card.to_dict()["schema_version"] == 2
    assert ModelCard.from_dict(card.to_dict()) == card


def _policy(**point: Any) -> dict[str, Any]:
    threshold = {"value": 0.5, "chosen": "operating_point", "operating_point": OPERATING_POINT | point}
    category = {"name": "gore", "action": "block", "threshold": threshold}
    return {"schema_version": 2, "name": "p", "version": "1", "summary": "s", "categories": [category]}


def test_what_version_2_records_is_read_back_and_changes_the_id() -> None:
    plain = Policy.from_dict(_policy())
    recorded = Policy.from_dict(_policy(bounds=[0.0, 0.01], confidence=0.95, data_sha256="ab", split="val"))
    assert Policy.from_dict(recorded.to_dict()) == recorded
    assert recorded.id != plain.id
    assert Policy.from_dict(_policy() | {"schema_version": 1}).id == plain.id


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_policy() | {"unseen": {"borders": 0.1}}, "borders"),
        (_policy() | {"unseen": {"border": 1.1}}, "less than or equal to 1"),
        (_policy(weights_sha256="ab"), 'does not check "weights_sha256"'),
        (_policy(views="tile"), "got 'tile'"),
        (_policy(bounds=[0.0, 0.01]), "bounds and confidence go together"),
        (_policy(bounds=[0.0, 0.001], confidence=0.95), "bounds must hold the value 0.008"),
        (_policy(bounds=[0.0, 0.01], confidence=1.5), r"confidence lies in \(0, 1\)"),
    ],
)
def test_a_policy_that_asks_for_what_is_not_enforced_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(BadPolicyError, match=message):
        Policy.from_dict(data)


def test_a_verdict_carries_what_was_unseen() -> None:
    verdict = Verdict("ok", "review", "gore", {"gore": 0.2}, "p", "m.t", unseen={"frames": Unseen(5, 6)})
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
    assert Verdict("ok", "safe", None, {}, "p", "m.t").unseen is None
    with pytest.raises(BadCardError, match="above 0 and at most the total"):
        Verdict.from_dict(verdict.to_dict() | {"unseen": {"frames": {"amount": 7, "total": 6}}})


def test_a_measurement_carries_its_interval() -> None:
    Measurement("auroc", 0.9, "rows", 10, "zoo evaluate", bounds=(0.8, 0.95), confidence=0.95, split="test")
    with pytest.raises(ValueError, match="bounds must hold the value"):
        Measurement("auroc", 0.9, "rows", 10, "zoo evaluate", bounds=(0.91, 0.95), confidence=0.95)
