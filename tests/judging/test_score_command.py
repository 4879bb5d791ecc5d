"""`zoo score` over many inputs: one file of verdicts, which a run that was cut goes on with."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from zoo.cli import run
from zoo.commands import score as command_module
from zoo.contract.verdict import Verdict
from zoo.judging.scorer import Scorer

COLOURS = ("red", "blue", "green", "white", "black")


@pytest.fixture
def command(bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`zoo score` with a model of images, in a folder with five pictures, a broken one and a text."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 40), colour).save(f"in/{number}.png")
    Path("in/9.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    Path("in/notes.md").touch()
    return ["score", "--model", str(bundles["test_safeclip.random"]), "in"]


def _read(path: str) -> list[Verdict]:
    return [Verdict.from_dict(json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_every_form_of_output_holds_the_same_verdicts(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet

    assert run([*command, "--json"]) == 4
    printed = [Verdict.from_dict(json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    for name in ("v.jsonl", "v.csv", "v.parquet"):
        assert run([*command, "--out", name]) == 4
        said = capsys.readouterr()
        assert said.out == ""
        assert "6 items: " in said.err
        assert "1 unreadable" in said.err
        assert f"1 files are not pictures or videos and were not judged: {Path('in/notes.md')}" in said.err
    assert _read("v.jsonl") == printed
    with open("v.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    table = pyarrow.parquet.read_table("v.parquet").to_pylist()
    for verdict, row, other in zip(printed, rows, table, strict=True):
        assert (row["source"], row["decision"]) == (other["source"], other["decision"])
        assert (row["source"], row["decision"]) == (verdict.source, verdict.decision)
        for name, score in verdict.scores.items():
            assert float(row[f"score of {name}"]) == other[f"score of {name}"] == score
    assert not list(Path().glob("*.part"))


def test_a_run_that_was_cut_goes_on_and_judges_nothing_twice(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--out", "whole.jsonl"]) == 4
    stream = Scorer.stream

    def fails(self: Scorer, images: list[str], texts: list[str | None]) -> Iterator[list[Verdict]]:
        self.batch_size = 2
        yield next(iter(stream(self, images, texts)))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Scorer, "stream", fails)
    assert run([*command, "--out", "v.jsonl"]) == 1
    part = Path("v.jsonl.part")
    assert not Path("v.jsonl").exists()
    assert len(part.read_bytes().splitlines()) == 3
    part.write_bytes(part.read_bytes() + b'{"status": "ok", "deci')  # a kill within a line
    monkeypatch.setattr(Scorer, "stream", stream)
    capsys.readouterr()
    assert run([*command, "--out", "v.jsonl"]) == 4
    assert "2 of 6 items were judged by a run before this one" in capsys.readouterr().err
    assert _read("v.jsonl") == _read("whole.jsonl")
    assert not part.exists()


def test_parts_of_a_folder_hold_all_verdicts_and_a_run_that_was_cut_goes_on(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet

    from zoo.commands import score

    monkeypatch.setattr(score, "PART_ROWS", 4)
    assert run([*command, "--out", "v.parquet"]) == 4
    assert run([*command, "--out-dir", "parts"]) == 4
    assert "6 items: " in (whole := capsys.readouterr().err)
    names = sorted(path.name for path in Path("parts").iterdir())
    assert names == ["part-00000.parquet", "part-00001.parquet", "run.json"]
    parts = [pyarrow.parquet.read_table(Path("parts") / name) for name in names[:2]]
    assert [part.num_rows for part in parts] == [4, 2]
    rows = [row for part in parts for row in part.to_pylist()]
    assert rows == pyarrow.parquet.read_table("v.parquet").to_pylist()
    assert {len(row["weights"]) for row in rows} == {64}
    assert {row["engine"] for row in rows} == {"onnx-fp32 on cpu"}

    Path("parts/part-00001.parquet").unlink()
    first = Path("parts/part-00000.parquet").read_bytes()
    assert run([*command, "--out-dir", "parts"]) == 4
    said = capsys.readouterr().err
    assert "4 of 6 items were judged by a run before this one" in said
    assert said.splitlines()[-2].partition(";")[0] == whole.splitlines()[-2].partition(";")[0]
    assert Path("parts/part-00000.parquet").read_bytes() == first
    assert [row for name in names[:2] for row in pyarrow.parquet.read_table(f"parts/{name}").to_pylist()] == rows
    assert run([*command, "--out-dir", "parts"]) == 4  # nothing is left to judge
    assert "6 of 6 items were judged by a run before this one" in capsys.readouterr().err

    assert run([*command[:-1], "in/0.png", "--out-dir", "parts"]) == 1
    assert "parts/run.json: was left by a run with another number of items" in capsys.readouterr().err
    assert run([*command[:-1], "in/0.png", "--out-dir", "parts", "--overwrite"]) in (0, 3)
    assert sorted(path.name for path in Path("parts").glob("part-*")) == names[:1]
    assert run([*command, "--out-dir", "in"]) == 1
    assert "in: holds 0.png, and no run.json says what it is" in capsys.readouterr().err
    assert run([*command, "--out-dir", "parts", "--json"]) == 1
    assert "give no --out and no --json" in capsys.readouterr().err


@pytest.fixture
def defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny random models in place of those that judge by default."""
    monkeypatch.setattr(command_module, "DEFAULT_MODEL", "test_opennsfw.random")
    monkeypatch.setattr(command_module, "DEFAULT_TEXT_MODEL", "test_sentence_words.random")


