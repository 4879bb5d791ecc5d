"""Every test model goes the whole road: fit, test, predict, release, export, runtime. And the steps by themselves."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

import zoo
from export import runtime
from export.onnx.export import export_onnx
from tests.trainers import quiet_trainer
from zoo import registry
from zoo.contract.card import ModelCard
from zoo.contract.policy import Policy
from zoo.contract.verdict import Verdict
from zoo.errors import BadInputError
from zoo.inputs.text import TextCodec
from zoo.release.checkpoint import CHECKPOINT_KEY, release_checkpoint
from zoo.training import Classification, Contrastive, ManifestData
from zoo.training.cli import run
from zoo.training.data import Batch

CLIP, FUSION = "test_safeclip.random", "test_multimodal_nsfw.fusion"
STOPPING = "lightning.pytorch.callbacks.EarlyStopping"
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def _data(folder: Path, labels: tuple[str, str], word: str = "field", blank: tuple[str, ...] = ()) -> Path:
    """16 rows to train on, 6 each for val and test: fields of two colours with captions and one label each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    path = folder / "manifest.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "text", "label", "split"])
        for number, split in enumerate(["train"] * 16 + ["val"] * 6 + ["test"] * 6):
            colour = list(COLOURS)[number % 2]
            pixels = (np.array(COLOURS[colour]) + rng.normal(0, 20, (40, 40, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            row = {"image": f"{number}.png", "text": f"a {colour} {word} {number}"}
            writer.writerow([*("" if key in blank else value for key, value in row.items()), labels[number % 2], split])
    return path


def _recipe(folder: Path, model: str, manifest: Path, epochs: int = 2) -> list[str]:
    """The arguments that train a model on a manifest by a recipe, which is written to `folder`."""
    task = registry.model_card(model).task
    config = {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": epochs,
            "default_root_dir": str(folder / "logs"),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": str(folder), "save_last": True, "enable_version_counter": False},
                }
            ],
        },
        "model": {
            "class_path": "zoo.training." + ("Contrastive" if task == "zero_shot" else "Classification"),
            "init_args": {"model": model},
        },
        "data": {
            "class_path": "zoo.training.ManifestData",
            "init_args": {"manifest": str(manifest), "batch_size": 8},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return ["--config", str(path)]


def _stored(checkpoint: Path) -> dict[str, Any]:
    stored: dict[str, Any] = torch.load(checkpoint, weights_only=True)[CHECKPOINT_KEY]
    return stored


def _labels(model: str) -> tuple[str, str]:
    labels = registry.model_card(model).labels
    # With a single output a row without a label is a negative one.
    return (labels[0], (*labels, "")[1]) if labels else ("1", "0")


def _verdicts(folder: Path) -> list[Verdict]:
    (path,) = folder.rglob("predictions.jsonl")
    return [Verdict.from_dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _difference(left: list[Verdict], right: list[Verdict]) -> float:
    """The largest difference of a score; the verdicts must be of the same categories and status."""
    assert [verdict.scores.keys() for verdict in left] == [verdict.scores.keys() for verdict in right]
    assert {verdict.status for verdict in left + right} == {"ok"}
    return max(abs(a.scores[key] - b.scores[key]) for a, b in zip(left, right, strict=True) for key in a.scores)


def test_a_panel_is_not_trained_as_a_whole() -> None:
    for module in (Contrastive, Classification):
        with pytest.raises(BadInputError, match=r"test_clip\.panel is a panel: train or import its heads"):
            module("test_clip.panel")


#: Trained weights are exported of one model of each kind; the graphs of all are compared with random weights elsewhere.
EXPORTED = (CLIP, "test_clip_resnet.random", "test_multimodal_conv.fusion", "test_prompt_bert.random")


#: Towers with the phrases of a policy, and convolutions fused with texts; the other models are of fewer parts.
ROADS = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in (CLIP, "test_multimodal_conv.fusion")))
    for name in registry.list_models("test_*")
    if name != "test_clip.panel"
]


