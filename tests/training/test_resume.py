"""A resumed run ends as one that was not cut, and no fit overwrites what another one kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.trainers import quiet_trainer
from tests.training.devices import CLIP, TASKS, THREAT, tasks
from zoo import cli
from zoo.training import Contrastive, ManifestData, QuestionData, RobustTower
from zoo.training.order import EpochOrder


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        found = EpochOrder(40, None, 8, seed, lambda generator: torch.randperm(40, generator=generator).tolist())
        found.set_epoch(epoch)
        return list(found)

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4
    assert sorted(index for index, _ in order(1, 2)) == list(range(40))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With several threads a sum may be taken in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("task", "cut", "precision"),
    [
        *((task, cut, "32-true") for task in TASKS for cut in ("epoch's end", "within an epoch")),
        ("RobustTower", "within an epoch", "bf16-true"),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_cut(
    home: Path, tmp_path: Path, task: str, cut: str, precision: Any
) -> None:
    def fit(resume: Path | None = None, **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        lightning.seed_everything(7 if resume else 0, verbose=False)  # what a run is resumed with must not matter
        if task == "VisionLanguage":
            data: Any = QuestionData(str(home / "questions.csv"), batch_size=4, evaluated=2)
        else:
            data = ManifestData(str(home / "manifest.csv"), batch_size=4, flip=True)
        module = tasks(home)[task]()
        trainer = quiet_trainer(3, num_sanity_val_steps=0, precision=precision, gradient_clip_val=1.0, **options)
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        return {name: value.clone() for name, value in module.state_dict().items()}, figures

    every: dict[str, Any] = {"every_n_train_steps": 6} if cut == "within an epoch" else {"every_n_epochs": 1}
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_on_train_epoch_end=cut == "epoch's end", **every)
    whole, figures = fit(enable_checkpointing=True, callbacks=[keep])
    saved = tmp_path / ("step=6.ckpt" if cut == "within an epoch" else "step=4.ckpt")
    again, others = fit(saved)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert figures == others


@pytest.mark.usefixtures("one_thread")
def test_workers_and_gradients_that_wait_for_others_go_on_where_a_run_was_cut(home: Path, tmp_path: Path) -> None:
    class Save(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
            if trainer.fit_loop.epoch_loop.total_batch_idx == 6:  # the third of four of a step
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

    def fit(resume: Path | None, *callbacks: lightning.Callback) -> dict[str, torch.Tensor]:
        lightning.seed_everything(7 if resume else 0, verbose=False)
        module = tasks(home)["Contrastive"]()
        data = ManifestData(str(home / "manifest.csv"), batch_size=4, flip=True, num_workers=1)
        options: dict[str, Any] = {"accumulate_grad_batches": 4, "limit_val_batches": 0, "callbacks": list(callbacks)}
        quiet_trainer(2, **options).fit(module, data, ckpt_path=resume, weights_only=True)
        return dict(module.state_dict())

    whole, again = fit(None, Save()), fit(tmp_path / "cut.ckpt")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_time_alone_may_end_the_training(home: Path) -> None:
    module = Contrastive("test_safeclip.random", init_from=str(home / "release"))
    trainer = quiet_trainer(-1, max_time={"seconds": 2}, num_sanity_val_steps=0, limit_val_batches=0)
    trainer.fit(module, ManifestData(str(home / "manifest.csv"), batch_size=8))
    assert trainer.global_step > 0
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(module.lr)


def test_an_attack_warms_up_where_time_alone_ends_the_training(home: Path) -> None:
    module = RobustTower(CLIP, init_from=str(home / "release"), threat=THREAT, eps_warmup=0.5)
    trainer = quiet_trainer(-1, max_time={"seconds": 2}, num_sanity_val_steps=0, limit_val_batches=0)
    trainer.fit(module, ManifestData(str(home / "manifest.csv"), batch_size=8))
    assert trainer.global_step > 0
    assert module.steps_of(0.5) == 1  # of the two of an epoch


def test_a_second_fit_keeps_the_checkpoints_of_the_first(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = {"dirpath": "kept", "filename": "best", "enable_version_counter": False}
    recipe = {
        "trainer": {
            "max_epochs": 1,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoint}],
        },
        "model": {"class_path": "zoo.training.Contrastive", "init_args": {"model": "test_safeclip.random"}},
        "data": {
            "class_path": "zoo.training.ManifestData",
            "init_args": {"manifest": str(home / "manifest.csv"), "batch_size": 8},
        },
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = ["fit", "--config", "mine.yaml", "--trainer.accelerator", "cpu"]
    assert cli.run(command) == 0
    first = (tmp_path / "kept/best.ckpt").read_bytes()
    assert cli.run([*command, "--model.init_args.lr", "0.1"]) == 0
    assert (tmp_path / "kept-1/best.ckpt").read_bytes() == first
    assert (tmp_path / "kept/best.ckpt").read_bytes() != first
    assert "were moved to" in caplog.text
    assert cli.run([*command, "--ckpt_path", "kept/best.ckpt", "--trainer.max_epochs", "2"]) == 0
    assert sorted(path.name for path in tmp_path.glob("kept*")) == ["kept", "kept-1"]
    # Going on with another run than the one that the checkpoints are of.
    second = (tmp_path / "kept/best.ckpt").read_bytes()
    assert cli.run([*command, "--ckpt_path", "kept-1/best.ckpt", "--trainer.max_epochs", "2"]) == 0
    assert (tmp_path / "kept-2/best.ckpt").read_bytes() == second
