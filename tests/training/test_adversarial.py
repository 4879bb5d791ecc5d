"""Adversarial training: what the attack may touch, what the losses are, and that it hardens."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from tests.benchmarks import recipe_step
from tests.benchmarks.common import answered
from tests.trainers import quiet_trainer
from zoo.adversary.training import perturb_pixels, training_threat
from zoo.errors import BadCardError, BadInputError
from zoo.inputs.text import train_tokenizer
from zoo.training import Adversarial, Classification, ManifestData
from zoo.training.adversarial import row_generators
from zoo.training.data import Batch

FUSION, CONV, VISION = "test_multimodal_nsfw.fusion", "test_multimodal_conv.fusion", "test_vision_regnet.random"
LINF = {"norm": "Linf", "eps": "8/255", "steps": 3}
TEXTS = ["a brown dog runs over the green grass", "two people wait for a red bus", "a dog sleeps on the warm sand"]


def _module(model: str = FUSION, **arguments: Any) -> Adversarial:
    torch.manual_seed(0)
    module = Adversarial(model, **{"method": "pgd", "threat": LINF, **arguments})
    if module.model.card.text is not None:
        module.model.tokenizer_json = train_tokenizer([*TEXTS * 3, "cats and dogs"], 300)
        module._codec = module.model.codec()
    return module


def _batch(model: str, size: int = 6) -> Batch:
    torch.manual_seed(1)
    batch: Batch = {"pixels": torch.rand(size, 3, 32, 32), "image_present": torch.ones(size, dtype=torch.bool)}
    if model == VISION:
        batch["labels"] = [(("dog", "cat")[row % 2],) for row in range(size)]
        return batch
    batch["texts"] = [TEXTS[row % len(TEXTS)] for row in range(size)]
    batch["labels"] = [(("unsafe", "safe")[row % 2],) for row in range(size)]
    if model == CONV:
        batch["labels"] = [("unsafe", "in_prompt") if row % 2 else () for row in range(size)]
        batch["judged"] = [("unsafe",) if row == 0 else None for row in range(size)]
    return batch


def _attacked(module: Adversarial, batch: Batch, **changes: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs of a batch before and after the attack on all rows."""
    target, every = module._target(batch), torch.ones(len(batch["labels"]), dtype=torch.bool)
    inputs = module._inputs(batch, drop=False)
    arguments = {"attacked": every, "worded": every, "threat": module.threat, **changes}
    return inputs, module._worst_case(inputs, target, **arguments)


# What is attacked, and with the model in which mode


