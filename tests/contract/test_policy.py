"""Policies: every shipped one reads and round-trips; what contradicts itself is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from zoo.assets import assets_root
from zoo.contract.policy import Category, OperatingPoint, Policy, Threshold
from zoo.errors import BadInputError, BadPolicyError

POINT = OperatingPoint("fpr", 0.01, 0.009, "photos, 1,000", 100, 900)
POLICY = Policy(
    name="demo",
    version="2",
    summary="größer als 0",
    categories=(
        Category("gore", "block", Threshold(0.7, "operating_point", "", POINT), ("blood", "a wound")),
        Category("drink", "review", Threshold(0.5), ("beer",)),
        Category("neutral", "allow", None, ("a meadow",)),
    ),
    rule="argmax",
)


def _with(*categories: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return POLICY.to_dict() | ({"categories": list(categories)} if categories else {}) | fields


def _category(**fields: Any) -> dict[str, Any]:
    return {"name": "gore", "action": "block", "threshold": {"value": 0.5}, **fields}


def test_a_policy_survives_yaml(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.to_yaml(), encoding="utf-8")
    assert Policy.read(path) == POLICY
    assert "größer" in POLICY.to_yaml()


SHIPPED = sorted((assets_root() / "configs" / "policy").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_policies_read_and_say_their_name(path: Path) -> None:
    policy = Policy.read(path)
    assert policy.name == path.stem
    assert Policy.from_dict(policy.to_dict()) == policy


def test_the_id_changes_with_any_threshold_and_with_nothing_else() -> None:
    first, *others = POLICY.categories
    moved = dataclasses.replace(first, threshold=Threshold(0.71, "operating_point", "", POINT))
    other: Policy = dataclasses.replace(POLICY, categories=(moved, *others))
    assert POLICY.id.startswith("demo@2#")
    assert other.id != POLICY.id
    assert Policy.from_dict(POLICY.to_dict()).id == POLICY.id


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (_with(_category(treshold={"value": 0.5})), r'"categories.0.treshold"; did you mean "threshold"'),
        (_with(_category(threshold={"value": float("nan")})), "finite"),
        (_with(_category(threshold={"value": 1.5})), r"less than or equal to 1, got 1.5"),
        (_with(_category(threshold={"value": -0.1})), r"greater than or equal to 0, got -0.1"),
        (_with(_category(threshold={"value": True})), "got True"),
        (_with(_category(threshold={"value": "0.5"})), r"got '0\.5'"),
        (_with(_category(threshold={})), 'missing field "categories.0.threshold.value"'),
        (_with(_category(threshold=None)), '"gore" needs a threshold, its action is "block"'),
        (_with(_category(action="review", threshold=None)), "needs a threshold"),
        (_with(_category(action="allow")), '"gore" allows, so it has no threshold'),
        (_with(_category(action="delete")), "got 'delete'"),
        (_with(_category(threshold={"value": 0.5, "chosen": "operating_point"})), "must go together"),
        (_with(_category(threshold={"value": 0.5, "operating_point": dataclasses.asdict(POINT)})), "go together"),
        (_with(_category(descriptors=["a", "a"])), r"repeated descriptors: \['a'\]"),
        (_with(_category(descriptors=["a", " "])), "empty or repeated descriptors"),
        (_with(_category(labels=["a", "a"])), r"repeated labels: \['a'\]"),
        (_with(_category(), _category()), r"more than once: \['gore'\]"),
        (_with({"name": "n", "action": "allow"}), "everything would be called safe"),
        (_with(categories=[]), "everything would be called safe"),
        (_with(schema_version=9), "9 is newer than 2"),
        (_with(rule="most"), "got 'most'"),
        (_with(version=2), '"version".*got 2'),
        (["not", "a", "mapping"], "expected a mapping of fields, got list"),
    ],
)
def test_a_contradictory_or_mistyped_policy_is_refused(data: object, named: str) -> None:
    with pytest.raises(BadPolicyError, match=named):
        Policy.from_dict(data)


def test_files_that_are_no_yaml_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    with pytest.raises(BadInputError, match="no such file"):
        Policy.read(path)
    path.write_text("name: [unclosed")
    with pytest.raises(BadInputError, match="not readable as YAML"):
        Policy.read(path)
    path.write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(BadInputError, match="not readable as YAML"):
        Policy.read(path)
