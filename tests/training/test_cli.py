"""The training command line: every shipped recipe binds, wrong keys are named with what was meant, configs merge."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import SUPPRESS, ArgumentParser

import zoo.training
from zoo.assets import assets_root, shipped
from zoo.cli import run as zoo_run
from zoo.training.cli import RecipeCheck, _cli, check, run

FRAGMENT = re.compile(r"(?:\.\./)?configs/[\w./-]+\.yaml")


def _bind(*args: str) -> Any:
    """The configuration of `fit` with these arguments, bound to its classes, nothing built."""
    return _cli(RecipeCheck, ["fit", *args]).config["fit"]


def _recipe(folder: Path, **changes: Any) -> str:
    """A small recipe; a change names a dotted key with `__` for each dot."""
    config: dict[str, Any] = {
        "trainer": {"max_epochs": 3, "accelerator": "cpu"},
        "model": {"class_path": "zoo.training.Contrastive", "init_args": {"model": "test_safeclip.random"}},
        "data": {"class_path": "zoo.training.ManifestData", "init_args": {"manifest": "none.csv"}},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = config
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("path", shipped("recipe").values(), ids=shipped("recipe").keys())
def test_every_shipped_recipe_binds(path: Path) -> None:
    found = check(path)
    assert found["model"].startswith("zoo.")
    assert found["data"].startswith("zoo.")


@pytest.mark.parametrize("path", shipped("recipe").values(), ids=shipped("recipe").keys())
def test_every_shipped_recipe_says_how_to_launch_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = "".join(re.match(r"(?:#.*\n)*", text)[0])  # type: ignore[index]
    assert f"fit --config recipes/{path.name}" in header
    for name in FRAGMENT.findall(text):
        assert (assets_root() / name.removeprefix("../")).is_file(), name


def test_a_copied_recipe_binds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run(["recipes", "copy", "quickstart", "--out", str(tmp_path)]) == 0
    copy = tmp_path / "recipes" / "quickstart.yaml"
    assert str(copy) in capsys.readouterr().out.splitlines()
    assert copy.read_bytes() == shipped("recipe")["quickstart"].read_bytes()
    assert zoo_run(["recipes", "check", str(copy)]) == 0
    assert capsys.readouterr().out == f"{copy}: ok, zoo.training.Contrastive with zoo.training.ManifestData\n"
    assert zoo_run(["recipes", "copy", "quickstart", "--out", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_recipes_are_listed_with_their_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped("recipe"))
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["recipes", "copy", "quickstrat"], 'no recipe is named "quickstrat"; did you mean "quickstart"'),
        (
            ["recipes", "check", "recipes/quickstar.yaml"],
            'no such file, here or among the shipped ones; did you mean "recipes/quickstart.yaml"',
        ),
    ],
)
def test_a_wrong_recipe_name_is_refused(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_run(args) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("trainr__max_epochs", 2, "trainer.max_epochs"),
        ("trainer__max_epoch", 2, "trainer.max_epochs"),
        ("model__init_args__label_smothing", 0.1, "label_smoothing"),
        ("data__init_args__batchsize", 8, "batch_size"),
        ("model__class_path", "zoo.training.Contrastve", "Contrastive"),
        ("model__class_path", "zoo.trainig.Contrastive", None),
        ("data__class_path", "zoo.training.ManifestDatta", "ManifestData"),
    ],
)
def test_a_wrong_key_is_refused_with_the_close_match(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: object, match: str | None
) -> None:
    with pytest.raises(SystemExit) as caught:
        check(Path(_recipe(tmp_path, **{key: value})))
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert str(value) in message or key.split("__")[-1] in message
    assert match is None or re.search(rf'did you mean (".*" or )*"{match}"', message)


@pytest.mark.parametrize("name", zoo.training.__all__)
def test_help_says_what_each_argument_is(name: str) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(getattr(zoo.training, name), "class")
    helps = {action.dest: action.help for action in parser._actions if action.dest.startswith("class.")}
    assert len(helps) > 5
    assert [key for key, text in helps.items() if not text or text == SUPPRESS] == []


@pytest.mark.parametrize("name", zoo.training.__all__)
def test_arguments_after_the_first_have_names(name: str) -> None:
    kinds = [one.kind for one in inspect.signature(getattr(zoo.training, name)).parameters.values()]
    assert set(kinds[1:]) <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


def test_a_tower_to_harden_takes_no_other_weights_than_its_release() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(zoo.training.RobustTower, "class")
    names = {action.dest.removeprefix("class.") for action in parser._actions}
    assert {"init_from", "policy", "lr_factors"} <= names
    assert not names & {"model_args", "image_weights", "text_weights", "kwargs"}


def test_a_wrong_option_is_refused_with_the_close_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["fit", "--config", _recipe(tmp_path), "--trainer.max_epocks", "2"])
    assert caught.value.code == 2
    assert 'did you mean "trainer.max_epochs"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("last", "option", "first"),
    [
        ("lightning.pytorch.callbacks.EarlyStopping", ".moniter", '\'moniter\'; did you mean "monitor" or "mode"?'),
        (
            "zoo.training.callbacks.DataShare",
            ".moniter",
            "'moniter' is not an argument of zoo.training.callbacks.Data",
        ),
        ("lightning.pytorch.callbacks.EarlyStopping", "", 'Parser key "trainer.callbacks":'),
    ],
)
def test_an_option_of_callbacks_is_matched_with_the_arguments_of_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], last: str, option: str, first: str
) -> None:
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
    callbacks = [stopping, stopping if last in stopping.values() else {"class_path": last}]
    recipe = _recipe(tmp_path, trainer__callbacks=callbacks)
    with pytest.raises(SystemExit) as caught:
        run(["fit", "--config", recipe, f"--trainer.callbacks.init_args{option}", "val/r1"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.partition("error: ")[2].startswith(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__init_args__model": "test_safeclip.randon"}, 'did you mean "test_safeclip.random"'),
        ({"model__init_args__policy": "configs/policy/quickstar.yaml"}, "configs/policy/quickstart.yaml"),
        ({}, "none.csv: no such manifest file"),
        ({"trainer__strategy": "ddb"}, "an invalid strategy name: `strategy='ddb'`"),
        ({"trainer__accumulate_grad_batches": 0}, "--trainer.accumulate_grad_batches is at least 1, got 0"),
        ({"trainer__devices": "-7"}, "`devices` selected with `CPUAccelerator` should be an int > 0"),
    ],
)
def test_what_the_zoo_refuses_ends_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(["fit", "--config", _recipe(tmp_path, trainer__fast_dev_run=True, **changes)])
    assert str(caught.value.code).startswith("zoo: ")  # printed on standard error, with status 1
    assert message in str(caught.value.code)


def test_a_relative_interpolation_is_resolved_after_the_command_line(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, model__init_args__lr=0.01, model__init_args__weight_decay="${.lr}")
    assert _bind("--config", recipe).model.init_args.weight_decay == 0.01
    config = _bind("--config", recipe, "--model.init_args.lr", "0.5")
    assert (config.model.init_args.lr, config.model.init_args.weight_decay) == (0.5, 0.5)
    assert config.model.init_args.recipe == "mine"


def test_a_second_config_changes_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    smoke = str(assets_root() / "configs" / "trainer" / "smoke.yaml")
    config = _bind("--config", _recipe(tmp_path, model__init_args__lr=0.25), "--config", smoke)
    assert config.trainer.fast_dev_run is True
    assert (config.trainer.max_epochs, config.trainer.accelerator) == (3, "cpu")
    assert (config.model.init_args.lr, config.model.init_args.model) == (0.25, "test_safeclip.random")
    assert config.model.init_args.recipe == "mine"


def test_checkpoints_are_read_without_pickle(tmp_path: Path) -> None:
    assert _bind("--config", _recipe(tmp_path)).weights_only is True


def test_zoo_python_m_zoo_and_lightning_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    def ended(*command: str | Path) -> tuple[int, str]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    scripts = Path(sys.executable).parent
    assert ended(scripts / "zoo", "lst") == ended(sys.executable, "-m", "zoo", "lst")
    wrong = ["fit", "--config", "none.yaml"]
    assert zoo_run(wrong) == 1
    assert ended(scripts / "lightning", *wrong) == (1, capsys.readouterr().err)