@pytest.mark.usefixtures("defaults", "command")
def test_without_a_model_each_kind_of_input_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.csv").write_text(
        "image,text\nin/0.png,a field\n,a dog\nin/1.png,\nin/none.png,a dog\n", encoding="utf-8"
    )
    found = []
    for arguments in (["--text", "a dog"], ["in/0.png"], ["in/0.png", "--text", "a field"], ["rows.csv"]):
        run(["score", *arguments, "--json"])
        found.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    (text,), (image,), (pair,), rows = found
    assert (text["model"], image["model"]) == ("test_sentence_words.random", "test_opennsfw.random")
    assert pair["model"] == "test_opennsfw.random + test_sentence_words.random"
    assert pair["scores"].keys() == image["scores"].keys() | text["scores"].keys()
    assert {name: head["scores"] for name, head in pair["heads"].items()}[image["model"]] == image["scores"]
    assert [row["model"] for row in rows] == [pair["model"], text["model"], image["model"], pair["model"]]
    assert rows[1]["scores"] == text["scores"]
    assert (rows[3]["status"], rows[3]["decision"], rows[3]["scores"]) == ("unreadable", "unknown", {})
    run(["score", "rows.csv", "--out", "rows_out.csv"])
    assert len(Path("rows_out.csv").read_text(encoding="utf-8").splitlines()) == 5
    capsys.readouterr()
    assert run(["score", "in/0.png", "--text", "a field", "--policy", "opennsfw"]) == 1
    assert "a policy is for one model, and without --model pictures are judged by" in capsys.readouterr().err


def test_a_part_of_another_run_is_not_taken_over(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("v.jsonl.part").write_text('{"model": "another"}\n', encoding="utf-8")
    assert run([*command, "--out", "v.jsonl"]) == 1
    assert "is not what a run leaves" in capsys.readouterr().err
    from zoo.release.store import load_scorer

    with load_scorer(command[2]) as scorer:
        assert len(scorer.weights) == 64  # a bundle's, too: a part of the model before it was trained again is refused
    setting = {"model": "another", "weights": "", "policy": "", "number of items": 6, "list of items": ""}
    Path("v.jsonl.part").write_text(json.dumps(setting) + "\n", encoding="utf-8")
    assert run([*command, "--out", "v.jsonl"]) == 1
    assert 'another model ("another", now "test_safeclip.random")' in capsys.readouterr().err


def test_what_cannot_be_written_or_read_is_refused_before_anything_is_judged(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("taken.csv").touch()
    Path("rows.csv").write_text("image,text\nin/0.png,a field\n", encoding="utf-8")
    bare = command[:-1]
    for arguments, error in (
        ([*command, "--out", "v.xlsx"], "v.xlsx: verdicts are written as .jsonl, .csv or .parquet"),
        ([*command, "--out", "taken.csv"], "taken.csv: exists; --overwrite replaces it"),
        ([*command, "--out", "v.csv", "--json"], "give one of them"),
        ([*bare, "rows.csv", "--out", "rows.csv", "--overwrite"], "rows.csv"),
        ([*bare, "rows.csv", "--text", "a prompt"], "the manifest has texts of its own"),
        ([*bare, "in", "--text", "one", "--text", "two"], "6 images and 2 texts"),
        ([*bare, "-", "--text", "-"], "can be read once"),
        (bare, "nothing to judge"),
    ):
        assert run(arguments) == 1
        assert error in capsys.readouterr().err
    assert run([*bare, "rows.csv", "--json"]) in (0, 3)
    said = capsys.readouterr()
    assert "test_safeclip.random reads no text: those of 1 rows are not judged" in said.err
    assert json.loads(said.out)["source"] == "rows.csv line 2"
    stream = io.TextIOWrapper(io.BytesIO(b"in/1.png\nin/missing.png\n"))
    monkeypatch.setattr("sys.stdin", stream)
    assert run([*bare, "-", "--json"]) == 4
    assert [json.loads(line)["source"] for line in capsys.readouterr().out.splitlines()] == [
        "in/1.png",
        "in/missing.png",
    ]