class _Spy:
    """What each forward pass of a model met: parts in training mode, parameters with gradients, type of gradients."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: list[tuple[set[bool], set[bool]]] = []
        self.grad_dtypes: set[torch.dtype] = set()
        self.model = model
        model.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        modes = {part.training for part in self.model.modules()}
        self.seen.append((modes, {parameter.requires_grad for parameter in self.model.parameters()}))
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: self.grad_dtypes.add(gradient.dtype))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("model", [FUSION, CONV, VISION])
@pytest.mark.parametrize(("method", "passes"), [("pgd", 3), ("fast", 1), ("trades", 4)])
def test_the_attack_meets_evaluation_mode_and_the_step_training_mode(model: str, method: str, passes: int) -> None:
    threat = {"norm": "Linf", "eps": "8/255"} if method == "fast" else LINF
    module = _module(model, method=method, threat=threat)
    spy = _Spy(module.model)
    wanted = {parameter.requires_grad for parameter in module.model.parameters()}
    loss = module.training_step(_batch(model), 0)
    steps = 2 if method == "trades" else 1
    assert spy.seen == [({False}, {False})] * passes + [({True}, wanted)] * steps
    assert all(parameter.grad is None for parameter in module.model.parameters())
    loss.backward()  # type: ignore[no-untyped-call]
    assert any(parameter.grad is not None for parameter in module.model.parameters())


def test_modes_and_gradients_are_as_before_after_an_attack_that_failed() -> None:
    module = _module(VISION)
    next(iter(module.model.children())).eval().requires_grad_(False)  # a frozen part stays one
    before = [(part.training, [p.requires_grad for p in part.parameters()]) for part in module.model.modules()]

    def broken(*_: object) -> None:
        raise RuntimeError("no")

    handle = module.model.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="no"):
        module.training_step(_batch(VISION), 0)
    handle.remove()
    assert [(part.training, [p.requires_grad for p in part.parameters()]) for part in module.model.modules()] == before


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_attacked_images_are_in_the_ball_and_judged_worse(norm: str) -> None:
    module = _module(VISION, threat={"norm": norm, "eps": 0.05 if norm == "Linf" else 1.0, "steps": 5})
    batch = _batch(VISION, 16)
    (clean,), (found,) = _attacked(module, batch)
    offset = (found - clean).flatten(1)
    size = offset.abs().amax(dim=1) if norm == "Linf" else offset.norm(dim=1)
    assert module.threat is not None
    assert float(size.max()) <= module.threat.eps * (1 + 1e-5)
    assert float(size.min()) > 0
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    module.model.eval()
    target = module._target(batch)
    losses = [nn.functional.cross_entropy(module.model(pixels), target, reduction="none") for pixels in (clean, found)]
    assert bool((losses[1] > losses[0]).all())


def test_rows_without_an_image_and_rows_that_stay_clean_are_not_touched() -> None:
    module = _module()
    batch = _batch(FUSION)
    batch["image_present"][0] = False
    attacked = torch.tensor([True, True, False, True, True, True])
    inputs, found = _attacked(module, batch, attacked=attacked)
    same = [bool(torch.equal(a, b)) for a, b in zip(inputs[0], found[0], strict=True)]
    assert same == [True, False, True, False, False, False]
    assert all(torch.equal(a, b) for a, b in zip(inputs[1:], found[1:], strict=True))
    module.clean_share = 1.0
    spy = _Spy(module.model)
    module.training_step(batch, 0)
    assert len(spy.seen) == 1  # nothing to attack


# Words


@pytest.mark.parametrize("model", [FUSION, CONV])
@pytest.mark.parametrize("method", [None, "pgd"])
def test_words_are_exchanged_against_the_model_and_never_those_that_make_the_label(
    model: str, method: str | None
) -> None:
    text = {"hotflip_words": 2, "protected": ["dog", "dogs"]}
    module = _module(model, method=method, threat=LINF if method else None, text=text)
    batch = _batch(model)
    inputs, found = _attacked(module, batch)
    changed = found[1] != inputs[1]
    assert int(changed.sum(dim=1).max()) == 2
    assert not changed[inputs[2] == 0].any()
    assert module._codec is not None
    dogs = int(module._codec.encode(["dog"]).ids[0][1])
    assert torch.equal((inputs[1] == dogs).sum(dim=1), (found[1] == dogs).sum(dim=1))
    assert torch.equal(found[2], inputs[2])
    assert torch.equal(found[0], inputs[0]) == (method is None)
    module.model.eval()
    target = module._target(batch)
    clean, worse = (module.criterion(module.model(*part), target).item() for part in (inputs, found))
    assert worse > clean


def test_joint_training_costs_no_more_passes_than_pgd_alone() -> None:
    module = _module(text={"hotflip_words": 2})
    spy = _Spy(module.model)
    module.training_step(_batch(FUSION), 0)
    assert len(spy.seen) == 3 + 1


def test_a_share_of_the_attacked_prompts_gets_character_edits_and_the_others_exchanges() -> None:
    module = _module(method=None, threat=None, text={"share": 0.5, "kinds": ["misspelling"]})
    batch = _batch(FUSION, 200)
    attacked = torch.arange(200) < 120
    changed, edited = module._edited(batch, module._target(batch), attacked)
    differs = [a != b for a, b in zip(batch["texts"], changed["texts"], strict=True)]
    assert differs == edited.tolist()
    assert not any(differs[120:])
    assert 40 < sum(differs) < 80
    assert batch["texts"][0] == TEXTS[0]  # the batch itself is as it was


@torch.no_grad()
def test_of_several_edits_the_model_gets_the_one_that_it_judges_worst() -> None:
    text = {"share": 1.0, "kinds": ["misspelling"], "worst_of": 8}
    module = _module(method=None, threat=None, text=text)
    module.model.eval()
    batch, everything = _batch(FUSION, 24), torch.ones(24, dtype=torch.bool)
    target = module._target(batch)

    def losses(texts: list[str | None]) -> list[float]:
        logits = module.model(*module._inputs({**batch, "texts": texts}, drop=False))
        return [float(module.criterion(logits[row : row + 1], target[row : row + 1])) for row in range(24)]

    worst, _ = module._edited(batch, target, everything, row_generators(range(24)))
    generators = row_generators(range(24))
    for generator in generators:
        torch.rand((), generator=generator)  # the draw of the rows
    drawn = [losses([*module._edits(batch["texts"], list(range(24)), generators)]) for _ in range(8)]
    assert losses(worst["texts"]) == pytest.approx([max(row) for row in zip(*drawn, strict=True)], abs=1e-6)
    assert len({tuple(row) for row in drawn}) > 1


# Losses


def test_the_trades_loss_is_its_formula() -> None:
    module = _module(VISION, method="trades", beta=3.0)
    batch = _batch(VISION)
    kept: list[list[Tensor]] = []
    original = module._worst_case

    def spied(*args: Any, **kwargs: Any) -> list[Tensor]:
        kept.append(original(*args, **kwargs))
        return kept[-1]

    module._worst_case = spied  # type: ignore[method-assign]
    loss = module.training_step(batch, 0)
    target = module._target(batch)
    clean, attacked = module.model(batch["pixels"]), module.model(*kept[0])
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (clean, attacked))
    wanted = nn.functional.cross_entropy(clean, target) + 3.0 * torch.distributions.kl_divergence(p, q).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert not torch.equal(kept[0][0], batch["pixels"])


def test_the_divergence_of_labels_that_stand_alone_is_that_of_bernoullis() -> None:
    module = _module(CONV, method="trades")
    clean, other = torch.randn(4, 3), torch.randn(4, 3)
    p, q = (torch.distributions.Bernoulli(logits=logits) for logits in (clean, other))
    wanted = torch.distributions.kl_divergence(p, q).mean().item()
    assert module.divergence(clean, other).item() == pytest.approx(wanted, rel=1e-4)
    assert module.divergence(clean, clean).item() == pytest.approx(0, abs=1e-6)


# Whole runs


def _fields(folder: Path, rows: int = 96) -> Path:
    """Dark and bright fields, nine of ten labelled by brightness, all by a faint pattern that an attacker can turn."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pattern = np.indices((32, 32)).sum(axis=0) % 2 * 2 - 1
    path = folder / "manifest.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "split"])
        for number in range(rows):
            dog = number % 2
            bright = dog if rng.random() < 0.9 else 1 - dog
            pixels = 110 + 40 * bright + 5 * (2 * dog - 1) * pattern[:, :, None] + rng.normal(0, 3, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", ("cat", "dog")[dog], "train" if number < rows * 2 // 3 else "val"])
    return path


def _trainer(epochs: int, *callbacks: lightning.Callback, **options: Any) -> lightning.Trainer:
    return quiet_trainer(epochs, callbacks=list(callbacks), **options)


def _robust_accuracy(module: Classification, data: ManifestData, eps: float) -> float:
    """Accuracy on the validation rows under twenty steps of PGD."""
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    module.eval().requires_grad_(False)
    right = []
    for batch in batches:
        target = module._target(batch)

        def loss(pixels: Tensor, target: Tensor = target) -> Tensor:
            return nn.functional.cross_entropy(module.model(pixels), target, reduction="sum")

        found = batch["pixels"]
        if eps:
            found = perturb_pixels(loss, found, training_threat({"norm": "Linf", "eps": eps, "steps": 20}))
        right.append((module.model(found).argmax(dim=1) == target).float())
    return float(torch.cat(right).mean())


@pytest.mark.slow
def test_adversarial_training_hardens_where_plain_training_does_not(tmp_path: Path) -> None:
    manifest = str(_fields(tmp_path))
    eps = 16 / 255

    def trained(build: Callable[..., Classification], **arguments: Any) -> tuple[float, float, dict[str, Tensor]]:
        lightning.seed_everything(0, verbose=False)
        module, data = build(VISION, lr=1e-2, **arguments), ManifestData(manifest, batch_size=16)
        trainer = _trainer(16)
        trainer.fit(module, data)
        return _robust_accuracy(module, data, 0), _robust_accuracy(module, data, eps), dict(trainer.callback_metrics)

    plain = trained(Classification)
    hard = trained(Adversarial, method="pgd", threat={"norm": "Linf", "eps": eps, "steps": 4}, eps_warmup=0.3)
    assert plain[0] > 0.85
    assert hard[0] > 0.8
    assert plain[1] < 0.3
    assert hard[1] > plain[1] + 0.3
    # Its own attack is one of few steps: hardly worse than that of twenty, and no better than none.
    assert hard[1] - 0.1 <= float(hard[2]["val/robust_accuracy"]) <= hard[0] + 0.1
    assert 0 <= float(hard[2]["val/robust_auroc"]) <= 1


class _Eps(lightning.Callback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        self.found.append(float(trainer.callback_metrics["train/eps"]))


def test_eps_rises_for_a_share_of_all_steps(tmp_path: Path) -> None:
    module = _module(VISION, threat={"norm": "Linf", "eps": 0.1, "steps": 1}, eps_warmup=0.5)
    watch = _Eps()
    data = ManifestData(str(_fields(tmp_path, 48)), batch_size=8)
    _trainer(2, watch).fit(module, data)  # 4 batches an epoch
    assert watch.found == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1])


