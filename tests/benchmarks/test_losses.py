"""Kills, full disks and broken inputs in small numbers; tests/benchmarks/README.md has the large ones."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.benchmarks import losses
from tests.benchmarks.mutations import mutate

REPOSITORY = Path(__file__).resolve().parents[2]


def test_each_command_is_tried_or_known_to_write_nothing() -> None:
    assert losses.unknown() == set(), "add a case to tests/benchmarks/losses.py, or the name to READERS"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks and limits of Linux")
def test_nothing_is_lost_by_kills_and_full_disks() -> None:
    """In a process of its own: a fork of this one would inherit the threads of other tests."""
    commands = ("recipes copy", "data questions", "release", "evaluate", "bundle sign")
    only = [word for name in commands for word in ("--only", name)]
    words = [sys.executable, "-m", "tests.benchmarks.losses", "--kills", "10", "--full-disks", *only]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| nothing |") == len(commands)
    assert "| 0 of 0 |" not in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks and limits of Linux")
@pytest.mark.parametrize("command", ["export tensorrt", "evaluate guard"])
def test_nothing_is_lost_of_the_commands_that_take_long(command: str) -> None:
    if command == "export tensorrt" and find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed (extra tensorrt-rtx)")
    words = [sys.executable, "-m", "tests.benchmarks.losses", "--kills", "2", "--only", command]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| nothing |") == 1


def test_damage_is_seen(tmp_path: Path) -> None:
    """The search for losses finds them."""
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "report.json").write_text("{}")
    before = losses.contents(tmp_path)
    assert losses.damage(tmp_path, before) == []
    (tmp_path / "thesis.txt").write_text("")
    (tmp_path / "report.json").write_text('{"auroc": 0.')
    (tmp_path / "card.json").write_text('{"files": {"model.safetensors": "00"}}')
    found = "; ".join(losses.damage(tmp_path, before | {"gone.csv": b""}))
    for word in (
        "gone.csv is gone",
        "report.json: JSONDecodeError",
        "model.safetensors: missing",
        "thesis.txt was changed",
    ):
        assert word in found


def test_broken_inputs_are_refused_or_read(traced_once: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert mutate(100, seed=1) == 0, capsys.readouterr().out
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 11
    assert all(row.endswith("| none |") for row in rows)
