"""Two processes do what one does, and so does half precision, nearly."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.training.devices import ROWS, TASKS, run
from zoo.errors import BadInputError
from zoo.training.order import EpochOrder

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(home: Path) -> Path:
    """What every task class does on one process and on two."""
    run(home, 1)
    child = [sys.executable, "-m", "tests.training.devices", str(home), "2"]
    subprocess.run(child, cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
    return home


def _json(folder: Path, run: str, task: str, name: str = "figures") -> Any:
    return json.loads((folder / run / task / f"{name}.json").read_text())


@pytest.mark.parametrize("task", TASKS)
def test_figures_of_one_checkpoint_are_those_of_one_process(folder: Path, task: str) -> None:
    one, two = (_json(folder, run, task) for run in ("1_32-true", "2_32-true"))
    assert one == pytest.approx(two, abs=1e-6)
    assert len(one) >= 2


@pytest.mark.parametrize("task", TASKS[:-1])
def test_each_row_is_predicted_once_in_order(folder: Path, task: str) -> None:
    one, two = (folder / run / task / "v" / "predictions.jsonl" for run in ("1_32-true", "2_32-true"))
    rows, others = ([json.loads(line) for line in path.read_text().splitlines()] for path in (one, two))
    first = 2 + ROWS["train"] + ROWS["val"]
    assert [row["source"] for row in others] == [f"line {line}" for line in range(first, first + ROWS["test"])]
    for row, other in zip(rows, others, strict=True):
        assert row | {"scores": None} == other | {"scores": None}
        assert row["scores"] == pytest.approx(other["scores"], abs=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_an_epoch_takes_the_same_rows_once(folder: Path, task: str) -> None:
    one, two = (_json(folder, run, task, "taken") for run in ("1_32-true", "2_32-true"))
    assert one == two
    assert len(set(one)) == len(one) == 16


def test_the_gradients_of_a_step_are_those_of_one_process_negatives_included(folder: Path) -> None:
    one, two = (torch.load(folder / run / "Contrastive/gradients.pt") for run in ("1_32-true", "2_32-true"))
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-5, rtol=0)
    assert max(float(gradient.abs().max()) for gradient in one.values()) > 0.01


@pytest.mark.parametrize("precision", [pytest.param("bf16-mixed", marks=pytest.mark.slow), "bf16-true"])
def test_half_precision_runs_everywhere_with_nearly_the_same_ranking(folder: Path, precision: str) -> None:
    run(folder, 1, precision)
    for task in TASKS:
        one, half = _json(folder, "1_32-true", task), _json(folder, f"1_{precision}", task)
        assert one.keys() == half.keys()
        for name in one:
            if name.endswith("/auroc"):
                assert half[name] == pytest.approx(one[name], abs=0.02), (task, name)


@pytest.mark.parametrize("script", ["zoo", pytest.param("lightning", marks=pytest.mark.slow)])
def test_the_commands_train_on_two_processes_with_models_of_ones_own(home: Path, tmp_path: Path, script: str) -> None:
    recipe: dict[str, Any] = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 2,
            "max_epochs": 1,
            "default_root_dir": str(tmp_path / "logs"),
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": str(tmp_path / "kept"), "monitor": "val/auroc", "mode": "max"},
                }
            ],
        },
        "model": {"class_path": "zoo.training.Contrastive", "init_args": {"model": "test_safeclip.random"}},
        "data": {
            "class_path": "zoo.training.ManifestData",
            "init_args": {"manifest": str(home / "manifest.csv"), "batch_size": 4},
        },
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = [
        str(Path(sys.executable).parent / script),
        "fit",
        "--config",
        "mine.yaml",
        "--import",
        "tests.tiny_models",
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MEMBER: 2/2" in done.stdout + done.stderr
    assert len(list((tmp_path / "kept").glob("*.ckpt"))) == 1
    (metrics,) = (tmp_path / "logs").rglob("metrics.csv")
    with metrics.open() as stream:
        assert any(row.get("val/auroc") for row in csv.DictReader(stream))


def test_fewer_rows_than_devices_are_refused() -> None:
    trainer: Any = type("Two", (), {"world_size": 2, "global_rank": 1})()
    with pytest.raises(BadInputError, match="1 rows for 2 devices"):
        EpochOrder(1, trainer, 4)
    assert [index for index, _ in EpochOrder(5, trainer, 4)] == [1, 3]
    with pytest.raises(BadInputError, match="7 training items do not fill a batch of 4 on each of 2 devices"):
        EpochOrder(7, trainer, 4, draw=lambda generator: range(7))
