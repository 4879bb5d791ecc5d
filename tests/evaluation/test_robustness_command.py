"""`zoo evaluate robustness` and `zoo leaderboard` on a trained model: attack, store, replay, compare."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from export.onnx.export import export_onnx
from zoo.adversary.threat import Threat
from zoo.cli import run
from zoo.contract.card import ModelCard
from zoo.data.manifest import read_manifest
from zoo.evaluation.robustness.report import RobustnessReport
from zoo.inputs.image import load
from zoo.release.store import load_release, load_scorer, write_release

pytestmark = pytest.mark.usefixtures("traced_once")

FUSION, NSFWJS = "test_multimodal_nsfw.fusion", "test_nsfwjs.random"
COLOURS = {"unsafe": (140, 110, 110), "safe": (110, 110, 140)}
IMAGE = {"schema_version": 1, "norm": "Linf", "eps": "12/255", "attacks": ["fgsm", "apgd-t"], "steps": 8}
TEXT = {
    "schema_version": 1,
    "attacks": ["casing", "homoglyphs", "hotflip"],
    "budget": {"unit": "words", "count": 3},
    "queries": 150,
    "steps": 6,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release that was trained on fields and captions, its bundle, a manifest, and threat models."""
    folder = tmp_path_factory.mktemp("robustness")
    _draw(folder)
    release = load_release(FUSION)
    model = release.model
    assert release.card.image is not None
    rows = read_manifest(folder / "data" / "manifest.csv")
    rows = [row for row in rows if row.split == "val" and row.image and row.text]
    images = np.stack([load(row.image, release.card.image) for row in rows if row.image])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    tokens = model.codec().encode([row.text or "" for row in rows])
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    labels = torch.tensor([release.card.labels.index(row.labels[0]) for row in rows])
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(15):
        present = torch.ones(len(rows), dtype=torch.bool)
        present[step % 3 :: 3] = False
        seen = mask.clone()
        seen[(step + 1) % 3 :: 3] = 0
        loss = torch.nn.functional.cross_entropy(model(pixels, ids, seen, present), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    write_release(model.eval(), release.policy, folder / "release")
    export_onnx(str(folder / "release"), folder / "bundle")
    joint = {"schema_version": 1, "image": IMAGE | {"attacks": ["apgd-t"]}, "text": [TEXT | {"attacks": ["casing"]}]}
    for name, threat in (("image", IMAGE), ("text", TEXT), ("joint", joint)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(threat), encoding="utf-8")
    return folder


def _draw(folder: Path) -> None:
    """40 rows of each split: fields of two colours with captions; of the test rows some lack the image or the text."""
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    with (folder / "data" / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "text", "label", "split", "kind"])
        for number in range(80):
            label, split = ("unsafe", "safe")[number % 2], "val" if number < 40 else "test"
            pixels = (np.array(COLOURS[label]) + rng.normal(0, 8, (40, 40, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / f"{number}.png")
            kind = "both" if split == "val" else ("both", "no image", "no text", "both")[number // 2 % 4]
            image = "" if kind == "no image" else f"{number}.png"
            text = "" if kind == "no text" else f"{'red' if label == 'unsafe' else 'tan'} field {number}"
            writer.writerow([image, text, label, split, kind])


def _command(folder: Path, threat: str, *more: str) -> list[str]:
    given = ["--model", str(folder / "release"), "--data", str(folder / "data" / "manifest.csv"), "--threat"]
    return ["evaluate", "robustness", *given, str(folder / f"{threat}.yaml"), "--positive-label", "unsafe", *more]


def _report(out: Path, threat: str) -> RobustnessReport:
    return RobustnessReport.read(out / f"{FUSION}__{threat}.json")


def test_attack_store_replay_on_release_and_bundle(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, saved = tmp_path / "out", tmp_path / "saved"
    more = ["--out", str(out), "--save", str(saved), "--eps", "0,4/255", "--direction", "both", "--fpr", "0.1"]
    assert run(_command(folder, "image", *more)) == 0
    shown = capsys.readouterr().out
    report = _report(out, "image")
    assert "at a false positive rate of 10 %" in shown
    assert report.counts["not_attackable"] == 10  # of 40 rows one in four has no image
    assert {group.value for group in report.points[0].groups} == {"both", "no image", "no text"}
    worst = report.points[0].worst
    assert worst.broken > 0
    assert worst.attacked <= 30
    assert (out / f"{FUSION}__image.png").read_bytes().startswith(b"\x89PNG")

    # What was stored is within the budget, 8-bit, at the model's size, and what training reads.
    rows = read_manifest(saved / "manifest.csv")
    size = load_release(folder / "release").model.image_size
    spec = load_release(folder / "release").card.image
    assert spec is not None
    with (saved / "manifest.csv").open(encoding="utf-8") as stream:
        records = list(csv.DictReader(stream))
    sources = {row.line: row for row in read_manifest(folder / "data" / "manifest.csv")}
    assert len(rows) == sum(attack.broken for attack in report.points[0].attacks)
    for row, record in zip(rows, records, strict=True):
        source = sources[int(record["source_line"])]
        assert row.image is not None
        assert source.image is not None
        assert Image.open(row.image).size == (size, size)
        steps = load(row.image, spec).astype(int) - load(source.image, spec).astype(int)
        assert 0 < np.abs(steps).max() <= 12
        assert (row.labels, row.split, row.text) == (source.labels, "test", source.text)
        assert record["attack"] in ("fgsm", "apgd-t")
    held = sum(record["survived"] == "1" for record in records)
    assert held > 0
    assert f"examples at the operating point policy: {held} of {len(rows)} hold" in shown
    assert "The examples kept are those of the operating point policy, not of fpr." in report.notes

    # Judged again they turn the verdicts that the manifest says, by the release and by its bundle.
    with load_scorer(folder / "release") as scorer:
        verdicts = scorer.verdicts([row.image for row in rows], [row.text for row in rows])
    wrong = [verdict.is_safe == ("unsafe" in row.labels) for verdict, row in zip(verdicts, rows, strict=True)]
    assert [record["survived"] == "1" for record in records] == wrong
    for model in ("release", "bundle"):
        assert (
            run(["evaluate", "robustness", "--model", str(folder / model), "--replay", str(saved), "--out", str(out)])
            == 0
        )
        found = json.loads((out / f"{FUSION}__replay-saved.json").read_text(encoding="utf-8"))
        assert (found["all"]["examples"], found["all"]["passed"], found["changed"]) == (len(rows), held, 0)
        assert found["all"]["share"]["low"] <= held / len(rows) <= found["all"]["share"]["high"]


def test_a_text_threat_leaves_the_images_and_keeps_to_its_budget(folder: Path, tmp_path: Path) -> None:
    out, saved = tmp_path / "out", tmp_path / "saved"
    assert run(_command(folder, "text", "--out", str(out), "--save", str(saved), "--points", "policy")) == 0
    report = _report(out, "text")
    (point,) = report.points
    names = [attack.attack for attack in point.attacks]
    assert names == ["casing", "homoglyphs", "hotflip", "characters"]
    assert report.counts["not_attackable"] == 10
    assert "The images beside the texts were not changed." in report.notes
    assert not any("examples kept" in note for note in report.notes)  # of one point alone
    by_name = {attack.attack: attack for attack in point.attacks}
    assert by_name["casing"].broken == 0  # the tokenizer lowers all, so nothing of it reaches the model
    assert by_name["casing"].queries > 0
    assert point.worst.broken >= max(attack.broken for attack in point.attacks) > 0
    budget = Threat.read(folder / "text.yaml").text[0].budget
    sources = {str(row.line): row for row in read_manifest(folder / "data" / "manifest.csv")}
    with (saved / "manifest.csv").open(encoding="utf-8") as stream:
        for record in csv.DictReader(stream):
            source = sources[record["source_line"]]
            assert source.text is not None
            assert record["text"] != source.text
            assert budget.permits(source.text, record["text"])
            assert bool(record["image"]) == (source.image is not None)
            assert record["survived"] == "1"  # no rounding touches a text


def test_a_joint_threat_attacks_rows_in_what_they_have(folder: Path, tmp_path: Path) -> None:
    assert run(_command(folder, "joint", "--out", str(tmp_path), "--update-card", "--name", "plain")) == 0
    report = RobustnessReport.read(tmp_path / "plain__joint.json")
    image = tmp_path / "image"
    assert run(_command(folder, "image", "--out", str(image), "--points", "policy")) == 0
    point, alone = report.points[0], _report(image, "image").points[0]
    assert report.counts["not_attackable"] == 0
    assert point.worst.attacked > alone.worst.attacked  # the rows without an image, too
    assert point.worst.broken > 0
    groups = {group.value: group for group in point.groups}
    assert groups["no image"].success_rate.value == 0.0  # case is all that may change there, and it does nothing
    assert groups["no text"].success_rate.count > 0
    card = ModelCard.read(folder / "release" / "card.json")
    threats = {(one.metric, one.threat): one for one in card.measurements}
    found = threats["attack_success_rate", report.budget]
    assert found.value == point.worst.success_rate.value
    assert ("robust_recall at FPR 0.05", report.budget) in threats
    again = report.update_card(folder / "release")
    assert len(again.measurements) == len(card.measurements)  # replaced, not piled up


def test_the_leaderboard_groups_what_can_be_compared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = folder / "quick.yaml"
    quick.write_text(yaml.safe_dump(IMAGE | {"attacks": ["fgsm"]}), encoding="utf-8")
    small = ["--out", str(tmp_path), "--eps", "0,8/255"]
    untrained = tmp_path / "untrained"
    release = load_release(FUSION)
    write_release(release.model, release.policy, untrained)
    assert run(_command(folder, "quick", *small, "--name", "trained")) == 0
    other = _command(folder, "quick", *small, "--name", "untrained")
    other[other.index("--model") + 1] = str(untrained)
    assert run(other) == 0
    assert run(_command(folder, "quick", *small, "--name", "fewer", "--limit", "30")) == 0
    capsys.readouterr()
    table, plot = tmp_path / "table.md", tmp_path / "curve.png"
    assert run(["leaderboard", str(tmp_path), "--out", str(table), "--plot", str(plot), "--sort", "auroc"]) == 0
    text = capsys.readouterr().out
    assert table.read_text(encoding="utf-8") == text
    assert text.count("**manifest.csv, test**") == 2  # another choice of items is another group
    trained = RobustnessReport.read(tmp_path / "trained__quick.json")
    line = next(line for line in text.splitlines() if line.startswith("| `trained` |"))
    success = trained.points[0].worst.success_rate
    assert success.value is not None
    assert f"{100 * success.value:.1f} (" in line
    assert text.index("`trained`") < text.index("`untrained`")
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert run(["leaderboard", str(tmp_path / "trained__quick.json"), "--json"]) == 0
    groups: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert groups[0]["rows"][0]["asr"]["value"] == success.value
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    for args, message in (
        ([str(tmp_path)], "not a robustness report"),
        ([str(tmp_path / "trained__quick.json"), "--sort", "asr_at_fp"], 'did you mean "asr_at_fpr"'),
        ([str(tmp_path / "none.json")], "no such file"),
        ([str(folder / "data")], "holds no robustness report"),
        ([str(tmp_path), "--out", str(tmp_path / "trained__quick.json")], "is what this reads"),
    ):
        assert run(["leaderboard", *args]) == 1
        assert message in capsys.readouterr().err


def test_wrong_calls_are_refused_before_anything_is_attacked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("", encoding="utf-8")
    odd = tmp_path / "odd.yaml"
    odd.write_text(yaml.safe_dump(IMAGE | {"attacks": ["apgd_t"]}), encoding="utf-8")
    bundle = _command(folder, "image")
    bundle[bundle.index("--model") + 1] = str(folder / "bundle")
    nsfwjs = _command(folder, "text")
    nsfwjs[nsfwjs.index("--model") + 1] = NSFWJS
    threat = _command(folder, "image")
    threat[threat.index("--threat") + 1] = str(odd)
    missing = _command(folder, "image")
    missing[missing.index("--threat") + 1] = "configs/threat/linf5.yaml"
    replay = ["evaluate", "robustness", "--model", str(folder / "release"), "--replay", str(taken)]
    for args, message in (
        (bundle, "is a bundle, which has no gradients"),
        (nsfwjs, "judges no text, which this threat changes"),
        (threat, 'no attack is called "apgd_t"; did you mean "apgd-t"'),
        (missing, '"configs/threat/linf4.yaml"'),
        (_command(folder, "image", "--save", str(taken)), "exists and is not empty"),
        (_command(folder, "image", "--positive-label", "unsave"), 'no item is unsafe by the label "unsave"'),
        (_command(folder, "text", "--direction", "both"), "goes with a threat on images"),
        (_command(folder, "text", "--eps", "1/255"), "goes with a threat on images"),
        (_command(folder, "image", "--target", "labels"), "--target labels is for classifiers of images"),
        (_command(folder, "image", "--limit", "0"), "--limit must be at least 1, got 0"),
        (_command(folder, "image", "--eps", "x"), 'got "x"'),
        (replay, "holds no examples.json"),
        ([*replay, "--save", str(taken)], "takes no --save"),
    ):
        assert run(args) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        run(["evaluate", "robustness", "--model", NSFWJS])
    assert caught.value.code == 2
    assert "--data, --threat" in capsys.readouterr().err


def test_weights_that_changed_since_get_no_figures_in_their_card(folder: Path, tmp_path: Path) -> None:
    assert run(_command(folder, "image", "--out", str(tmp_path), "--limit", "12", "--points", "policy")) == 0
    report = _report(tmp_path, "image")
    shutil.copytree(folder / "release", tmp_path / "other")
    write_release(load_release(FUSION).model, load_release(FUSION).policy, tmp_path / "other", overwrite=True)
    with pytest.raises(ValueError, match="other weights than those that were measured"):
        report.update_card(tmp_path / "other")
