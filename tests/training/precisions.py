"""Every task class fitted in each precision, as a table of AUROC: `python -m tests.training.precisions [TASK ...]`.

Learning rates are those of fine-tuning where the start is a release. Rounded to bfloat16, most of their steps would be
lost.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning

import tests.tiny_models  # noqa: F401 - registers the models
from tests.trainers import quiet_trainer
from tests.training import devices
from tests.training.devices import CLIP, FUSION, NAMES, TEXT, THREAT
from zoo.release.checkpoint import release_checkpoint
from zoo.training import Adversarial, Classification, Contrastive, ManifestData, RobustTower

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


def variants(folder: Path) -> dict[str, Callable[[], Any]]:
    """A builder of each variant of the task classes that log an AUROC."""
    begun: dict[str, Any] = {"policy": str(folder / "policy.yaml"), "init_from": str(folder / "release")}
    tower: dict[str, Any] = {"label_names": {"1": "red", "0": "blue"}, "threat": THREAT, **begun}
    rows: dict[str, Any] = {"label_names": NAMES, "lr": 3e-3}
    focal: dict[str, Any] = {"focal_gamma": 2.0, "label_smoothing": 0.1, "class_weights": {"unsafe": 1.3}}
    attacked: dict[str, Any] = {"threat": THREAT, **rows}
    return {
        "contrastive": lambda: Contrastive(CLIP, lr=3e-4, **begun),
        "fusion": lambda: Classification(FUSION, **rows),
        "focal": lambda: Classification(FUSION, **focal, **rows),
        "lora": lambda: Classification(FUSION, lora={"r": 4, "alpha": 8}, **rows),
        "text": lambda: Classification(
            "test_prompt_bert.random", label_names={"1": "toxic_chat", "0": "red_team_prompt"}, lr=3e-3
        ),
        "image": lambda: Classification("test_vision_regnet.random", label_names={"1": "dog", "0": "cat"}, lr=3e-3),
        "pgd": lambda: Adversarial(FUSION, method="pgd", text=TEXT, **attacked),
        "trades": lambda: Adversarial(FUSION, method="trades", beta=1.0, **attacked),
        "fare": lambda: RobustTower(CLIP, lr=3e-5, **tower | {"init_from": str(folder / "learnt")}),
        "tecoa": lambda: RobustTower(CLIP, method="tecoa", lr=3e-5, **tower),
    }


def prepare(folder: Path) -> None:
    """Write data that are soon learnt, and beside the release of random weights one that has learnt, for FARE."""
    devices.prepare(folder, noise=15)
    fitted(folder, "contrastive", "32-true").save_checkpoint(folder / "learnt.ckpt")
    release_checkpoint(folder / "learnt.ckpt", folder / "learnt")


def fitted(folder: Path, task: str, precision: Any, epochs: int = 12) -> lightning.Trainer:
    """The trainer of a variant after the fit, on the rows of a folder that `prepare` has written."""
    lightning.seed_everything(0, verbose=False)
    trainer = quiet_trainer(epochs, precision=precision, num_sanity_val_steps=0, check_val_every_n_epoch=epochs)
    trainer.fit(variants(folder)[task](), ManifestData(str(folder / "manifest.csv"), batch_size=6))
    return trainer


def area(folder: Path, task: str, precision: Any) -> float:
    """The AUROC of the validation after the fit of a variant."""
    return float(fitted(folder, task, precision).callback_metrics["val/auroc"])


def main(tasks: list[str]) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as home:
        prepare(folder := Path(home) / "work")
        print("| task |", " | ".join(PRECISIONS), "|\n| --- | --- | --- | --- |")
        for task in tasks or variants(folder):
            areas = [f"{area(folder, task, precision):.3f}" for precision in PRECISIONS]
            print(f"| {task} |", " | ".join(areas), "|", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    main(sys.argv[1:])
