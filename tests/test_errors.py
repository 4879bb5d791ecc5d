"""Errors say whose fault it is, and broken files end in one of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from zoo.contract import schema
from zoo.contract.policy import Policy
from zoo.errors import BadArgumentError, BadDataError, BadInputError, ZooError

REPOSITORY = Path(__file__).resolve().parents[1]
MODULES = [path for package in ("zoo", "export") for path in sorted((REPOSITORY / package).rglob("*.py"))]


def _raised(path: Path) -> set[str]:
    """Names of the classes that a module raises by calling them."""
    calls = (node.exc for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Raise))
    return {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}


def test_every_bad_input_is_bad_data_or_a_bad_argument() -> None:
    raised = {name for path in MODULES for name in _raised(path)}
    assert {"BadDataError", "BadArgumentError"} <= raised, "the search finds raises"
    assert [str(path) for path in MODULES if "BadInputError" in _raised(path)] == []


def test_both_are_bad_input_and_a_value_error() -> None:
    for error in (BadDataError, BadArgumentError):
        assert issubclass(error, BadInputError)
        assert issubclass(error, ZooError)
        assert issubclass(error, ValueError)
    assert not issubclass(BadDataError, BadArgumentError)


@pytest.mark.parametrize("depth", [3_000, 200_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_deep_nesting_is_bad_data_in_yaml_and_json(tmp_path: Path, depth: int, brackets: str) -> None:
    opening = brackets[0] if brackets == "[]" else '{"a":'
    path = tmp_path / "deep.json"
    path.write_text(opening * depth + "1" + brackets[1] * depth, encoding="utf-8")
    with pytest.raises(BadDataError, match=r"deep.json: not readable as JSON"):
        schema.read_json(path)
    if depth < 100_000:  # the YAML reader takes its time to find out
        with pytest.raises(BadDataError, match=r"deep.json: not readable as YAML"):
            Policy.read(path)


def test_a_missing_file_is_a_bad_argument(tmp_path: Path) -> None:
    with pytest.raises(BadArgumentError, match="no such file"):
        schema.read_json(tmp_path / "missing.json")