def test_half_precision_trains_on_gradients_of_single_precision(tmp_path: Path) -> None:
    module = _module(VISION)
    spy = _Spy(module.model)
    weight = next(iter(module.model.parameters())).detach().clone()
    _trainer(1, precision="bf16-mixed").fit(module, ManifestData(str(_fields(tmp_path, 24)), batch_size=8))
    assert spy.grad_dtypes == {torch.float32}
    assert not torch.equal(weight, next(iter(module.model.parameters())))
    assert torch.isfinite(torch.stack([value.isfinite().all() for value in module.model.parameters()])).all()


def test_the_validation_attack_is_spread_over_a_sorted_split(tmp_path: Path) -> None:
    module = _module(VISION, val_attack_batches=1, val_attack_steps=2)
    taken: list[Tensor] = []
    original = module._evaluate_attacked

    def spied(batch: Batch, batch_idx: int, rows: Tensor) -> None:
        taken.append(rows)
        original(batch, batch_idx, rows)

    module._evaluate_attacked = spied  # type: ignore[assignment, method-assign]
    _trainer(1, num_sanity_val_steps=0).fit(module, ManifestData(str(_fields(tmp_path, 48)), batch_size=4))
    assert [rows.nonzero()[:, 0].tolist() for rows in taken] == [[0]] * 4  # one batch's worth, of four


