"""Every task class fitted and evaluated on so many processes: `python -m tests.training.devices FOLDER DEVICES`.

Lightning starts this very command again for each further process. `test_devices.py` compares what it writes.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

import tests.tiny_models  # noqa: F401 - registers the models
from zoo.assets import find_asset
from zoo.contract.policy import Policy
from zoo.data.questions import write_questions
from zoo.data.signs import write_signs
from zoo.registry import create_model
from zoo.release.store import write_release
from zoo.training import (
    Adversarial,
    Classification,
    Contrastive,
    ManifestData,
    QuestionData,
    RobustTower,
    VisionLanguage,
)
from zoo.training.order import gathered

TASKS = ("Contrastive", "Classification", "Adversarial", "RobustTower", "VisionLanguage")
CLIP, FUSION = "test_safeclip.random", "test_multimodal_nsfw.fusion"
NAMES = {"1": "unsafe", "0": "safe"}
POLICY = {
    "schema_version": 1,
    "name": "fields",
    "version": "1",
    "summary": "red fields are blocked",
    "categories": [
        {"name": "red", "action": "block", "threshold": {"value": 0.5}, "descriptors": ["a red field", "all red"]},
        {"name": "blue", "action": "allow", "descriptors": ["a blue field"]},
    ],
}
THREAT = {"norm": "Linf", "eps": "8/255", "steps": 2}
TEXT = {"share": 0.5, "hotflip_words": 1}
#: Rows of train, val and test: no multiple of 2 processes, of a batch, or of both.
ROWS = {"train": 18, "val": 23, "test": 13}


def prepare(folder: Path, noise: float = 60) -> None:
    """Write a manifest of fields in two colours with captions, questions about pictures, a release and its policy."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "text", "label", "split"])
        for number, split in enumerate(split for split, count in ROWS.items() for _ in range(count)):
            red = number % 2
            pixels = np.full((32, 32, 3), (170, 90, 90) if red else (90, 90, 170)) + rng.normal(0, noise, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"images/{number}.png")
            text = f"a {('blue', 'red')[red]} field, number {number}"
            writer.writerow([f"images/{number}.png", text, red, split])
    write_signs(folder / "signs", train=18, val=3, test=3, size=32)
    write_questions(folder / "signs", folder / "questions.csv")
    (folder / "policy.yaml").write_text(yaml.safe_dump(POLICY), encoding="utf-8")
    torch.manual_seed(0)
    write_release(create_model(CLIP), Policy.from_dict(POLICY), folder / "release")
    signs = Policy.read(find_asset("configs/policy/quickstart.yaml"))
    write_release(create_model(CLIP), signs, folder / "signs_release")


def tasks(folder: Path) -> dict[str, Callable[[], lightning.LightningModule]]:
    """A builder of each task class."""
    policy = str(folder / "policy.yaml")
    language = {"vocabulary_size": 400, "width": 32, "layers": 1, "heads": 2}
    tower: dict[str, Any] = {"init_from": str(folder / "release"), "policy": policy}
    out: dict[str, Any] = {"clip": str(folder / "signs_release"), "language": language, "overwrite": True}
    return {
        "Contrastive": lambda: Contrastive(CLIP, policy=policy, init_from=str(folder / "release")),
        "Classification": lambda: Classification(FUSION, label_names=NAMES, text_dropout=0.3, lr=3e-3),
        "Adversarial": lambda: Adversarial(FUSION, label_names=NAMES, method="pgd", threat=THREAT, text=TEXT, lr=3e-3),
        "RobustTower": lambda: RobustTower(CLIP, label_names={"1": "red", "0": "blue"}, threat=THREAT, **tower),
        "VisionLanguage": lambda: VisionLanguage(str(folder / "llava"), max_new_tokens=8, **out),
    }


class Watch(lightning.Callback):
    """Keeps which rows an epoch took, in all processes, and the gradients of the first step."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.taken += map(str, batch["lines"] if isinstance(batch, dict) else [row.image for row in batch])

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        if not self.gradients:
            named = pl_module.named_parameters()
            self.gradients = {name: one.grad.clone() for name, one in named if one.grad is not None}

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.taken = gathered(self.taken)


def run(folder: Path, devices: int, precision: Any = "32-true") -> None:
    """Fit each task class, and evaluate the checkpoints that one process has made; write what came out."""
    out = folder / f"{devices}_{precision}"
    for name, build in tasks(folder).items():
        source = folder / "questions.csv" if name == "VisionLanguage" else folder / "manifest.csv"

        def data(source: Path = source, batch: int = 8) -> Any:
            if source.stem == "questions":
                return QuestionData(str(source), batch_size=batch, evaluated=3)
            return ManifestData(str(source), batch_size=batch)

        lightning.seed_everything(0, verbose=False)
        module, watch = build(), Watch()
        trainer = _trainer(devices, precision, watch, logger=False)
        trainer.fit(module, data(batch=8 // devices))
        first = folder / f"{name}.ckpt"
        if not first.exists():  # trained until it ranks well: what rounding changes must not matter
            epochs = {"VisionLanguage": 1, "Adversarial": 6}.get(name, 12)
            learnt = _trainer(1, precision, logger=False, max_epochs=epochs)
            learnt.fit(build(), data())
            learnt.save_checkpoint(first)
        logger = CSVLogger(out, name=name, version="v")
        evaluation = _trainer(devices, precision, logger=logger)
        checkpoint: dict[str, Any] = {"ckpt_path": str(first), "weights_only": True}
        figures: dict[str, float] = dict(evaluation.validate(build(), data(), verbose=False, **checkpoint)[0])
        figures |= evaluation.test(build(), data(), verbose=False, **checkpoint)[0]
        if name != "VisionLanguage":
            evaluation.predict(build(), data(), return_predictions=False, **checkpoint)
        if trainer.is_global_zero:
            (out / name).mkdir(parents=True, exist_ok=True)
            (out / name / "figures.json").write_text(json.dumps(figures))
            (out / name / "taken.json").write_text(json.dumps(sorted(watch.taken)))
            torch.save(watch.gradients, out / name / "gradients.pt")


def _trainer(devices: int, precision: Any, *callbacks: lightning.Callback, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        precision=precision,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_epochs": 1} | options,
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    run(Path(sys.argv[1]), int(sys.argv[2]))
