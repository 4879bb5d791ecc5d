"""The benchmark runs, reports each side and ratio, and refuses what it cannot compare. Nothing is timed here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.bench import startup
from export.bench.peers import bench
from zoo.cli import run
from zoo.errors import BadInputError
from zoo.registry import model_card

CLIP = "test_safeclip.random"


def test_a_run_gives_rows_and_ratios_and_writes_them(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    arguments = ["--batch", "1,2", "--threads", "1", "--rounds", "5", "--image", "80x60", "--out", str(out)]
    assert run(["bench", str(bundles[CLIP]), *arguments]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    rows = [(row["engine"], row["batch"]) for row in written["rows"]]
    assert rows == [("bundle", 1), ("transformers", 1), ("bundle", 2), ("transformers", 2)]
    for row in written["rows"]:
        assert 0 < row["fastest"] <= row["p50"] <= row["p90"] <= row["p99"]
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["p50"])
    for ratio, ours, theirs in zip(written["ratios"], written["rows"][::2], written["rows"][1::2], strict=True):
        assert ratio["median"] == pytest.approx(theirs["p50"] / ours["p50"])
        assert 0 < ratio["low"] <= ratio["high"]
    assert written["setting"]["task"] == "JPEG bytes of 80x60 to verdict"
    assert written["setting"]["model"] == f"{CLIP}, fp32"
    shown = capsys.readouterr().out
    assert "| bundle | 1 |" in shown
    assert "| 2 | " in shown


@pytest.mark.parametrize("name", ["test_nsfwjs.random", "test_multimodal_nsfw.fusion"])
def test_a_bundle_of_another_kind_is_refused(bundles: dict[str, Path], name: str) -> None:
    with pytest.raises(BadInputError, match=f"is a {name}: the peer is a CLIP"):
        bench(bundles[name], [1], 1, 5, (80, 60))


@pytest.mark.parametrize(("batches", "threads", "rounds"), [([0], 1, 5), ([1], 0, 5), ([1], 1, 4)])
def test_figures_that_mean_nothing_are_refused(
    bundles: dict[str, Path], batches: list[int], threads: int, rounds: int
) -> None:
    with pytest.raises(BadInputError, match="need at least 5 rounds, 1 thread and batches of 1"):
        bench(bundles[CLIP], batches, threads, rounds, (80, 60))


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
