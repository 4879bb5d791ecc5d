"""The tables of models from archives have a row for each; nothing is judged by its time here."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from tests.benchmarks import archived
from tests.benchmarks.common import answered


def test_each_bundle_has_a_row(bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "captions.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["image", "caption", "split"])
        for number in range(2):
            Image.new("RGB", (200, 160), (80 * number, 90, 60)).save(tmp_path / f"{number}.png")
            rows.writerow([f"{number}.png", "a colour", "dev"])
    given = [str(tmp_path / "captions.csv"), str(bundles["test_nsfwjs.random"])]
    assert archived.main([*given, "--rounds", "1"]) == 0
    name, flagged, network, whole = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert name == "test_nsfwjs.random, onnx-fp32"
    assert flagged in {f"{count} of 2" for count in range(3)}
    assert 0 < float(network) <= float(whole.split()[0])
    assert answered(archived.main, [*given, "--split", "test"]) == 1
    assert "no photo is of the split test" in capsys.readouterr().err


def test_models_of_texts_are_timed_beside_full_length(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.csv").write_text("text,kind\na dog,x\ntwo cats,y\n", encoding="utf-8")
    given = [str(tmp_path / "texts.csv"), str(bundles["test_sentence_bert.random"]), "--rounds", "1", "--texts"]
    assert archived.main([*given, "text"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[-2:]] == ["network on 24 tokens", "test_sentence_bert.random, onnx-fp32"]
    assert rows[-2][2] == "1.00 (1.00 to 1.00)"
    assert answered(archived.main, [*given, "prompt"]) == 1
    assert "no row has a text in the column prompt" in capsys.readouterr().err