@pytest.mark.parametrize("model", ROADS)
def test_the_whole_road(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = _data(tmp_path / "data", _labels(model))
    arguments = _recipe(tmp_path, model, manifest)
    checkpoint = tmp_path / "last.ckpt"
    run(["fit", *arguments])
    run(["test", *arguments, "--ckpt_path", str(checkpoint)])
    assert "test/" in capsys.readouterr().out  # the table of figures
    run(["predict", *arguments, "--ckpt_path", str(checkpoint)])
    predicted = _verdicts(tmp_path)
    assert [verdict.source for verdict in predicted] == [f"line {line}" for line in range(24, 30)]

    card = release_checkpoint(checkpoint, tmp_path / "release")
    assert (card.name, card.training.recipe, card.training.epochs, card.training.steps) == (model, "tiny", 2, 4)
    assert card.training.data == str(manifest)
    fresh = registry.create_model(model).state_dict()
    release = zoo.load_release(tmp_path / "release")
    assert any(not torch.equal(value, fresh[key]) for key, value in release.model.state_dict().items())

    images = [tmp_path / "data" / f"{number}.png" for number in range(22, 28)] if card.image else None
    texts = [f"a {list(COLOURS)[number % 2]} field {number}" for number in range(22, 28)] if card.reads_text else None
    with zoo.load_scorer(tmp_path / "release") as scorer:
        eager = scorer.verdicts(images, texts)
    assert _difference(eager, predicted) < 1e-5

    if model in EXPORTED:
        export_onnx(tmp_path / "release", tmp_path / "bundle")
        with runtime.load(tmp_path / "bundle", threads=1) as scorer:
            exported = scorer.verdicts(images, texts)
        assert _difference(exported, eager) < 1e-4
        assert [verdict.decision for verdict in exported] == [verdict.decision for verdict in eager]


def test_a_resumed_run_is_as_long_as_a_straight_one_and_keeps_its_tokenizer(tmp_path: Path) -> None:
    manifest = _data(tmp_path / "data", ("1", "0"))
    other = _data(tmp_path / "other", ("1", "0"), word="xylophone")
    run(["fit", *_recipe(tmp_path / "straight", CLIP, manifest)])
    run(["fit", *_recipe(tmp_path / "resumed", CLIP, manifest, epochs=1)])
    first = _stored(tmp_path / "resumed" / "last.ckpt")
    arguments = _recipe(tmp_path / "resumed", CLIP, other)
    run(["fit", *arguments, "--ckpt_path", str(tmp_path / "resumed" / "last.ckpt")])
    straight, resumed = (_stored(tmp_path / name / "last.ckpt") for name in ("straight", "resumed"))
    assert first["card"]["training"]["epochs"] == 1
    for key in ("epochs", "steps", "seed"):
        assert resumed["card"]["training"][key] == straight["card"]["training"][key]
    assert resumed["card"]["training"]["epochs"] == 2
    assert resumed["tokenizer"] == first["tokenizer"] == straight["tokenizer"]
    assert "xyl" not in resumed["tokenizer"]


def test_a_checkpoint_saved_after_training_counts_the_same_epochs(tmp_path: Path) -> None:
    trainer = _fit(Contrastive(CLIP), ManifestData(str(_data(tmp_path, ("1", "0"))), batch_size=8), epochs=2)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert _stored(tmp_path / "after.ckpt")["card"]["training"]["epochs"] == 2


@pytest.mark.parametrize("blank", ["image", "text"])
def test_a_fusion_model_predicts_with_either_input_missing_throughout(tmp_path: Path, blank: str) -> None:
    data = ManifestData(str(_data(tmp_path, ("unsafe", "safe"), blank=(blank,))), batch_size=8)
    module = Classification(FUSION)
    _fit(module, data)
    _trainer(tmp_path).predict(module, data)
    assert [verdict.status for verdict in _verdicts(tmp_path)] == ["ok"] * 6


def test_to_predict_only_what_is_predicted_is_decoded(tmp_path: Path) -> None:
    """Images of training are not even there; a broken one of the test has a verdict. To train, all are read."""
    manifest = _data(tmp_path, ("unsafe", "safe"), blank=("text",))
    rows = list(csv.DictReader(manifest.open(encoding="utf-8")))
    broken, *_ = [manifest.parent / row["image"] for row in rows if row["split"] == "test"]
    broken.write_bytes(b"no picture")
    for row in rows:
        if row["split"] == "train":
            (manifest.parent / row["image"]).unlink()
    module, data = _trained(Classification(FUSION)), ManifestData(str(manifest), batch_size=8)
    _trainer(tmp_path).predict(module, data)
    assert [verdict.status for verdict in _verdicts(tmp_path)] == ["unreadable"] + ["ok"] * 5
    assert data.unreadable == []
    _trainer(tmp_path).test(module, data, verbose=False)
    assert len(data.by_split["test"]) == 5
    with pytest.raises(BadInputError, match='none of the rows is readable for the split "train"'):
        data.train_dataloader()


@pytest.mark.parametrize("missing", ["once", "throughout"])
def test_a_zero_shot_model_judges_no_row_without_image(tmp_path: Path, missing: str) -> None:
    manifest = _data(tmp_path, ("1", "0"), blank=("image",) if missing == "throughout" else ())
    if missing == "once":
        manifest.write_text(manifest.read_text(encoding="utf-8") + ",no picture,1,test\n", encoding="utf-8")
    with pytest.raises(BadInputError, match="needs an image in every row"):
        _trainer(tmp_path).predict(_trained(Contrastive(CLIP)), ManifestData(str(manifest), batch_size=8))
    assert not list(tmp_path.rglob("predictions.jsonl"))


def _trainer(folder: Path, epochs: int = 1) -> lightning.Trainer:
    return quiet_trainer(epochs, default_root_dir=folder, num_sanity_val_steps=0)


def _trained(module: lightning.LightningModule) -> lightning.LightningModule:
    """The module with its weights loaded, as from a checkpoint."""
    module.load_state_dict(module.state_dict())
    return module


def _fit(module: lightning.LightningModule, data: ManifestData, epochs: int = 1) -> lightning.Trainer:
    trainer = _trainer(Path(data.manifest).parent, epochs)
    trainer.fit(module, data)
    return trainer


def test_what_lightning_refuses_ends_in_one_line(tmp_path: Path) -> None:
    arguments = _recipe(tmp_path, FUSION, _data(tmp_path / "data", ("safe", "safe")))
    for more, message in (
        (["fit", "--trainer.callbacks.init_args.monitor", "val/auroc"], "No ranking is logged where .* one class only"),
        (["fit", "--trainer.callbacks+", STOPPING, "--trainer.callbacks.init_args.monitor", "val/auprc"], "one class"),
        (["validate", "--ckpt_path", "none.ckpt"], "none.ckpt"),
    ):
        with pytest.raises(SystemExit, match=f"zoo: .*{message}"):
            run([more[0], *arguments, *more[1:]])


# The contrastive loss, against its formula in numpy


def _side(logits: NDArray[np.float64], twins: NDArray[np.bool_], smoothing: float) -> float:
    losses = []
    for row in range(len(logits)):
        kept = logits[row][~twins[row] | (np.arange(len(logits)) == row)]
        negative = np.log(np.exp(kept).sum()) - kept
        own = np.log(np.exp(kept).sum()) - logits[row, row]
        losses.append((1 - smoothing) * own + smoothing * negative.mean())
    return float(np.mean(losses))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    ("texts", "group"),
    [
        (["a", "b", "c", "d", "e"], [0, 1, 2, 3, 4]),
        (["a", "b", "a", "a", "e"], [0, 1, 2, 3, 4]),
        (["a", "b", "c", "d", "e"], [0, 1, 1, 3, 0]),
        (["a", "a", "c", "d", "e"], [0, 1, 1, 3, 4]),
    ],
    ids=["distinct", "same text", "same image", "both"],
)
def test_what_says_the_same_is_no_negative(texts: list[str | None], group: list[int], smoothing: float) -> None:
    torch.manual_seed(0)
    module = Contrastive(CLIP, label_smoothing=smoothing)
    image, text = (torch.nn.functional.normalize(torch.randn(5, 16), dim=1) for _ in range(2))
    batch: Batch = {"texts": texts, "group": torch.tensor(group)}
    twins = np.equal.outer(np.array(texts), np.array(texts)) | np.equal.outer(np.array(group), np.array(group))
    logits = float(module.model.scale().detach()) * image.double().numpy() @ text.double().numpy().T
    wanted = (_side(logits, twins, smoothing) + _side(logits.T, twins.T, smoothing)) / 2
    assert module._loss(image, text, batch).item() == pytest.approx(wanted, rel=1e-4)


