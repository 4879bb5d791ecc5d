"""The overhead of the runtime is measured on every road and shown; what cannot be measured is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.benchmarks import memory, overhead, pictures, video
from tests.benchmarks.common import answered


@pytest.mark.parametrize(
    "name", ["test_safeclip.random", pytest.param("test_multimodal_nsfw.fusion", marks=pytest.mark.slow)]
)
def test_each_road_is_timed_against_the_session(
    bundles: dict[str, Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    options = ["--batch", "1,3", "--threads", "1", "--rounds", "5"]
    assert overhead.main([str(bundles[name]), *options]) == 0
    shown = capsys.readouterr().out
    rows = [re.split(r" *\| *", line.strip("| ")) for line in shown.splitlines() if re.match(r"\| \d", line)]
    assert [(row[0], row[1]) for row in rows] == [(b, road) for b in "13" for road in ("runtime", "service")]
    for _, _, session, road, _, outside, share in rows:
        assert float(session) > 0
        assert 0 < float(outside) < float(road)
        assert float(share.split("%")[0]) > 0
    assert f"{name}, onnx-fp32, 1 threads, 5 rounds" in shown


def test_figures_that_mean_nothing_are_refused(bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(overhead.main, [str(bundles["test_safeclip.random"]), "--rounds", "4"]) == 1
    assert "need at least 5 rounds" in capsys.readouterr().err
    assert answered(overhead.main, [str(bundles["test_safeclip.random"]), "--engine", "onnx-fp23"]) == 1
    assert "onnx-fp32" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        overhead.main([])
    assert "the following arguments are required: bundle" in capsys.readouterr().err


def test_what_decoding_a_video_takes_is_told(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = pytest.importorskip("tests.inputs.videos")
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(made.video([made.signed(number, None) for number in range(10)]))
    options = ["--clip", str(clip), "--rates", "2,5", "--threads", "1", "--rounds", "1"]
    assert video.main([str(bundles["test_safeclip.random"]), *options]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if re.match(r"\| \d", line)]
    views = 2  # of a frame that is 4:3
    assert [(row[0], int(row[1])) for row in rows] == [("2", 3 * views), ("5", 6 * views)]
    for _, _, whole, outside, share, cpu, beside, _ in rows:
        assert 0 <= float(outside) <= float(whole)
        assert 0 <= float(beside) <= float(cpu)
        assert 0 < float(share.removesuffix("%")) < 100


def test_pictures_are_prepared_by_both_resizers(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.linear_gradient("L").save(tmp_path / "a.jpg")
    words = ["--bundle", str(bundles["test_safeclip.random"]), "--count", "1", "--verdicts", "1", "--rounds", "1"]
    assert pictures.main([str(tmp_path), *words]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| all tiles |") == len(pictures.SHAPES)
    assert "0 of 1 verdicts of mosaics differ" in printed
    assert "3 tiles" in printed
    assert answered(pictures.main, [str(tmp_path / "none")]) == 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a process")
def test_the_memory_of_a_format_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["--size", "2304", "1792", "--only", "PNG, palette"]) == 0
    name, _, peak, _, decoded = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert (name, decoded) == ("PNG, palette", "1152 x 896")
    assert 4 < float(peak) < 60  # the picture that is made, and what it is made of
