"""What the commands take to start, and what each head of a panel costs: both are reported. Nothing is timed here."""

from __future__ import annotations

import pytest

from export.bench import startup
from zoo.cli import run
from zoo.registry import model_card

CLIP = "test_safeclip.random"


def test_startup_table_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(startup, "COMMANDS", {startup.PEER: ["-c", ""], "other": ["-c", "import json"]})
    table = startup.bench_startup(2)
    assert [line.split(" | ")[0].strip("| `") for line in table.splitlines()[2:]] == [startup.PEER, "other"]
    assert run(["bench"]) == 1
    assert "--startup" in capsys.readouterr().err


def test_every_head_of_a_panel_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--heads", "test_clip.panel", "--batch", "1,2", "--threads", "1", "--rounds", "5"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    parts = ["part", "image tower", *model_card("test_clip.panel").heads]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == parts * 2
    for line in lines:
        if not line.startswith("| part"):
            assert float(line.split(" | ")[1]) > 0


def test_what_is_no_panel_has_no_heads_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--heads", CLIP]) == 1
    assert "test_safeclip.random is no panel; panels are clip_tiny.panel" in capsys.readouterr().err
    assert run(["bench", "--heads", "test_clip.panel", "--rounds", "4"]) == 1
    assert "need at least 5 rounds" in capsys.readouterr().err