def test_without_smoothing_and_twins_it_is_clips_loss() -> None:
    torch.manual_seed(0)
    module = Contrastive(CLIP, label_smoothing=0.0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 16), dim=1) for _ in range(2))
    batch: Batch = {"texts": [str(number) for number in range(6)], "group": torch.arange(6)}
    logits = module.model.scale() * image @ text.T
    own = torch.arange(6)
    wanted = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
    assert torch.allclose(module._loss(image, text, batch), wanted, atol=1e-6)


def test_the_tokenizer_is_trained_on_the_training_texts_alone(tmp_path: Path) -> None:
    manifest = _data(tmp_path, ("1", "0"))
    lines = manifest.read_text(encoding="utf-8").splitlines()
    lines = [line.replace("field", "quagga") if line.endswith("test") else line for line in lines]
    manifest.write_text("\n".join(lines), encoding="utf-8")
    module = Contrastive(CLIP)
    _fit(module, ManifestData(str(manifest), batch_size=8))
    assert module.model.tokenizer_json is not None
    assert module.model.card.text is not None
    codec = TextCodec(module.model.tokenizer_json, module.model.card.text)
    length = {word: int(codec.encode([word]).mask.sum()) for word in ("field", "quagga")}
    assert length["field"] < length["quagga"] == len("quagga") + 3  # byte by byte, with the space, start and end


