"""Two processes do what one does; half precision runs everywhere; a resumed run ends as one that was not cut."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from tests.trainers import quiet_trainer
from tests.training import precisions
from tests.training.devices import CLIP, FUSION, NAMES, ROWS, THREAT, prepare, run, tasks
from zoo import cli
from zoo.errors import BadInputError
from zoo.training import Classification, Contrastive, ManifestData, QuestionData, RobustTower
from zoo.training.order import EpochOrder

TASKS = ("Contrastive", "Classification", "Adversarial", "RobustTower", "VisionLanguage")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest, questions, releases and a policy."""
    home = tmp_path_factory.mktemp("devices") / "work"
    prepare(home)
    return home


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


@pytest.mark.slow
def test_a_fit_in_half_precision_ranks_as_one_in_float32(tmp_path: Path) -> None:
    precisions.prepare(tmp_path / "work")
    for task in precisions.variants(tmp_path / "work"):
        whole, *halves = [precisions.area(tmp_path / "work", task, one) for one in precisions.PRECISIONS]
        assert halves == pytest.approx([whole] * 2, abs=0.02), task


@pytest.mark.parametrize("task", TASKS)
def test_no_step_is_too_small_for_half_precision(home: Path, task: str) -> None:
    """Steps of 1e-5 are below half of the last digit of most weights in bfloat16."""

    def flat(weights: Iterable[torch.Tensor]) -> torch.Tensor:
        return torch.cat([one.detach().flatten().clone() for one in weights])

    def moves(precision: Any) -> torch.Tensor:
        stepped: list[torch.Tensor] = []

        class Watch(lightning.Callback):
            def keep(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
                stepped.append(flat(one for group in trainer.optimizers[0].param_groups for one in group["params"]))
                used = flat(one for one in pl_module.parameters() if one.requires_grad)
                assert torch.equal(stepped[-1].to(used.dtype).sort().values, used.sort().values)

            on_train_start = on_train_end = keep

        lightning.seed_everything(0, verbose=False)
        module = tasks(home)[task]()
        module.lr = 1e-5  # type: ignore[assignment]
        kind: Any = QuestionData if task == "VisionLanguage" else ManifestData
        data = kind(str(home / f"{'questions' if kind is QuestionData else 'manifest'}.csv"), batch_size=4)
        trainer = quiet_trainer(1, precision=precision, limit_train_batches=4, limit_val_batches=0, callbacks=[Watch()])
        trainer.fit(module, data)
        return stepped[1] - stepped[0]

    whole, half = moves("32-true"), moves("bf16-true")
    share = float(whole @ half / (whole @ whole))
    assert 0.5 < share < 1.5


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_validation_judges_by_averaged_weights_and_changes_no_bit_of_them(
    home: Path, tmp_path: Path, precision: Any
) -> None:
    saved: list[dict[str, torch.Tensor]] = []
    for validated in (0.0, 1.0):
        lightning.seed_everything(0, verbose=False)
        module, data = tasks(home)["Contrastive"](), ManifestData(str(home / "manifest.csv"), batch_size=4)
        module.lr = 3e-2  # type: ignore[assignment]
        options = {"limit_val_batches": validated, "num_sanity_val_steps": 0, "precision": precision}
        trainer = quiet_trainer(3, callbacks=[EMAWeightAveraging(decay=0.95)], **options)
        trainer.fit(module, data)
        trainer.save_checkpoint(tmp_path / "average.ckpt")
        saved.append(torch.load(tmp_path / "average.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())
    again = quiet_trainer(precision=precision).validate(module, data, tmp_path / "average.ckpt", verbose=False)
    figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name in again[0]}
    assert again[0] == pytest.approx(figures, abs=1e-6)
    assert "val/auroc" in figures


def test_the_loss_counts_every_row_in_half_precision() -> None:
    """A mean that is summed up in bfloat16 stays at 256 rows."""
    means, parts = [], 600
    for precision in (torch.float32, torch.bfloat16):
        module = Classification(FUSION, label_names=NAMES)
        for number in range(parts):
            module.to(precision).mean_loss.update(torch.tensor(1.0 if number < parts / 2 else 3.0))
        means.append(module.mean_loss.finish())
        assert module.mean_loss.finish() is None
    assert means == [2, 2]


@pytest.mark.parametrize(
    "model",
    [
        "test_clip_resnet.random",
        pytest.param("test_clip_mobilenet_v1.random", marks=pytest.mark.slow),
        "test_nsfwjs.random",
    ],
)
def test_convolutions_run_in_half_precision_with_nearly_the_same_ranking(tmp_path: Path, model: str) -> None:
    prepare(tmp_path, noise=10)  # easily learnt: what rounding changes must not matter

    def build() -> Any:
        if model == "test_nsfwjs.random":
            return Classification(model, label_names={"1": "porn", "0": "neutral"}, lr=1e-2)
        locked = 2 if "mobilenet" in model else 0
        return Contrastive(model, policy=str(tmp_path / "policy.yaml"), locked_views=locked, lr=1e-2)

    lightning.seed_everything(0, verbose=False)
    module, data = build(), ManifestData(str(tmp_path / "manifest.csv"), batch_size=8)
    trainer = quiet_trainer(24, num_sanity_val_steps=0)
    trainer.fit(module, data)
    area = float(trainer.callback_metrics["val/auroc"])
    for precision in ("bf16-true", "bf16-mixed"):
        quiet_trainer(1, precision=precision, num_sanity_val_steps=0).fit(build(), data)
        half = build()
        half.load_state_dict(module.state_dict())
        half.model.tokenizer_json, half._codec = module.model.tokenizer_json, module._codec
        (figures,) = quiet_trainer(1, precision=precision).validate(half, data, verbose=False)
        assert figures["val/auroc"] == pytest.approx(area, abs=0.02)
        assert quiet_trainer(1, precision=precision, default_root_dir=tmp_path).predict(half, data)


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


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        found = EpochOrder(40, None, 8, seed, lambda generator: torch.randperm(40, generator=generator).tolist())
        found.set_epoch(epoch)
        return list(found)

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4
    assert sorted(index for index, _ in order(1, 2)) == list(range(40))


# Resuming


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
