"""The table of models from archives has a row for each; nothing is timed here."""

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
