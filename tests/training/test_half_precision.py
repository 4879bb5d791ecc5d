"""Half precision learns what single precision learns: small steps, long sums, averaged weights, convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from tests.trainers import quiet_trainer
from tests.training import precisions
from tests.training.devices import FUSION, NAMES, TASKS, prepare, tasks
from zoo.errors import BadArgumentError
from zoo.training import Classification, Contrastive, ManifestData, QuestionData
from zoo.training.optimizer import Masters


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


def test_strategies_that_shard_weights_are_refused_in_half_precision() -> None:
    weights = {"weight": torch.ones(2, 2)}
    copied = Masters({name: one.bfloat16() for name, one in weights.items()}, {})
    with pytest.raises(BadArgumentError, match="not by FSDPStrategy: take the precision bf16-mixed or 32-true"):
        copied.check(FSDPStrategy())
    copied.check(DDPStrategy())
    copied.check(SingleDeviceStrategy())
    Masters(weights, {}).check(FSDPStrategy())


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
        pytest.param("test_nsfwjs.random", marks=pytest.mark.slow),
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
