"""The threat model as a file: what it reads, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.adversary.threat import AUTOATTACK, Threat
from zoo.errors import BadCardError, BadInputError


def _file(folder: Path, text: str) -> Path:
    path = folder / "threat.yaml"
    path.write_text(text)
    return path


def test_a_file_with_a_fraction_is_read_and_written_back(tmp_path: Path) -> None:
    threat = Threat.read(
        _file(tmp_path, "schema_version: 1\nnorm: Linf\neps: 4/255\nattacks: [pgd, square]\nsteps: 50\n")
    )
    assert threat == Threat("Linf", 4 / 255, attacks=("pgd", "square"), steps=50)
    assert Threat.from_dict(threat.to_dict()) == threat
    assert threat.pgd_step == pytest.approx(2.5 * 4 / 255 / 50)


def test_the_default_is_the_standard_version_of_autoattack() -> None:
    threat = Threat("L2", 0.5)
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
    with pytest.raises(BadCardError, match=r"threat\.yaml") as caught:
        Threat.read(_file(tmp_path, f"schema_version: 1\nnorm: Linf\n{line}\n"))
    assert complaint in str(caught.value)


def test_an_unknown_norm_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCardError, match="norm"):
        Threat.from_dict({"schema_version": 1, "norm": "L1", "eps": 1.0})
    with pytest.raises(BadInputError, match="no such file"):
        Threat.read(tmp_path / "none.yaml")
