"""The `zoo` command: exit statuses, what is printed where, and figures that agree with a count by hand."""

from __future__ import annotations

import argparse
import csv
import errno
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from zoo.cli import COMMANDS, build_parser, run
from zoo.contract.card import ModelCard
from zoo.contract.policy import Policy
from zoo.contract.verdict import Verdict
from zoo.errors import ClosedError
from zoo.registry import list_models
from zoo.release.store import load_release, load_scorer, write_release

CLIP, NSFWJS, FUSION = "test_safeclip.random", "test_nsfwjs.random", "test_multimodal_nsfw.fusion"


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def _policy(folder: Path, threshold: float, action: str = "block") -> str:
    """A policy for NSFWJS that flags whatever scores above a threshold on porn."""
    found = {
        "schema_version": 1,
        "name": "strict",
        "version": "1",
        "summary": "for tests",
        "categories": [{"name": "porn", "action": action, "threshold": {"value": threshold}}],
    }
    path = folder / f"{action}-{threshold}.yaml"
    path.write_text(yaml.safe_dump(found), encoding="utf-8")
    return str(path)


def _verdicts(out: str) -> list[Verdict]:
    return [Verdict.from_dict(json.loads(line)) for line in out.splitlines()]


# zoo list, zoo show, zoo import


def test_list_prints_the_names_that_match(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "test_*", "--task", "zero_shot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == list_models("test_*", task="zero_shot")
    assert all(line.endswith(" random (for tests)") for line in lines)
    assert run(["list", "*vit_l14.*", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["q16_vit_l14.prompts"]["weights"] == "train"
    clip = rows["safeclip_vit_l14.zeroshot"]
    assert (clip["weights"], clip["weights_from"]) == ("pull", "hf-hub:openai/clip-vit-large-patch14")
    assert run(["list", "nothing*"]) == 1
    assert 'no model matches "nothing*"' in capsys.readouterr().out


def test_list_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--table"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list_models()


def test_show_prints_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", CLIP]) == 0
    card = ModelCard.from_dict(json.loads(capsys.readouterr().out))
    assert card.name == CLIP
    release = load_release(NSFWJS)
    written = write_release(release.model, release.policy, tmp_path / "release")
    assert run(["show", str(tmp_path / "release")]) == 0
    assert ModelCard.from_dict(json.loads(capsys.readouterr().out)) == written


@pytest.mark.parametrize(
    "args", [["show", "test_safeclip.randon"], ["score", "--model", "test_safeclip.randon", "a.jpg"]]
)
def test_an_unknown_model_ends_with_status_1_and_the_close_match(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith('zoo: no model is named "test_safeclip.randon"; did you mean "test_safeclip.random"')


def test_what_cannot_be_imported_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "release"
    assert run(["import", "nsfwjs", str(tmp_path), "--out", str(out)]) == 1
    assert "model.json" in capsys.readouterr().err
    assert not out.exists()


def test_published_nsfwjs_weights_become_a_release(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], photo: str
) -> None:
    found = next(iter(sorted(path.parent for path in shared.rglob("model.json") if "mobilenet_v2" in str(path))), None)
    if found is None:
        pytest.skip("no NSFWJS weights among the shared data")
    out = tmp_path / "release"
    assert run(["import", "nsfwjs", str(found), "--out", str(out)]) == 0
    assert "nsfwjs_mobilenet_v2.gantman" in capsys.readouterr().out
    assert run(["score", "--model", str(out), photo, "--json"]) == 0
    assert _verdicts(capsys.readouterr().out)[0].decision == "safe"


def test_wrong_usage_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["scroe"], ["show"], ["list", "--task", "guessing"]):
        with pytest.raises(SystemExit) as caught:
            run(args)
        assert caught.value.code == 2
    assert "usage: zoo" in capsys.readouterr().err


# zoo score


@pytest.mark.parametrize(
    ("threshold", "action", "decision", "status"),
    [(1.0, "block", "safe", 0), (0.0, "block", "unsafe", 3), (0.0, "review", "review", 3)],
)
def test_the_status_tells_the_decision(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    photo: str,
    threshold: float,
    action: str,
    decision: str,
    status: int,
) -> None:
    policy = _policy(tmp_path, threshold, action)
    assert run(["score", "--model", NSFWJS, "--policy", policy, "--json", photo, photo]) == status
    found = _verdicts(capsys.readouterr().out)
    assert [verdict.decision for verdict in found] == [decision] * 2
    assert [verdict.source for verdict in found] == [photo] * 2
    assert found[0].policy == Policy.read(Path(policy)).id


def test_what_cannot_be_judged_outranks_what_is_unsafe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], photo: str
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    images = [photo, str(tmp_path / "broken.jpg"), str(tmp_path / "none.jpg")]
    assert run(["score", "--model", NSFWJS, "--policy", _policy(tmp_path, 0.0), "--json", *images]) == 4
    found = _verdicts(capsys.readouterr().out)
    assert [verdict.decision for verdict in found] == ["unsafe", "unknown", "unknown"]
    assert [verdict.status for verdict in found] == ["ok", "unreadable", "unreadable"]


def test_the_table_is_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("[red]a.png")
    assert run(["score", "--model", NSFWJS, "--policy", _policy(tmp_path, 0.0), "[red]a.png", "none.jpg"]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert any(f"{NSFWJS}, policy strict@1#" in line for line in lines)
    (judged,) = [line for line in lines if "[red]a.png" in line]  # the brackets are no markup
    assert "unsafe" in judged
    assert "porn" in judged
    assert any("none.jpg" in line and "unknown" in line and "unreadable" in line for line in lines)


def test_one_text_goes_with_every_image_or_each_with_its_own(capsys: pytest.CaptureFixture[str], photo: str) -> None:
    def scores(*args: str) -> list[float]:
        run(["score", "--model", FUSION, "--json", *args])
        return [verdict.scores["unsafe"] for verdict in _verdicts(capsys.readouterr().out)]

    one = scores(photo, photo, "--text", "a dog")
    assert one[0] == one[1]
    first, second = scores(photo, photo, "--text", "a dog", "--text", "two cats and a long tail")
    assert first == pytest.approx(one[0], abs=1e-6)
    assert second != pytest.approx(first, abs=1e-9)
    assert len(scores("--text", "a dog")) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", NSFWJS], "nothing to judge: name image files or folders, or give --text"),
        (["--model", NSFWJS, "a.jpg", "--text", "a dog"], "judges images only, so the text would be ignored"),
        (["--model", FUSION, "a.jpg", "b.jpg", "c.jpg", "--text", "a", "--text", "b"], "3 images and 2 texts"),
        (["--model", NSFWJS, "a.jpg", "--policy", "configs/policy/unsaef.yaml"], 'mean "configs/policy/unsafe.yaml"'),
        (["--model", "laion_nsfw_vit_b32.published", "a.jpg"], "no downloadable weights are registered"),
        (["--model", "./none", "a.jpg"], "no such directory"),
    ],
)
def test_a_call_that_makes_no_sense_ends_with_status_1(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert run(["score", *args]) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


# zoo evaluate


def _manifest(folder: Path) -> Path:
    """Six items: two unsafe, three safe (one of them with two captions), one unlabelled; and one unreadable."""
    path = folder / "manifest.csv"
    rows = [
        ("a.png", "a red dog", "1", "test"),
        ("b.png", "a blue cat", "1", "test"),
        ("c.png", "a green hill", "0", "test"),
        ("d.png", "a puppy sleeps", "0", "train"),
        ("d.png", "grey all over", "0", "train"),
        ("e.png", "hotdogs", "0", "test"),
        ("f.png", "nothing", "", "test"),
        ("none.png", "a lost dog", "1", "test"),
    ]
    for name, colour in zip("abcdef", ("red", "blue", "green", "grey", "white", "black"), strict=True):
        Image.linear_gradient("L").convert("RGB").save(folder / f"{name}.png")
        with Image.open(folder / f"{name}.png") as image:
            Image.blend(image.convert("RGB"), Image.new("RGB", image.size, colour), 0.7).save(folder / f"{name}.png")
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("image", "text", "label", "split"), *rows])
    return path


