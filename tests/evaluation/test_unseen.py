"""What is judged: the rows that training did not see, by labels that occur; and no command succeeds on no row."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from export.verify.inputs import Inputs
from export.verify.report import Check
from tests.trainers import quiet_trainer
from zoo.cli import run
from zoo.contract.card import ModelCard, SplitRule
from zoo.data.folder import write_folder_manifest
from zoo.data.manifest import Row, need_label
from zoo.errors import BadDataError, BadInputError
from zoo.evaluation.labelling import Labelling, read_rows, with_splits
from zoo.evaluation.run import evaluate, retrieval
from zoo.evaluation.text.rankers import read_text_rows
from zoo.registry import model_card
from zoo.release.checkpoint import CHECKPOINT_KEY, release_checkpoint
from zoo.training import Classification, Contrastive, ManifestData

CLIP, FUSION, NSFWJS = "test_safeclip.random", "test_multimodal_nsfw.fusion", "test_nsfwjs.random"


def _manifest(folder: Path, count: int, labels: tuple[str, str] = ("unsafe", "safe"), split: str = "") -> Path:
    """Rows of pictures unlike each other, with texts; without a split unless it is given."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "text", "label", "split"])
        for number in range(count):
            small = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
            small.resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", f"text {number}", labels[number % 2], split])
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[int]]:
    """A release trained on rows without a split, its manifest, and the lines that training kept for the test."""
    folder = tmp_path_factory.mktemp("unseen")
    manifest = _manifest(folder, 60)
    data = ManifestData(str(manifest), batch_size=8, splits=(0.6, 0.2, 0.2), split_seed=5)
    trainer = quiet_trainer(1, default_root_dir=folder, num_sanity_val_steps=0)
    trainer.fit(Classification(FUSION), data)
    trainer.save_checkpoint(folder / "last.ckpt")
    release_checkpoint(folder / "last.ckpt", folder / "release")
    return folder / "release", manifest, [row.line for row in data.by_split["test"]]


def test_the_rule_of_training_is_in_the_card_only_if_it_was_used(trained: tuple[Path, Path, list[int]]) -> None:
    release, manifest, _ = trained
    card = ModelCard.read(release / "card.json")
    assert card.training.split == SplitRule(seed=5, shares=(0.6, 0.2, 0.2))
    folder = manifest.parent / "named"
    folder.mkdir()
    data = ManifestData(str(_manifest(folder, 20, split="train")), batch_size=4)
    trainer = quiet_trainer(1, limit_val_batches=0)
    trainer.fit(Classification(FUSION), data)
    trainer.save_checkpoint(folder / "last.ckpt")
    stored = torch.load(folder / "last.ckpt", weights_only=True)[CHECKPOINT_KEY]
    assert stored["card"]["training"]["split"] is None