# Refusals


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (FUSION, {"method": None, "threat": None}, "give method, text or both"),
        (FUSION, {"method": "pgd", "threat": None}, "go together"),
        (FUSION, {"clean_share": 1.5}, "clean_share is a share"),
        (FUSION, {"beta": 0.0}, "beta must be above 0"),
        (VISION, {"text": {"share": 0.5}}, "reads no text"),
        (FUSION, {"threat": {"norm": "L1", "eps": 1}}, "norm"),
        ("test_prompt_bert.random", {}, "reads no image"),
    ],
)
def test_what_cannot_be_attacked_is_refused(model: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((BadInputError, BadCardError), match=message):
        Adversarial(model, **{"method": "pgd", "threat": LINF, **arguments})


# Stored examples mixed in


def test_mixed_rows_train_and_nothing_else_and_none_that_looks_like_a_tested_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = _fields(tmp_path / "data", 48)
    stored = tmp_path / "stored"
    stored.mkdir()
    rng = np.random.default_rng(1)
    lines = ["image,label,split,attack"]
    for number, split in enumerate(["train", "train", "val", "train"]):
        picture = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        if number == 3:  # looks like a validation row
            picture = Image.open(manifest.parent / "47.png")
        picture.save(stored / f"{number}.png")
        lines.append(f"{number}.png,dog,{split},pgd")
    (stored / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    plain = ManifestData(str(manifest), batch_size=8)
    mixed = ManifestData(str(manifest), batch_size=8, mix=[str(stored / "manifest.csv")])
    for data in (plain, mixed):
        _trainer(1, limit_train_batches=1, limit_val_batches=0).fit(Classification(VISION), data)
    added = [row.image.name for row in mixed.by_split["train"] if row.image and row.image.parent == stored]
    assert added == ["0.png", "1.png"]
    assert len(mixed.by_split["train"]) == len(plain.by_split["train"]) + 2
    assert mixed.by_split["val"] == plain.by_split["val"]
    assert "1 of 3 rows look like one of val or test" in caplog.text
    (stored / "manifest.csv").write_text("image,label,split\n0.png,dog,test", encoding="utf-8")
    with pytest.raises(BadInputError, match='mix adds rows whose split is "train"'):
        _trainer(1).fit(Classification(VISION), ManifestData(str(manifest), mix=[str(stored / "manifest.csv")]))


# What a step costs


def _recipe(folder: Path, kind: str, **arguments: Any) -> Path:
    config = {
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": str(folder / "logs")},
        "model": {"class_path": f"zoo.training.{kind}", "init_args": {"model": VISION, **arguments}},
        "data": {
            "class_path": "zoo.training.ManifestData",
            "init_args": {"manifest": str(_fields(folder, 48)), "batch_size": 16},
        },
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_the_bench_compares_a_step_with_a_plain_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = _recipe(tmp_path, "Adversarial", method="pgd", threat=LINF)
    assert recipe_step.main([str(recipe), "--steps", "2", "--set", "model.init_args.threat.steps=6"]) == 0
    found = re.search(r"a step costs ([\d.]+) plain steps .* medians of 2 pairs", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) > 1.5
    assert not list(tmp_path.rglob("config.yaml"))
    plain = _recipe(tmp_path, "Classification")
    with pytest.raises(SystemExit, match="attacks nothing in training"):
        recipe_step.main([str(plain), "--steps", "2"])
    assert answered(recipe_step.main, [str(recipe), "--steps", "1"]) == 1
    assert answered(recipe_step.main, [str(recipe), "--set", "steps"]) == 1
    assert answered(recipe_step.main, [str(tmp_path / "mien.yaml")]) == 1
