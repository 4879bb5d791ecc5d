"""One reader for the three forms of a threat: every shipped file, what tells the forms apart, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.adversary.joint.threat import JointThreat
from zoo.adversary.read import read_threat
from zoo.adversary.text.budget import TextBudget
from zoo.adversary.text.threat import TextThreat
from zoo.adversary.threat import Threat
from zoo.errors import BadCardError, BadInputError

THREATS = sorted((Path(__file__).resolve().parents[2] / "configs" / "threat").glob("*.yaml"))


def _file(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", THREATS, ids=lambda path: path.stem)
def test_every_shipped_threat_is_read_and_written_back(path: Path) -> None:
    threat = read_threat(path)
    assert type(threat).from_dict(threat.to_dict()) == threat
    kind = {"joint": JointThreat, "text": TextThreat}.get(path.stem.split("_")[0], Threat)
    assert isinstance(threat, kind)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("norm: L2\neps: 0.5", Threat("L2", 0.5)),
        ("budget: {count: 2}\nqueries: 7", TextThreat(budget=TextBudget(count=2), queries=7)),
        ("attacks: [homoglyphs, gcg]", TextThreat(("homoglyphs", "gcg"))),
        (
            "image: {norm: L2, eps: 1, attacks: [pgd]}\ntext: [{attacks: [casing]}]",
            JointThreat(Threat("L2", 1.0, ("pgd",)), (TextThreat(("casing",)),)),
        ),
    ],
)
def test_the_fields_tell_the_forms_apart(tmp_path: Path, text: str, wanted: object) -> None:
    assert read_threat(_file(tmp_path, f"schema_version: 1\n{text}\n")) == wanted


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("attacks: [pgd]\nsteps: 3", "one on texts `attacks` on texts and a `budget`"),
        ("attacks: [pgd]\nnrom: L2", 'unknown field "nrom"; did you mean "norm"'),
        ("seed: 3", "a threat on images has `norm` and `eps`"),
        ("- 3", "got list"),
        ("norm: L2\neps: 1\nbudget: {count: 2}", "['eps', 'norm'] of a threat and ['budget'] of a text threat"),
        ("eps: 1", 'missing field "norm"'),
        ("image: {}\ntext: []\nround: 2", 'did you mean "rounds"'),
    ],
)
def test_what_is_no_threat_is_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    head = "" if text.startswith("-") else "schema_version: 1\n"
    with pytest.raises(BadCardError, match=r"mine\.yaml") as caught:
        read_threat(_file(tmp_path, f"{head}{text}\n"))
    assert complaint in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        read_threat(tmp_path / "none.yaml")