@pytest.mark.parametrize("asked", [[], ["--split", "test"]])
def test_evaluate_judges_the_rows_that_training_did_not_see(
    trained: tuple[Path, Path, list[int]], asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    release, manifest, lines = trained
    arguments = ["evaluate", "--model", str(release), "--data", str(manifest), "--positive-label", "unsafe"]
    assert run([*arguments, *asked]) == 0
    out = capsys.readouterr().out
    assert f"items                    {len(lines)}\n" in out
    assert "60 rows name no split and get the one of training (copies-3, seed 5, shares (0.6, 0.2, 0.2))" in out
    assert f"test {len(lines)}" in out
    rows = read_rows(manifest, None, {}, "test", model=str(release), say=lambda _: None)
    assert [row.line for row in rows] == lines
    assert run([*arguments, "--split", "all"]) == 0
    assert "items                    60\n" in capsys.readouterr().out


def test_a_model_without_a_rule_says_that_training_rows_may_be_among_them(
    trained: tuple[Path, Path, list[int]], tmp_path: Path
) -> None:
    release, manifest, _ = trained
    card = json.loads((release / "card.json").read_text())
    card["training"]["split"] = None
    (tmp_path / "card.json").write_text(json.dumps(card))
    said: list[str] = []
    assert len(read_rows(manifest, None, {}, None, model=str(tmp_path), say=said.append)) == 60
    assert "those trained on may be among them" in said[0]
    with pytest.raises(BadDataError, match="some rows name no split, such as line 2"):
        read_rows(manifest, None, {}, "test", model=str(tmp_path), say=said.append)


def test_of_two_rules_what_one_head_trained_on_tests_no_other() -> None:
    rows = [Row(number, None, f"text {number}", (), "val" if number == 0 else None) for number in range(200)]
    card = model_card(CLIP)
    cards = [card.replace(training=type(card.training)(split=SplitRule(seed=seed))) for seed in (0, 1)]
    apart = [[row.split for row in with_splits(rows, [one], Path("x"), lambda _: None)] for one in cards]
    together = [row.split for row in with_splits(rows, cards, Path("x"), lambda _: None)]
    assert together[0] == "val"
    assert all(("train" in pair) == (one == "train") for *pair, one in zip(*apart, together, strict=True))
    assert Counter(together)["test"] < min(one.count("test") for one in apart)
    assert with_splits(rows, [card], Path("x"), print) is rows


def test_texts_without_a_split_get_the_one_of_training(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text,labels\n" + "".join(f"text {number},loud\n" for number in range(100)), encoding="utf-8")
    with pytest.raises(BadInputError, match="line 2: names no split"):
        read_text_rows(path, ("loud",))
    card = model_card("test_prompt_bert.random")
    card = card.replace(training=type(card.training)(split=SplitRule()))
    by_split = read_text_rows(path, ("loud",), card, lambda _: None)
    assert {split: len(rows) for split, rows in by_split.items()}.keys() == {"train", "val", "test"}
    assert sum(map(len, by_split.values())) == 100


@pytest.mark.parametrize(
    ("labels", "asked", "message"),
    [
        (("1.0", "0.0"), [], 'by the label "1"; the labels are "1.0" (5 rows), "0.0" (5 rows)'),
        (("True", "False"), [], 'the labels are "True" (5 rows), "False" (5 rows)'),
        (("unsafe", "safe"), ["--positive-label", "unsave"], 'by the label "unsave"; the labels are "unsafe"'),
        (("1", "0"), ["--positive-words", "dgo,dgos"], "by the words ['dgo', 'dgos']"),
    ],
)
def test_a_positive_label_that_never_occurs_is_refused(
    tmp_path: Path, labels: tuple[str, str], asked: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = _manifest(tmp_path, 10, labels)
    assert run(["evaluate", "--model", NSFWJS, "--data", str(manifest), *asked]) == 1
    assert message in capsys.readouterr().err


def test_the_label_is_looked_for_in_training_and_verification_too(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, 12, ("1.0", "0.0"), "train")
    with pytest.raises(BadDataError, match=r'no item is unsafe by the label "1"; the labels are "1.0"'):
        quiet_trainer(1).fit(Contrastive(CLIP), ManifestData(str(manifest), batch_size=4))
    with pytest.raises(BadDataError, match='no item is unsafe by the label "1"'):
        Inputs(model_card(NSFWJS), None, Check(data=manifest))
    # Looked for and not there, or no labels at all: no mistake.
    need_label([Row(2, None, "x", ("0",), None, judged=("0", "1"))], "1", manifest)
    need_label([Row(2, None, "x", (), None)], "1", manifest)
    need_label([], "1", manifest)


@pytest.mark.parametrize(
    ("label", "other"), [("1", "1.0"), ("1", "True"), ("1.0", "1"), ("dogs", "Dogs"), ("1", "1\u200b"), ("1", "\uff11")]
)
def test_a_label_in_two_spellings_is_refused(label: str, other: str) -> None:
    rows = [Row(number, None, "x", (name,), None) for number, name in enumerate([label, other, "cats", other])]
    shown = re.escape(ascii(other)[1:-1] if other == "1\u200b" else other)
    message = rf'the label "{label}" \(1 rows\) also stands as "{shown}" \(2 rows\)'
    with pytest.raises(BadDataError, match=message):
        need_label(rows, label, "data.csv")
    need_label(rows, "cats", "data.csv")


def test_that_training_rows_are_judged_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,split\na,train\nb,train\nc,test\n", encoding="utf-8")
    said: list[str] = []
    assert len(read_rows(path, None, {}, None, say=said.append)) == 3
    assert said == [f"{path}: 2 of 3 rows are of the split train, and all are judged; ask for one split"]
    assert len(read_rows(path, None, {}, "all", say=said.append)) == 3
    assert len(said) == 1


def test_no_command_succeeds_on_rows_none_of_which_is_readable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = _manifest(tmp_path, 6, ("1", "0"), "test")
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    assert run(["evaluate", "--model", NSFWJS, "--data", str(manifest)]) == 1
    assert "none of 6 items could be judged; the first: " in capsys.readouterr().err
    with pytest.raises(BadDataError, match="none of 1 items could be judged"):
        evaluate(NSFWJS, [Row(2, tmp_path / "none.png", None, ("1",), None)], Labelling())
    (tmp_path / "tree" / "train" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "train" / "a" / "x.png").write_bytes(b"no image")
    with pytest.raises(BadDataError, match="none of 1 images in train is readable"):
        write_folder_manifest(tmp_path / "tree", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def _of_splits(folder: Path) -> Path:
    """Twelve rows whose unsafe ones are all of the split train; the others have test rows too."""
    manifest = _manifest(folder, 12, ("1", "0"), "train")
    lines = manifest.read_text(encoding="utf-8").splitlines()
    safe = [line.replace(",0,train", ",0,test") if number > 6 else line for number, line in enumerate(lines)]
    manifest.write_text("\n".join(safe) + "\n", encoding="utf-8")
    return manifest


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--model", NSFWJS, "--split", "test"],
        ["evaluate", "--model", NSFWJS, "--split", "test", "--positive-words", "text 0,text 2"],
        ["evaluate", "robustness", "--model", NSFWJS, "--threat", "linf4", "--policy", "nsfwjs"],
        ["evaluate", "guard", "--lvlm", "none", "--detector", CLIP, "--split", "test", "--columns", "text=text"],
    ],
)
def test_a_positive_label_must_occur_in_the_split_that_is_judged(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = _of_splits(tmp_path)
    assert run([*command, "--data", str(manifest)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{manifest}, split test: no item is unsafe by the " in said
    assert "words" in said or 'the labels are "0" (3 rows)' in said


def test_training_says_that_a_split_has_one_kind_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ManifestData(str(_of_splits(tmp_path)), batch_size=4)
    module = Classification(NSFWJS, label_names={"1": "porn", "0": "neutral"})
    module._has_weights = True
    (figures,) = quiet_trainer(1).test(module, data, verbose=False)
    assert set(figures) == {"test/loss"}
    assert "test: no AUROC, as its labels make no row unsafe" in caplog.text


def test_a_test_split_that_cannot_be_read_is_not_exchanged_for_another(tmp_path: Path) -> None:
    manifest = _of_splits(tmp_path)
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("train", "val"), encoding="utf-8")
    for number in (7, 9, 11):  # those of the test
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    module = Classification(NSFWJS, label_names={"1": "porn", "0": "neutral"})
    module._has_weights = True
    for task, error in (
        ("test", 'none of the rows is readable for the split "test"'),
        ("predict", "none of 3 rows could be judged; the first: line 9: "),
    ):
        trainer = quiet_trainer(1, default_root_dir=tmp_path)
        with pytest.raises(BadDataError, match=error):
            getattr(trainer, task)(module, ManifestData(str(manifest), batch_size=4))


def test_predictions_none_of_which_is_a_verdict_are_an_error(tmp_path: Path) -> None:
    module = Classification(NSFWJS)
    module._has_weights = True
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1e30)  # finite, and its products are not
    data = ManifestData(str(_manifest(tmp_path, 4, split="test")), batch_size=4)
    with pytest.raises(BadDataError, match=r"none of 4 rows could be judged; the first: line 2: "):
        quiet_trainer(1, default_root_dir=tmp_path).predict(module, data)
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 4


def test_retrieval_needs_rows_of_both_kinds(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="none of 1 rows has an image and a text"):
        retrieval(CLIP, [Row(2, tmp_path / "x.png", None, (), None)])


@pytest.mark.parametrize("task", ["validate", "test", "predict"])
def test_random_weights_are_not_judged_by(tmp_path: Path, task: str) -> None:
    manifest = _manifest(tmp_path, 24, split="train")
    lines = manifest.read_text(encoding="utf-8").splitlines()
    lines[9:] = [line.replace(",train", ",val" if number < 8 else ",test") for number, line in enumerate(lines[9:])]
    manifest.write_text("\n".join(lines), encoding="utf-8")
    data = ManifestData(str(manifest), batch_size=4)
    trainer = quiet_trainer(1, default_root_dir=tmp_path / "logs", num_sanity_val_steps=0)
    with pytest.raises(BadInputError, match=f"{task}: the weights are random"):
        getattr(trainer, task)(Classification(FUSION), data)
    assert not list(tmp_path.rglob("predictions.jsonl"))
    module = Classification(FUSION)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    wanted = getattr(trainer, task)(module, data)
    again = getattr(quiet_trainer(1, default_root_dir=tmp_path), task)(
        Classification(FUSION), data, ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert again == wanted
    if task == "predict":
        with pytest.raises(BadInputError, match="predict: the batches name no images"):
            trainer.predict(module, data.evaluation_dataloader("test"))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: Contrastive(CLIP), f"holds {FUSION} with architecture test_multimodal_nsfw; .* builds {CLIP}"),
        (lambda: Classification(FUSION, model_args={"heads": 1}), "with hparams .*'heads': 2.* with .*'heads': 1"),
    ],
)
def test_the_checkpoint_of_another_model_is_refused(
    trained: tuple[Path, Path, list[int]], module: Callable[[], Any], message: str
) -> None:
    _, manifest, _ = trained
    data = ManifestData(str(_manifest(manifest.parent / "other", 12, ("1", "0"))), batch_size=4, splits=(1, 1, 1))
    with pytest.raises(BadDataError, match=message):
        quiet_trainer(1).validate(module(), data, ckpt_path=manifest.parent / "last.ckpt", weights_only=True)


def test_rows_that_are_split_by_another_rule_than_in_training_are_warned_of(
    trained: tuple[Path, Path, list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    _, manifest, _ = trained
    for seed in (5, 6):
        data = ManifestData(str(manifest), batch_size=8, splits=(0.6, 0.2, 0.2), split_seed=seed)
        checkpoint = manifest.parent / "last.ckpt"
        quiet_trainer(1).validate(Classification(FUSION), data, ckpt_path=checkpoint, weights_only=True)
        assert ("in training by SplitRule" in caplog.text) is (seed == 6)


def test_what_is_for_review_because_it_was_not_seen_whole_is_told_apart(tmp_path: Path) -> None:
    still, *later = [Image.effect_noise((48, 48), 10 * number) for number in range(1, 4)]
    still.save(tmp_path / "still.png")
    still.save(tmp_path / "many.gif", save_all=True, append_images=later)
    rows = [Row(2, tmp_path / "still.png", None, ("0",), None), Row(3, tmp_path / "many.gif", None, ("0",), None)]
    figures = evaluate(CLIP, rows, Labelling()).figures
    assert (figures["flagged_share"], figures["unseen_share"], figures["fpr"]) == (0.5, 0.5, 0.5)
    assert "unseen_share" not in evaluate(CLIP, rows[:1], Labelling()).figures