def _figures(out: str) -> dict[str, str]:
    return dict(line.split() for line in out.splitlines() if len(line.split()) == 2)


def _flagged(folder: Path, capsys: pytest.CaptureFixture[str], policy: str) -> dict[str, bool]:
    """Which images a policy flags, by `zoo score`."""
    images = [str(folder / f"{name}.png") for name in "abcdef"]
    run(["score", "--model", NSFWJS, "--policy", policy, "--json", *images])
    return {Path(v.source).stem: v.decision == "unsafe" for v in _verdicts(capsys.readouterr().out)}


def _middle(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """A policy whose threshold divides the six images."""
    images = [str(folder / f"{name}.png") for name in "abcdef"]
    run(["score", "--model", NSFWJS, "--policy", _policy(folder, 1.0), "--json", *images])
    scores = sorted(verdict.scores["porn"] for verdict in _verdicts(capsys.readouterr().out))
    return _policy(folder, (scores[2] + scores[3]) / 2)


def test_the_figures_agree_with_a_count_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = _manifest(tmp_path)
    policy = _middle(tmp_path, capsys)
    flagged = _flagged(tmp_path, capsys, policy)
    assert sum(flagged.values()) == 3
    report = tmp_path / "report"
    assert (
        run(["evaluate", "--model", NSFWJS, "--data", str(manifest), "--policy", policy, "--report", str(report)]) == 0
    )
    found = _figures(capsys.readouterr().out)
    assert (found["items"], found["unjudged"]) == ("7", "1")
    assert (found["positives"], found["negatives"]) == ("2", "3")  # the lost one is not judged
    assert float(found["flagged_share"]) == 0.5
    assert float(found["tpr"]) == pytest.approx((flagged["a"] + flagged["b"]) / 2)
    assert float(found["fpr"]) == pytest.approx(sum(flagged[name] for name in "cde") / 3, abs=1e-3)
    assert 0 <= float(found["auroc"]) <= 1
    assert found["report"] == str(report / "report.html")
    assert (report / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "policy" in (report / "report.html").read_text(encoding="utf-8")


def test_words_in_any_caption_make_an_item_unsafe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--model", NSFWJS, "--data", str(_manifest(tmp_path)), "--positive-words", "Dog, puppy"]
    assert run(arguments) == 0
    found = _figures(capsys.readouterr().out)
    assert (found["positives"], found["negatives"]) == ("2", "4")  # a and d; hotdogs are no dog


def test_one_split_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = _manifest(tmp_path)
    assert run(["evaluate", "--model", NSFWJS, "--data", str(manifest), "--split", "test"]) == 0
    assert _figures(capsys.readouterr().out)["items"] == "6"
    assert run(["evaluate", "--model", NSFWJS, "--data", str(manifest), "--split", "train"]) == 1
    assert 'split train: no item is unsafe by the label "1"' in capsys.readouterr().err
    assert run(["evaluate", "--model", NSFWJS, "--data", str(manifest), "--split", "val"]) == 1
    assert 'no rows of the split "val"' in capsys.readouterr().err
    manifest.write_text("image\na.png\n", encoding="utf-8")
    assert run(["evaluate", "--model", NSFWJS, "--data", str(manifest), "--split", "test"]) == 1
    assert "some rows name no split" in capsys.readouterr().err


def test_a_text_too_long_is_one_unjudged_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(f"text,label,split\n{'x' * 100_001},unsafe,test\nfine,safe,test\n", encoding="utf-8")
    arguments = ["evaluate", "--model", FUSION, "--data", str(path), "--split", "test", "--positive-label", "unsafe"]
    assert run(arguments) == 0
    found = _figures(capsys.readouterr().out)
    assert (found["items"], found["unjudged"], found["negatives"]) == ("2", "1", "1")


def test_renamed_columns_and_their_close_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = _manifest(tmp_path)
    arguments = ["evaluate", "--model", NSFWJS, "--data", str(manifest), "--positive-label", "a red dog", "--columns"]
    assert run([*arguments, "label=text,text=label"]) == 0
    assert "positives" in _figures(capsys.readouterr().out)
    assert run([*arguments, "label=labl"]) == 1
    assert 'no column "labl"; did you mean "label"' in capsys.readouterr().err


def test_the_card_takes_the_figures_and_the_release_still_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "release"
    release = load_release(NSFWJS)
    write_release(release.model, release.policy, folder)
    arguments = ["evaluate", "--model", str(folder), "--data", str(_manifest(tmp_path)), "--update-card"]
    assert run(arguments) == 0
    found = _figures(capsys.readouterr().out)
    first = load_release(folder).card.measurements
    figures = {measured.metric: measured.value for measured in first}
    assert figures.keys() == found.keys() > {"auroc", "tpr", "fpr"}
    assert figures["auroc"] == pytest.approx(float(found["auroc"]), rel=1e-3)
    assert {measured.data for measured in first} == {f"manifest.csv, policy {release.policy.id}"}
    assert run(arguments) == 0
    assert len(load_release(folder).card.measurements) == len(first)  # replaced, not repeated
    assert run([*arguments, "--policy", _policy(tmp_path, 0.5)]) == 0
    assert len(load_release(folder).card.measurements) == 2 * len(first)


def test_only_the_card_of_a_release_takes_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bundles: dict[str, Path]
) -> None:
    for model in (NSFWJS, str(bundles[NSFWJS])):
        assert run(["evaluate", "--model", model, "--data", str(_manifest(tmp_path)), "--update-card"]) == 1
        assert "--update-card writes into a release directory" in capsys.readouterr().err


def test_retrieval_is_for_zero_shot_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = _manifest(tmp_path)
    manifest.write_text(
        "".join(line for line in manifest.open(encoding="utf-8") if "none" not in line), encoding="utf-8"
    )
    arguments = ["evaluate", "--data", str(manifest), "--retrieval", "--model"]
    assert run([*arguments, CLIP]) == 0
    found = _figures(capsys.readouterr().out)
    assert found["image_to_text_r10"] == "1"  # of seven texts, ten are all
    assert float(found["text_to_image_r1"]) <= float(found["text_to_image_r5"]) <= 1
    assert run([*arguments, NSFWJS]) == 1
    assert "retrieval is for zero-shot models" in capsys.readouterr().err


def _help_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The help of each command of a parser, by its name."""
    (commands,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return {name: one.format_help() for name, one in commands.choices.items()}


def test_a_command_alone_is_parsed_as_among_all() -> None:
    every = _help_of(build_parser())
    own = {name: _help_of(build_parser(name)) for name in COMMANDS}
    assert [name for name in COMMANDS if own[name].get(name) != every[name]] == []
    others = {"export", "verify", "bench", "bundle", "policy"}  # of the package export
    assert set(every) == {one for parsers in own.values() for one in parsers} | others


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["scroe"], 'unknown command "scroe"; did you mean "score"?'),
        (["export", "onxx"], 'unknown command "onxx"; did you mean "onnx"?'),
        (["score", "--modle", "x", "a.png"], 'unknown option "--modle"; did you mean "--model"'),
        (["list", "--tsk=panel"], 'unknown option "--tsk"; did you mean "--task"'),
        (["bench", "b", "--input", "jpg"], "invalid choice: 'jpg'; did you mean \"jpeg\"?"),
        (["list", "a", "b"], "unrecognized arguments: b"),
    ],
)
def test_what_is_unknown_names_its_close_match(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(args)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_text_that_begins_with_dashes_is_no_option(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", "--model", FUSION, photo, "--text", "--no such option", "--json"]) in (0, 3)
    assert json.loads(capsys.readouterr().out)["status"] == "ok"


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "zoo: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "zoo: /x/y: Permission denied"),
        (ModuleNotFoundError("No module named 'rich'", name="rich"), 'zoo: the package "rich" is not installed'),
        (RecursionError("maximum recursion depth exceeded"), "zoo: the input is nested too deeply"),
    ],
)
def test_what_the_system_refuses_ends_in_one_line(
    problem: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(options: object) -> str:
        raise problem

    monkeypatch.setattr("zoo.commands.common.shipped", lambda kind: refuse(None))
    assert run(["recipes"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.commands.common.shipped", lambda kind: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(["recipes"])


def test_a_closed_scorer_says_so(photo: str) -> None:
    with load_scorer(NSFWJS) as scorer:
        assert scorer.verdict(photo).status == "ok"
    with pytest.raises(ClosedError, match="this scorer is closed"):
        scorer.verdicts([photo])
