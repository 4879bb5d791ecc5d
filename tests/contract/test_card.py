"""Cards: round trips, and a refusal that names the field for everything that a card must not say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from zoo.contract.card import ImageInput, Measurement, ModelCard, TextInput, Training
from zoo.errors import BadCardError, BadInputError

CARD = ModelCard(
    name="guard_b32.demo",
    task="classification",
    summary="für Tests",
    score="softmax",
    score_meaning="probability",
    image=ImageInput(224, "shortest_edge_crop", "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    text=TextInput(77),
    labels=("unsafe", "safe"),
    requires=("image",),
    licence="MIT",
    source="here",
    hparams={"width": 8, "hidden": [4, 2], "rate": 0.5},
    limits=("a", "b"),
    training=Training("recipes/a.yaml", "signs", 3, 100, 7, "0.1.0"),
    measurements=(Measurement("auroc", 0.9, "photos", 100, "zoo evaluate", "PGD Linf 4/255"),),
    files={"model.safetensors": "00ff"},
)


def _changed(path: str, value: object) -> dict[str, Any]:
    """The card as plain data with one field, `image.size` say, set to a value; `...` deletes it."""
    data = CARD.to_dict()
    *parents, last = path.split(".")
    node: Any = data
    for parent in parents:
        node = node[int(parent) if parent.isdigit() else parent]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return data


def test_a_card_survives_json(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text(json.dumps(CARD.to_dict()), encoding="utf-8")
    assert ModelCard.read(path) == CARD
    CARD.write_json(tmp_path / "new" / "card.json")
    assert ModelCard.read(tmp_path / "new" / "card.json") == CARD
    assert (CARD.architecture, CARD.tag) == ("guard_b32", "demo")


def test_input_names_follow_what_is_required() -> None:
    assert CARD.input_names == ("image", "input_ids", "attention_mask")
    assert CARD.replace(requires=()).input_names[-1] == "image_present"
    zero_shot = CARD.replace(task="zero_shot", labels=())
    assert not zero_shot.reads_text
    assert zero_shot.input_names == ("image",)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("licens", "MIT", r'unknown field "licens"; did you mean "licence"'),
        ("image.sice", 3, r'unknown field "image.sice"; did you mean "size"'),
        ("measurements.0.thread", "", r'"measurements.0.thread"; did you mean "threat"'),
        ("summary", ..., 'missing field "summary"'),
        ("image.mean", ..., 'missing field "image.mean"'),
        ("schema_version", ..., 'missing field "schema_version"'),
        ("schema_version", 3, "3 is newer than 2.*pip install --upgrade"),
        ("schema_version", "1", "schema_version '1', expected 2"),
        ("image.size", "big", "\"image.size\".*got 'big'"),
        ("image.size", "224", "\"image.size\".*got '224'"),
        ("image.size", True, '"image.size".*got True'),
        ("image.size", 0, "greater than 0, got 0"),
        ("image.std", [0.1, 0.0, 0.1], "greater than 0, got 0.0"),
        ("image.mean", [0.1, 0.2], '"image.mean'),
        ("image.resize", "crop", "\"image.resize\".*got 'crop'"),
        ("measurements.0.value", float("nan"), '"measurements.0.value".*finite'),
        ("measurements.0.value", float("inf"), '"measurements.0.value".*finite'),
        ("text.context_length", 2, "greater than or equal to 3, got 2"),
        ("labels", "unsafe", "\"labels\".*got 'unsafe'"),
        ("labels", [], "must list its labels"),
        ("task", "zero_shot", "zero_shot card has no labels"),
        ("image", None, r"requires \['image'\], but describes no such input"),
        ("name", "guard", 'must be "architecture.tag", got "guard"'),
        ("name", "a.b.c", 'got "a.b.c"'),
    ],
)
def test_a_wrong_field_is_refused_by_name(path: str, value: object, named: str) -> None:
    with pytest.raises(BadCardError, match=named) as refusal:
        ModelCard.from_dict(_changed(path, value), "some/card.json")
    assert str(refusal.value).startswith("some/card.json: ")


def test_all_wrong_fields_are_named_at_once() -> None:
    data = _changed("summary", ...) | {"colour": "red"}
    with pytest.raises(BadCardError, match=r'missing field "summary".*unknown field "colour"|"colour".*"summary"'):
        ModelCard.from_dict(data)


@pytest.mark.parametrize("content", ["[1, 2]", "{", "\udcff"])
def test_a_file_that_is_no_card_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "card.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises((BadCardError, BadInputError), match=r"card\.json"):
        ModelCard.read(path)
    with pytest.raises(BadInputError, match="no such file"):
        ModelCard.read(tmp_path / "other.json")


def test_replace_checks_and_leaves_the_original() -> None:
    assert CARD.replace(summary="new").summary == "new"
    assert CARD.summary == "für Tests"
    with pytest.raises(ValueError, match=r"architecture\.tag"):
        CARD.replace(name="nodot")
    with pytest.raises(dataclasses.FrozenInstanceError):
        CARD.name = "a.b"  # type: ignore[misc]


def test_a_figure_replaces_that_of_the_same_metric_data_and_threat() -> None:
    (old,) = CARD.measurements
    others = [dataclasses.replace(old, metric="tpr"), dataclasses.replace(old, data="signs")]
    others.append(dataclasses.replace(old, threat="PGD Linf 8/255"))
    again = dataclasses.replace(old, value=0.5, count=7, command="zoo evaluate --again")
    assert CARD.measured(others).measurements == (old, *others)
    assert CARD.measured(others).measured([again]).measurements == (*others, again)