# Labels of classifiers


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("unsaef", "safe"), 'the manifest has a label "unsaef"; did you mean "unsafe"'),
        (("unsafe|safe", "safe"), r"needs exactly one label in each row, got \['unsafe', 'safe'\]"),
        (("", "safe"), r"needs exactly one label in each row, got \[\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: tuple[str, str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        _fit(Classification(FUSION), ManifestData(str(_data(tmp_path, labels)), batch_size=8))


def test_labels_are_renamed(tmp_path: Path) -> None:
    data = ManifestData(str(_data(tmp_path, ("1", "0"))), batch_size=8)
    trainer = _fit(Classification(FUSION, label_names={"1": "unsafe", "0": "safe"}), data)
    assert 0 <= float(trainer.callback_metrics["val/auroc"]) <= 1


@pytest.mark.parametrize("batch_size", [2, 3, 4, 6])
def test_the_auroc_does_not_depend_on_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """Pooled sums may exceed 1 by rounding: torchmetrics would pass that batch alone through a sigmoid."""
    module = _trained(Classification(FUSION))
    scores = iter([1.0000001, 0.9, 0.95, 0.2, 0.7, 0.8])
    monkeypatch.setattr(module.judge, "unsafe_score", lambda table: np.array([next(scores) for _ in table]))
    data = ManifestData(str(_data(tmp_path, ("unsafe", "safe"))), batch_size=batch_size)
    (figures,) = _trainer(tmp_path).validate(module, data, verbose=False)
    assert figures["val/auroc"] == pytest.approx(7 / 9)  # of nine pairs 0.7 loses two
    assert figures["val/auprc"] == pytest.approx((1 + 1 + 3 / 5) / 3)


def test_with_one_class_no_area_is_logged(tmp_path: Path) -> None:
    data = ManifestData(str(_data(tmp_path, ("safe", "safe"))), batch_size=4)
    (figures,) = _trainer(tmp_path).validate(_trained(Classification(FUSION)), data, verbose=False)
    assert set(figures) == {"val/loss"}


def test_a_sigmoid_card_trains_on_several_labels_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.model_entry(FUSION)
    changes = {"score": "sigmoid", "labels": ("blood", "gun", "calm"), "score_meaning": "each by itself"}
    card = ModelCard.from_dict({**entry.card.to_dict(), **changes, "name": "test_sigmoid.fusion"})
    policy = {
        "schema_version": 1,
        "name": "two",
        "version": "1",
        "summary": "blood or guns",
        "pooling": "max",
        "categories": [
            {"name": "harm", "action": "block", "threshold": {"value": 0.5}, "labels": ["blood", "gun"]},
            {"name": "calm", "action": "allow"},
        ],
    }
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(policy), encoding="utf-8")
    made = registry.ModelEntry(card, entry.builder, str(path), registry.RANDOM)
    monkeypatch.setitem(registry._entries, card.name, made)
    module = Classification(card.name, lr=0.01)
    target = module._target({"labels": [("gun", "blood"), (), ("calm",)]})
    assert target.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    partly = module._target({"labels": [("gun",), ()], "judged": [("gun", "calm"), None]})
    assert str(partly.tolist()) == "[[nan, 1.0, 0.0], [0.0, 0.0, 0.0]]"
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss = module.criterion(logits, partly)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))  # of the five that were judged
    assert logits.grad is not None
    assert logits.grad[0, 0] == 0
    assert logits.grad[0, 1] < 0
    with pytest.raises(BadInputError, match='"bood"; did you mean "blood"'):
        module._target({"labels": [()], "judged": [("bood",)]})
    trainer = _fit(module, ManifestData(str(_data(tmp_path, ("blood|gun", ""))), batch_size=8), epochs=30)
    figures = trainer.callback_metrics
    assert float(figures["val/auroc"]) == 1.0  # red fields are blood and guns
    assert float(figures["val/loss"]) < 0.7


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Classification(CLIP), "zero-shot and has no labels to train on: use Contrastive"),
        (lambda: Contrastive(FUSION), "has no text tower to train against"),
        (lambda: Classification("test_nsfwjs.random", text_dropout=0.5), "no dropout of either"),
    ],
)
def test_a_model_of_the_other_kind_is_refused(build: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        build()


def test_init_from_starts_with_the_weights_and_tokenizer_of_a_release(tmp_path: Path) -> None:
    data = ManifestData(str(_data(tmp_path / "data", ("1", "0"))), batch_size=8)
    trained = Contrastive(CLIP)
    _fit(trained, data).save_checkpoint(tmp_path / "a.ckpt")
    release_checkpoint(tmp_path / "a.ckpt", tmp_path / "release")
    module = Contrastive(CLIP, init_from=str(tmp_path / "release"))
    assert module.model.tokenizer_json == trained.model.tokenizer_json
    state = trained.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in module.model.state_dict().items())
    with pytest.raises(BadInputError, match=f"is a {CLIP}, the recipe trains {FUSION}"):
        Classification(FUSION, init_from=str(tmp_path / "release"))


