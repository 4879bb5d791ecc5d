"""FARE and TeCoA: the loss is the published one, the image tower hardens, and the text tower keeps every bit."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.trainers import quiet_trainer
from tests.training.devices import POLICY
from zoo import registry
from zoo.contract.policy import Policy
from zoo.errors import BadInputError
from zoo.models.catalogue.hardened import _hardened
from zoo.release.checkpoint import release_checkpoint
from zoo.release.store import load_model, write_release
from zoo.training import ManifestData, RobustTower
from zoo.training.data import Batch

BASE, FARE = "test_safeclip.random", "test_safeclip.fare_linf4"
NAMES = {"1": "red", "0": "blue"}


@pytest.fixture(autouse=True)
def tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hardened tag of the test model, as the catalogue registers them for others."""
    registry.list_models()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    _hardened(FARE, BASE)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(POLICY), encoding="utf-8")
    model = registry.create_model(BASE)
    write_release(model, Policy.from_dict(POLICY), tmp_path / "release")
    return tmp_path / "release"


def _module(release: Path, **arguments: Any) -> RobustTower:
    policy = str(release.parent / "policy.yaml")
    return RobustTower(FARE, init_from=str(release), policy=policy, label_names=NAMES, **{"lr": 3e-3, **arguments})


def test_a_module_is_built_again_from_its_hyperparameters(release: Path) -> None:
    module = _module(release, lr_factors={"image_tower": 0.5})
    again = RobustTower(**module.hparams)
    assert dict(again.hparams) == dict(module.hparams)
    assert again.lr_factors == {"image_tower": 0.5}
    assert "model_args" not in module.hparams


def _batch() -> Batch:
    torch.manual_seed(1)
    labels: list[tuple[str, ...]] = [(str(row % 2),) for row in range(6)]
    return {"pixels": torch.rand(6, 3, 32, 32), "image_present": torch.ones(6, dtype=torch.bool), "labels": labels}


def _data(folder: Path) -> ManifestData:
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "split"])
        for number in range(36):
            colour = np.array([(60, 60, 160), (160, 60, 60)][number % 2]) + rng.normal(0, 25, (32, 32, 3))
            Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", number % 2, "train" if number < 24 else "val"])
    return ManifestData(str(folder / "manifest.csv"), batch_size=8)


def _fit(module: RobustTower, data: ManifestData, epochs: int) -> tuple[lightning.Trainer, list[dict[str, float]]]:
    found: list[dict[str, float]] = []

    class Watch(lightning.Callback):
        def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
            found.append({key: float(value) for key, value in trainer.callback_metrics.items()})

    lightning.seed_everything(0, verbose=False)
    trainer = quiet_trainer(epochs, callbacks=[Watch()])
    trainer.fit(module, data)
    return trainer, found[1:]  # without the sanity check


def test_the_fare_loss_is_the_squared_distance_to_the_original_embedding(release: Path) -> None:
    module, batch = _module(release), _batch()
    other = torch.rand(6, 3, 32, 32)
    loss = module._loss_of(batch["pixels"], batch)(other)
    original = load_model(str(release)).get_submodule("image_tower")
    with torch.no_grad():
        distance = original(other).embedding - original(batch["pixels"]).embedding
    assert loss.item() == pytest.approx((distance.numpy() ** 2).sum(axis=1).mean(), rel=1e-4)
    assert module._loss_of(batch["pixels"], batch)(batch["pixels"]).item() == 0


def test_the_tecoa_loss_is_the_cross_entropy_of_the_summed_phrases(release: Path) -> None:
    module, batch = _module(release, method="tecoa"), _batch()
    loss = module._loss_of(batch["pixels"], batch)(batch["pixels"])
    phrases = tuple(phrase for category in module.policy.categories for phrase in category.descriptors)
    with torch.no_grad():
        each = module.model(batch["pixels"], module.model.embed_phrases(phrases)).softmax(dim=1).double().numpy()
    share = [row[:2].sum() if label == ("1",) else row[2] for row, label in zip(each, batch["labels"], strict=True)]
    assert loss.item() == pytest.approx(-np.log(share).mean(), rel=1e-4)


@pytest.mark.parametrize("method", ["fare", "tecoa"])
def test_the_image_tower_hardens_and_the_text_tower_keeps_every_bit(method: str, release: Path, tmp_path: Path) -> None:
    threat = {"norm": "Linf", "eps": "8/255", "steps": 3}
    module = _module(release, method=method, threat=threat, eps_warmup=0.2)
    trainer, found = _fit(module, _data(tmp_path / "data"), 8)
    assert found[-1]["val/robust_loss"] < 0.9 * found[0]["val/robust_loss"]
    assert set(found[0]) >= {"val/loss", "val/auroc", "val/robust_auroc"}
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    card = release_checkpoint(tmp_path / "last.ckpt", tmp_path / "hardened")
    assert (card.name, card.summary) == (FARE, registry.model_entry(FARE).card.summary)
    before, after = load_model(str(release)).state_dict(), load_model(str(tmp_path / "hardened")).state_dict()
    assert before.keys() == after.keys()  # and nothing of the original tower beside them
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed
    assert all(key.startswith("image_tower.") for key in changed)


def test_labels_that_are_no_category_are_said(release: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = str(release.parent / "policy.yaml")
    module = RobustTower(FARE, init_from=str(release), policy=policy, label_names={"unsafe": "red"})
    (figures,) = quiet_trainer().validate(module, _data(tmp_path / "data"), verbose=False)
    assert "val/auroc" not in figures
    assert "no label (0, 1) is a category" in caplog.text


def test_a_hardened_tag_says_what_was_done() -> None:
    card = registry.model_card("vision_regnet_tiny.trades_linf8")
    assert card.summary.endswith("; TRADES (arXiv 1901.08573), Linf 8/255 on pixels in [0, 1]")
    assert card.limits[: len(card.limits) - 1] == registry.model_card("vision_regnet_tiny.plain").limits
    joint = registry.model_card("multimodal_nsfw_mobilenet.pgd_joint_linf4")
    assert "exchanged and misspelt words in the prompt" in joint.summary
    assert joint.text is not None
    assert joint.text.deobfuscate
    assert "Linf" not in registry.model_card("multimodal_nsfw_mobilenet.textaug").summary
    plain = registry.model_card("multimodal_nsfw_mobilenet.pgd_linf4")
    assert plain.text == registry.model_card("multimodal_nsfw_mobilenet.fusion").text


def test_what_does_not_fit_is_refused(release: Path) -> None:
    with pytest.raises(BadInputError, match='no category "read"; did you mean "red"'):
        RobustTower(FARE, init_from=str(release), policy=str(release.parent / "policy.yaml"), label_names={"1": "read"})
    module, batch = _module(release, method="tecoa"), _batch()
    batch["labels"][0] = ("green",)
    with pytest.raises(BadInputError, match=r"exactly one category of the policy in each row \(red, blue\), got"):
        module.training_step(batch, 0)
    batch["image_present"][0] = False
    with pytest.raises(BadInputError, match="needs an image in every row"):
        module.training_step(batch, 0)
    with pytest.raises(BadInputError, match="another architecture"):
        RobustTower("test_clip_resnet.random", init_from=str(release))
