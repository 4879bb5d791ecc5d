"""Training options of classifiers: the loss, frozen parts, adapters, averaged weights, memory and precision."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging
from PIL import Image
from torch import Tensor

from zoo.assets import find_asset
from zoo.contract.policy import Policy
from zoo.errors import BadInputError
from zoo.registry import create_model, model_card
from zoo.release.checkpoint import release_checkpoint
from zoo.release.store import load_release, write_release
from zoo.training import Classification, Contrastive, ManifestData, VisionLanguage
from zoo.training.classification import Criterion
from zoo.training.data import Batch

FUSION, CONV = "test_multimodal_nsfw.fusion", "test_multimodal_conv.fusion"
SOFTMAX, SIGMOID = model_card(FUSION), model_card(CONV)  # 2 labels, 3 labels
TEXTS = ("a red field", "a blue field", "red, they say", "blue again")


# The loss


def _logits(labels: int, scale: float = 2.0) -> Tensor:
    logits = torch.randn(6, labels, generator=torch.Generator().manual_seed(0)) * scale
    return logits.requires_grad_()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, {"unsafe": 3.0}, {"unsafe": 0.5, "safe": 2.0}])
def test_without_focal_factor_softmax_is_torchs_cross_entropy(smoothing: float, weights: Any) -> None:
    logits, target = _logits(2), torch.tensor([0, 1, 1, 0, 1, 0])
    factors = torch.tensor([(weights or {}).get(label, 1.0) for label in SOFTMAX.labels])
    wanted = F.cross_entropy(logits, target, weight=factors, label_smoothing=smoothing)
    found = Criterion(SOFTMAX, weights, smoothing=smoothing)(logits, target)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, {"unsafe": 3.0, "in_prompt": 0.5}])
def test_sigmoid_is_torchs_binary_cross_entropy_on_what_is_known(smoothing: float, weights: Any) -> None:
    logits = _logits(3)
    target = torch.tensor([[1, 0, 1], [0, 0, 0], [1, torch.nan, 0], [torch.nan] * 3, [0, 1, 1], [1, 1, torch.nan]])
    known = ~target.isnan()
    factors = torch.tensor([(weights or {}).get(label, 1.0) for label in SIGMOID.labels])
    smooth = target.nan_to_num() * (1 - smoothing) + smoothing / 2
    each = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=factors, reduction="none")
    found = Criterion(SIGMOID, weights, smoothing=smoothing)(logits, target)
    assert found.item() == pytest.approx(each[known].mean().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, logits)
    assert (gradient[~known] == 0).all()
    assert (gradient[known] != 0).all()


def test_the_focal_factor_is_that_of_the_paper() -> None:
    logits, target = _logits(2), torch.tensor([0, 1, 1, 0, 1, 0])
    p = logits.detach().double().softmax(1).numpy()[np.arange(6), target.numpy()]
    assert Criterion(SOFTMAX, focal_gamma=2.0)(logits, target).item() == pytest.approx(
        float(np.mean(-((1 - p) ** 2) * np.log(p))), rel=1e-5
    )
    logits, target = _logits(3), (_logits(3).detach().flip(0) > 0).float()
    p = logits.detach().double().sigmoid().numpy()
    p = np.where(target.numpy() == 1, p, 1 - p)
    assert Criterion(SIGMOID, focal_gamma=2.0)(logits, target).item() == pytest.approx(
        float(np.mean(-((1 - p) ** 2) * np.log(p))), rel=1e-5
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_loss_is_finite_where_a_model_is_certain(gamma: float) -> None:
    for card, target in ((SOFTMAX, torch.tensor([0, 1])), (SIGMOID, torch.tensor([[1.0, 0, 1], [0, 1, 0]]))):
        logits = torch.full((2, len(card.labels)), 200.0)
        logits[:, 1] = -200
        logits.requires_grad_()
        loss = Criterion(card, focal_gamma=gamma, smoothing=0.1)(logits, target)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_nothing_known_is_no_loss() -> None:
    logits = _logits(3)
    loss = Criterion(SIGMOID, focal_gamma=2.0, smoothing=0.1)(logits, torch.full((6, 3), torch.nan))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": {"unsaef": 2.0}}, 'class_weights: no label "unsaef"; did you mean "unsafe"'),
        ({"class_weights": {"unsafe": 0.0}}, "a weight is above 0, got 0.0 for unsafe"),
        ({"focal_gamma": -1.0}, "focal_gamma is 0 or more, got -1.0"),
        ({"label_smoothing": 1.0}, r"a share in \[0, 1\), got 1.0"),
        ({"freeze": ["image_towr"]}, 'has no part "image_towr"; did you mean "image_tower"'),
        ({"unfreeze": ["text_tower.text_model.encoder.layers.7"]}, "has no part .*did you mean"),
        ({"freeze_norm": True}, "freeze_norm: test_multimodal_nsfw.fusion has no batch norm"),
        ({"lora": {"rank": 4}}, 'lora: no key "rank"'),
        ({"lora": {"target_modules": ["q_porj"]}}, 'has no "q_porj"; did you mean "q_proj"'),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        Classification(FUSION, **options)


def test_options_that_a_model_has_no_part_for_are_refused() -> None:
    with pytest.raises(BadInputError, match="has no transformer that can do it"):
        Classification("test_nsfwjs.random", gradient_checkpointing=True)
    with pytest.raises(BadInputError, match="has neither an image tower nor a text tower"):
        Classification("test_nsfwjs.random", lora={})


# A short training on coloured fields


def _data(folder: Path, labels: tuple[str, str] = ("unsafe", "safe")) -> ManifestData:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "text", "labels", "split"])
        for number in range(12):
            colour = (200, 30, 30) if number % 2 == 0 else (30, 30, 200)
            Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", TEXTS[number % 2], labels[number % 2], "train" if number < 8 else "val"])
    return ManifestData(str(path), batch_size=4)


def _fit(module: Classification, data: ManifestData, **options: Any) -> lightning.Trainer:
    trainer = lightning.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "default_root_dir": Path(data.manifest).parent,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **options,
        }
    )
    trainer.fit(module, data)
    return trainer


def _batch(module: Classification) -> Batch:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels: list[tuple[str, ...]] = [("unsafe",), ("safe",) if module.model.card.score == "softmax" else ()] * 2
    return {"pixels": images, "image_present": torch.ones(4, dtype=torch.bool), "texts": list(TEXTS), "labels": labels}


def _ready(model: str, seed: int = 0, **options: Any) -> Classification:
    torch.manual_seed(seed)
    module = Classification(model, **options)
    module._codec = module.model.codec()
    return module


def _changed(module: Classification, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}


def _state(module: Classification) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.model.state_dict().items()}


def test_what_is_frozen_is_neither_trained_nor_in_training_mode(tmp_path: Path) -> None:
    last = "image_tower.vision_model.encoder.layers.1"
    module = Classification(FUSION, freeze=["image_tower", "text_tower"], unfreeze=[last], lr=0.01)
    before = _state(module)
    _fit(module, _data(tmp_path))
    towers = {name for name in _changed(module, before) if name.startswith(("image_tower", "text_tower"))}
    assert towers
    assert all(name.startswith(last + ".") for name in towers)
    assert any(name.startswith("classifier.") for name in _changed(module, before))
    module.model.eval()
    module.model.train()  # whoever switches modes, an attack within a step say
    modes = {name: part.training for name, part in module.model.named_modules()}
    assert modes[last]
    assert modes["classifier"]
    assert not modes["image_tower"]
    assert not modes["image_tower.vision_model.encoder.layers.0.mlp"]
    assert not modes["text_tower.text_model.encoder.layers.1"]


def test_statistics_of_a_convolutional_backbone_can_be_kept(tmp_path: Path) -> None:
    for kept in (True, False):
        module = Classification(CONV, freeze_norm=kept, lr=0.01)
        before = _state(module)
        _fit(module, _data(tmp_path, ("unsafe|in_image", "")))
        changed = _changed(module, before)
        assert any(name.startswith("image_tower.backbone") and name.endswith("running_var") for name in changed) != kept
        assert any(name.startswith("image_tower.backbone") and "normalization.weight" in name for name in changed)
        assert "classifier.1.running_var" in changed  # the head's own learns as before


@pytest.mark.parametrize(("model", "targets"), [(FUSION, ["q_proj", "v_proj"]), (CONV, ["query", "value"])])
def test_adapters_alone_are_trained_in_the_towers_and_a_release_has_them_merged(
    tmp_path: Path, model: str, targets: list[str]
) -> None:
    lora = {"r": 2, "alpha": 32, "dropout": 0.1, "target_modules": targets}
    module = Classification(model, lora=lora, lr=0.05)
    before = _state(module)
    labels = ("unsafe", "safe") if model == FUSION else ("unsafe", "")
    trainer = _fit(module, _data(tmp_path, labels))
    towers = {name for name in _changed(module, before) if name.startswith(("image_tower", "text_tower"))}
    weights = {name for name in towers if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert any(".lora_A." in name for name in weights)
    assert all(".lora_" in name for name in weights)
    assert any(name.startswith("classifier.") for name in _changed(module, before))

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    release_checkpoint(tmp_path / "last.ckpt", tmp_path / "release")
    released = load_release(tmp_path / "release").model
    assert not [name for name, _ in released.named_modules() if "lora" in name]
    module.eval()
    inputs = module._inputs(_batch(module), drop=False)
    with torch.inference_mode():
        difference = (released.eval()(*inputs) - module.model(*inputs)).abs().max()
    assert difference < 1e-5

    again = Classification(model, lora=lora)  # a run that goes on finds its adapters
    again.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])


def test_a_release_holds_the_averaged_weights(tmp_path: Path) -> None:
    decay = 0.5
    module = Classification(FUSION, lr=0.05)
    steps: list[Tensor] = []

    class Keep(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            steps.append(pl_module.model.gate.weight.detach().clone())

    data = _data(tmp_path)
    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="best", enable_version_counter=False)
    averaging = EMAWeightAveraging(decay=decay)
    _fit(module, data, callbacks=[averaging, Keep(), checkpoints], enable_checkpointing=True)
    average = steps[0]  # the first update takes the weights as they are
    for weights in steps[1:]:
        average = decay * average + (1 - decay) * weights
    assert (average - steps[-1]).abs().max() > 1e-3
    release_checkpoint(tmp_path / "best.ckpt", tmp_path / "release")
    released = load_release(tmp_path / "release").model.state_dict()["gate.weight"]
    assert torch.allclose(released, average, atol=1e-6)


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_checkpointed_gradients_are_the_same(lora: dict[str, Any] | None) -> None:
    gradients = []
    for again in (False, True):
        module = _ready(FUSION, gradient_checkpointing=again, lora=lora)
        for part in module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        batch = _batch(module)
        calls = _count_calls(module.model.get_submodule("image_tower.vision_model.encoder.layers.0.mlp"))
        torch.manual_seed(3)
        loss = module.criterion(module.model(*module._inputs(batch, drop=True)), module._target(batch))
        torch.autograd.backward(loss)
        assert len(calls) == (2 if again else 1)  # computed again in the backward pass
        gradients.append({name: p.grad for name, p in module.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 5
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-7) for name in gradients[0])


def _count_calls(module: torch.nn.Module) -> list[None]:
    calls: list[None] = []
    module.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


def test_training_in_bfloat16_keeps_the_loss_in_float32(tmp_path: Path) -> None:
    module = Classification(FUSION, lr=0.01, focal_gamma=1.0, label_smoothing=0.1)
    seen: dict[str, set[torch.dtype]] = {"projection": set(), "loss": set()}
    module.model.get_submodule("image_projection").register_forward_hook(
        lambda _, __, output: seen["projection"].add(output.dtype)
    )
    module.criterion.register_forward_hook(lambda _, __, output: seen["loss"].add(output.dtype))
    trainer = _fit(module, _data(tmp_path), precision="bf16-mixed")
    assert seen == {"projection": {torch.bfloat16}, "loss": {torch.float32}}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    logits, target = _logits(2).bfloat16(), torch.tensor([0, 1, 1, 0, 1, 0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.criterion(logits, target), module.criterion(logits.float(), target))


def test_both_towers_start_from_a_clip(tmp_path: Path) -> None:
    torch.manual_seed(4)
    clip = create_model("test_safeclip.random", layer=-1, post_layernorm=True)
    write_release(clip, Policy.read(find_asset("configs/policy/safeclip.yaml")), tmp_path / "clip")
    model = Classification(FUSION, clip_weights=str(tmp_path / "clip")).model
    assert model.tokenizer_json == clip.tokenizer_json
    assert "; CLIP towers: release clip (test_safeclip.random, sha256" in model.card.source
    state = model.state_dict()
    copied = {name: value for name, value in clip.state_dict().items() if name != "logit_scale"}
    assert all(torch.equal(value, state[name]) for name, value in copied.items())
    with pytest.raises(BadInputError, match=f"{CONV} does not have two CLIP towers"):
        Classification(CONV, clip_weights=str(tmp_path / "clip"))


def test_a_recipe_can_turn_two_exclusive_labels_into_several(tmp_path: Path) -> None:
    arguments = {"labels": ["unsafe", "in_image", "in_prompt"], "score": "sigmoid"}
    module = Classification(FUSION, model_args=arguments, policy="configs/policy/dogs_multimodal.yaml")
    card = module.model.card
    assert (card.score, card.score_meaning) == ("sigmoid", "probability of each label by itself")
    assert module._target({"labels": [("unsafe", "in_prompt")]}).tolist() == [[1, 0, 1]]
    _fit(module, _data(tmp_path, ("unsafe|in_image", "")), max_epochs=1)


def test_a_module_that_is_called_answers_as_its_model_does() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    released = load_release("test_laion_nsfw.random").model
    module = Classification("test_laion_nsfw.random").eval()
    module.model.load_state_dict(released.state_dict())
    with torch.inference_mode():
        assert torch.equal(module(images), released(images))
        bank = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
        pairs = Contrastive("test_safeclip.random").eval()
        assert torch.equal(pairs(images, bank), pairs.model(images, bank))
    with pytest.raises(BadInputError, match=r"built by setup\(\), which the trainer calls"):
        VisionLanguage("out", lvlm="nowhere")(input_ids=torch.zeros(1, 1))