def test_a_policy_judges_in_training_as_the_scorer_judges(tmp_path: Path) -> None:
    """Phrases, pooling and temperature, views and frames: predictions, `val/auroc` and the scorer rank alike."""
    manifest = _data(tmp_path / "data", ("1", "0"))
    policy = dataclasses.replace(Policy.read(Path("configs/policy/safeclip.yaml")), temperature=4.0, pooling="mean")
    policy = dataclasses.replace(policy, frames=2)
    (tmp_path / "policy.yaml").write_text(policy.to_yaml(), encoding="utf-8")
    module = Contrastive(CLIP, policy=str(tmp_path / "policy.yaml"))
    trainer = quiet_trainer(num_sanity_val_steps=0, default_root_dir=tmp_path)
    trainer.fit(module, ManifestData(str(manifest), batch_size=8))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    rows = [row for row in csv.DictReader(manifest.open(encoding="utf-8")) if row["split"] == "val"]
    release_checkpoint(tmp_path / "last.ckpt", tmp_path / "release")
    with zoo.load_scorer(tmp_path / "release") as scorer:
        verdicts = scorer.verdicts([str(manifest.parent / row["image"]) for row in rows])
        ranked = [scorer.judge.rank(verdict) for verdict in verdicts]
    wanted = roc_auc_score([row["label"] == "1" for row in rows], ranked)
    (figures,) = trainer.validate(module, ManifestData(str(manifest), batch_size=4), verbose=False)
    assert figures["val/auroc"] == pytest.approx(wanted)
    test_rows = [row for row in csv.DictReader(manifest.open(encoding="utf-8")) if row["split"] == "test"]
    damaged, long, many = (manifest.parent / row["image"] for row in test_rows[:3])
    with damaged.open("ab") as stream:
        stream.write(b"more")
    Image.effect_noise((40, 120), 60).save(long)
    frames = [Image.effect_noise((40, 40), 10 * number) for number in range(1, 4)]
    frames[0].save(many, "GIF", save_all=True, append_images=frames[1:])
    batches = trainer.predict(module, ManifestData(str(manifest), batch_size=4))
    assert batches is not None
    predicted = [Verdict.from_dict(row) for batch in batches for row in batch]
    with zoo.load_scorer(tmp_path / "release") as scorer:
        judged = scorer.verdicts([str(manifest.parent / row["image"]) for row in test_rows])
    for ours, theirs in zip(predicted, judged, strict=True):
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-5)
        assert (ours.decision, ours.unseen) == (theirs.decision, theirs.unseen)
    assert [list(verdict.unseen or {}) for verdict in predicted[:4]] == [["damaged"], [], ["frames"], []]
    assert [verdict.place is not None for verdict in predicted[:4]] == [False, True, True, False]
    assert module.bank().norm(dim=1) == pytest.approx(0.25)  # unit norm over the temperature
