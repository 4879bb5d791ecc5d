"""What the commands take to start, and what each head of a panel costs: both are reported. Nothing is timed here."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests.benchmarks import heads, startup
from tests.benchmarks.common import answered
from zoo.cli import MOVED, run
from zoo.registry import model_card

CLIP = "test_safeclip.random"


def test_startup_table_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(startup, "commands", lambda: {startup.PEER: ["-c", ""], "other": ["-c", "import json"]})
    table = startup.bench_startup(2)
    assert [line.split(" | ")[0].strip("| `") for line in table.splitlines()[2:]] == [startup.PEER, "other"]
    assert startup.main(["--rounds", "1"]) == 0
    assert f"share of `{startup.PEER}`" in capsys.readouterr().out


def test_every_head_of_a_panel_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert heads.main(["test_clip.panel", "--batch", "1,2", "--threads", "1", "--rounds", "5"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    parts = ["part", "image tower", *model_card("test_clip.panel").heads]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == parts * 2
    for line in lines:
        if not line.startswith("| part"):
            assert float(line.split(" | ")[1]) > 0


def test_what_is_no_panel_has_no_heads_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(heads.main, [CLIP]) == 1
    assert "test_safeclip.random is no panel; panels are clip_tiny.panel" in capsys.readouterr().err
    assert answered(heads.main, ["test_clip.panel", "--rounds", "4"]) == 1
    assert "need at least 5 rounds" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "module"), MOVED.items())
def test_the_old_command_lines_name_the_new_ones(
    words: tuple[str, str], module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "anything", "--rounds", "3"]) == 2
    assert f"is now `python -m {module}`" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert end.value.code in (0, None)
    assert f"usage: python -m {module}" in capsys.readouterr().out
