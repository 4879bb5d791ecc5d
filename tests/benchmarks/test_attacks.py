"""The bench of attacks, the list of them, and what the commands say where something is missing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.benchmarks.attacks import bench, main
from tests.benchmarks.common import answered
from tests.benchmarks.shapes import shapes_model
from zoo import cli
from zoo.adversary.threat import ATTACKS, SOURCES, TEXT_ATTACKS, ImagePart


def test_every_attack_is_listed_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(SOURCES) == (*ATTACKS, *TEXT_ATTACKS)
    assert [source.kind for source in SOURCES.values()] == ["image"] * len(ATTACKS) + ["text"] * len(TEXT_ATTACKS)
    assert cli.run(["attacks", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(SOURCES)
    assert "arXiv 2003.01690" in lines[2]


def test_the_network_for_the_bench_knows_shapes_it_has_not_seen() -> None:
    model, pixels, labels = shapes_model(100, train=700, epochs=8)
    assert pixels.shape == (100, 3, 32, 32)
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
    with torch.no_grad():
        right = float((model(pixels).argmax(dim=1) == labels).double().mean())
    assert right > 0.5
    threats = [ImagePart("Linf", 4 / 255, (name,), steps=20) for name in ("fgsm", "pgd")]
    rows = list(bench(model, pixels, labels, threats, 1, peers=False))
    assert [row.attack for row in rows] == ["fgsm", "pgd"]
    assert all(0 <= row.ours < right and row.theirs is None and row.ratios == () for row in rows)
    assert rows[1].ours <= rows[0].ours + 0.02  # one of them starts at random
    assert all(" - " in row.line for row in rows)


def test_another_implementation_is_measured_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    pixels = torch.rand(40, 3, 4, 4)
    labels = model(pixels).argmax(dim=1)
    asked: list[float] = []

    def idle(model: torch.nn.Module, eps: float) -> object:
        asked.append(eps)
        return lambda images, targets: images

    monkeypatch.setitem(sys.modules, "torchattacks", SimpleNamespace(FGSM=idle))
    (row,) = bench(model, pixels, labels, [ImagePart("Linf", 0.3, ("fgsm",))], 2, peers=True)
    assert asked == [0.3]
    assert row.theirs == 1.0  # it changes nothing
    assert row.ours < 0.5
    assert len(row.ratios) == 2
    assert "1.0000" in row.line
    (alone,) = bench(model, pixels, labels, [ImagePart("L2", 0.3, ("fgsm",))], 1, peers=True)
    assert alone.theirs is None  # they have none in L2


@pytest.mark.skipif(importlib.util.find_spec("torchattacks") is not None, reason="torchattacks is installed")
def test_without_torchattacks_it_says_how_to_install_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(main, ["--peers"]) == 1
    assert "pip install --no-deps --target DIR torchattacks scipy requests tqdm" in capsys.readouterr().err


def test_a_folder_without_the_networks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(main, ["--mnist", str(tmp_path)]) == 1
    assert "needs fgsm.safetensors" in capsys.readouterr().err


def test_the_help_says_what_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "autoattack, is not on" in capsys.readouterr().out


def test_the_bench_runs_for_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    command = "--attacks fgsm,square --norm L2 --images 20 --queries 20 --rounds 1"
    assert main(command.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["fgsm", "L2"], ["square", "L2"]]
