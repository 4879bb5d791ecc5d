"""The threat model as a file: what it reads, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from zoo.adversary.text.edits import TextBudget
from zoo.adversary.threat import AUTOATTACK, ImagePart, TextPart, Threat
from zoo.errors import BadCardError, BadInputError

REPOSITORY = Path(__file__).resolve().parents[2]
THREATS = sorted((REPOSITORY / "configs" / "threat").glob("*.yaml"))
VERSION_1 = REPOSITORY / "tests" / "fixtures" / "v1" / "threat"


def _file(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_a_file_with_a_fraction_is_read_and_written_back(tmp_path: Path) -> None:
    threat = Threat.read(
        _file(tmp_path, "schema_version: 1\nnorm: Linf\neps: 4/255\nattacks: [pgd, square]\nsteps: 50\n")
    )
    assert threat == Threat(ImagePart("Linf", 4 / 255, attacks=("pgd", "square"), steps=50))
    assert Threat.from_dict(threat.to_dict()) == threat
    assert threat.image is not None
    assert threat.image.pgd_step == pytest.approx(2.5 * 4 / 255 / 50)


def test_the_default_is_the_standard_version_of_autoattack() -> None:
    threat = ImagePart("L2", 0.5)
    assert threat.attacks == AUTOATTACK == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert (threat.steps, threat.restarts, threat.targets, threat.queries) == (100, 1, 9, 5000)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("eps: 4", "for grey levels write 4/255"),
        ("eps: 0", "eps must be above 0, got 0"),
        ("eps: four", 'expected a number or a fraction such as "4/255", got "four"'),
        ("eps: 4/0", 'got "4/0"'),
        ("eps: .nan", "finite"),
        ("eps: .1\nepsilon: .1", 'unknown field "epsilon"; did you mean "eps"'),
        ("eps: .1\nattacks: [apgd]", 'no attack is called "apgd"; did you mean'),
        ("eps: .1\nattacks: []", "at least one attack"),
        ("eps: .1\nattacks: [pgd, pgd]", "none twice"),
        ("eps: .1\nsteps: 0", "steps must be at least 1, got 0"),
        ("eps: .1\nsteps: 1.5", 'field "steps"'),
        ("eps: .1\nstep_size: -1/255", "step_size must be above 0"),
        ("eps: .1\nseed: -1", "seed must not be negative"),
        ("steps: 3", 'missing field "eps"'),
    ],
)
def test_a_wrong_field_is_named_with_its_value(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(BadCardError, match=r"mine\.yaml") as caught:
        Threat.read(_file(tmp_path, f"schema_version: 1\nnorm: Linf\n{line}\n"))
    assert complaint in str(caught.value)


def test_an_unknown_norm_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCardError, match="norm"):
        Threat.from_dict({"schema_version": 1, "norm": "L1", "eps": 1.0})
    with pytest.raises(BadInputError, match="no such file"):
        Threat.read(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", THREATS, ids=lambda path: path.stem)
def test_every_shipped_threat_is_read_and_written_back(path: Path) -> None:
    threat = Threat.read(path)
    assert Threat.from_dict(threat.to_dict()) == threat
    assert threat.kind == {"joint": "joint", "text": "text"}.get(path.stem.split("_")[0], "image")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["schema_version"] == 2
    assert Threat.read(VERSION_1 / path.name) == threat


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("norm: L2\neps: 0.5", Threat(ImagePart("L2", 0.5))),
        ("budget: {count: 2}\nqueries: 7", Threat(text=(TextPart(budget=TextBudget(count=2), queries=7),))),
        ("attacks: [homoglyphs, gcg]", Threat(text=(TextPart(("homoglyphs", "gcg")),))),
        (
            "image: {norm: L2, eps: 1, attacks: [pgd]}\ntext: [{attacks: [casing]}]",
            Threat(ImagePart("L2", 1.0, ("pgd",)), (TextPart(("casing",)),)),
        ),
    ],
)
def test_the_fields_tell_the_forms_apart(tmp_path: Path, text: str, wanted: object) -> None:
    assert Threat.read(_file(tmp_path, f"schema_version: 1\n{text}\n")) == wanted


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("attacks: [pgd]\nsteps: 3", "one on texts `attacks` on texts and a `budget`"),
        ("attacks: [pgd]\nnrom: L2", 'unknown field "nrom"; did you mean "norm"'),
        ("seed: 3", "a threat on images has `norm` and `eps`"),
        ("- 3", "got list"),
        (
            "norm: L2\neps: 1\nbudget: {count: 2}",
            "['eps', 'norm'] of a threat on images and ['budget'] of one on texts",
        ),
        ("eps: 1", 'missing field "norm"'),
        ("image: {}\ntext: []\nround: 2", 'did you mean "rounds"'),
    ],
)
def test_what_is_no_threat_is_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    head = "" if text.startswith("-") else "schema_version: 1\n"
    with pytest.raises(BadCardError, match=r"mine\.yaml") as caught:
        Threat.read(_file(tmp_path, f"{head}{text}\n"))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("norm: L2\neps: 0.5", '"norm", "eps" stands outside a part; a threat on images has'),
        ("image: {norm: L2, eps: 0.5}\nbudget: {count: 2}", '"budget" stands outside a part'),
        ("rounds: 2", "the threat changes nothing"),
        ("image: {norm: L2, esp: 0.5}", 'unknown field "image.esp"; did you mean "eps"'),
        ("text: {attacks: [casign]}", 'no attack on texts is called "casign"; did you mean "casing"'),
        ("image: {norm: L2, eps: 1, attacks: [fab-t]}\ntext: {}", 'the joint attack has no attack "fab-t" on images'),
        ("imgae: {}", 'unknown field "imgae"; did you mean "image"'),
    ],
)
def test_a_wrong_part_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(BadCardError, match=r"mine\.yaml") as caught:
        Threat.read(_file(tmp_path, f"schema_version: 2\n{text}\n"))
    assert complaint in str(caught.value)


def test_one_part_on_texts_may_stand_without_a_list(tmp_path: Path) -> None:
    threat = Threat.read(_file(tmp_path, "schema_version: 2\ntext: {attacks: [casing]}\n"))
    assert threat == Threat(text=(TextPart(("casing",)),))
