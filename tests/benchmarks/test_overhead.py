"""The overhead of the runtime is measured on every road and shown; what cannot be measured is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.benchmarks import overhead
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
