"""Models of users: the example of zoo/models/README.md from `zoo list` to a bundle, plugins, and modules that fail."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.commands_of_docs import REPOSITORY, blocks, commands_of
from zoo import registry
from zoo.cli import lightning, run
from zoo.errors import BadArgumentError
from zoo.registry import import_models, list_models

pytestmark = pytest.mark.usefixtures("traced_once")

README = (REPOSITORY / "zoo" / "models" / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## Your own models\n")[1].split("\n## ")[0]
CARD, NET, POLICY, COMMANDS, PLUGIN = (text for _, text in blocks(SECTION))
OWN = ("my_models", "my_net", "broken")


def _forget() -> None:
    for name in OWN:
        sys.modules.pop(name, None)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the files of the example. What is registered and imported is gone afterwards."""
    for name, text in (("my_models.py", CARD), ("my_net.py", NET), ("my_policy.yaml", POLICY)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    list_models()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield tmp_path
    _forget()


def test_the_example_of_the_guide_works_from_the_list_to_the_bundle(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (home / "my_data").mkdir()
    with (home / "my_data" / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label", "split"])
        for number in range(12):
            colour, label = (("red", "unsafe"), ("blue", "safe"))[number % 2]
            Image.new("RGB", (40, 40), colour).save(home / "my_data" / f"{number}.png")
            rows.writerow([f"{number}.png", label, ("train", "val")[number // 8]])
    Image.new("RGB", (40, 30), "blue").save(home / "photo.jpg")
    shipped, commands = dict(registry._entries), commands_of(COMMANDS)
    assert [command[1] for command in commands] == ["list", "fit", "release", "score", "evaluate", "export", "score"]
    for program, *words in commands:
        registry._entries.clear()  # each command must import the model by itself
        registry._entries.update(shipped)
        _forget()
        args = [path for word in words for path in (map(str, home.glob(word)) if word.endswith(".ckpt") else [word])]
        assert (program, run(args)) in (("zoo", 0), ("zoo", 3)), (args, capfd.readouterr().err)
        assert ("--import" in args) == ("my_net.small" in list_models())
    assert "my_net.small  " in capfd.readouterr().out
    assert "--import my_models" in (home / "my_report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "ModuleNotFoundError: No module named 'broken'"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import sys; sys.exit('gone')", "SystemExit: gone"),
        ("def", "SyntaxError: invalid syntax (broken.py, line 1)"),
    ],
)
@pytest.mark.parametrize("command", [["list"], ["fit", "--config", "recipes/quickstart.yaml"]])
def test_a_module_that_cannot_be_imported_ends_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], text: str | None, reason: str, command: list[str]
) -> None:
    if text is not None:
        (home / "broken.py").write_text(text, encoding="utf-8")
    assert run([*command, "--import=broken"]) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f'zoo: the module "broken" cannot be imported: {reason}\n')


def test_a_file_in_place_of_a_module_is_answered_with_the_module(home: Path) -> None:
    with pytest.raises(BadArgumentError, match=r"give the dotted name, not the file: models\.mine$"):
        import_models("models/mine.py")


@pytest.mark.parametrize("args", [["list", "--import"], ["--import", "--task", "panel", "list"], ["--import=", "list"]])
def test_an_import_without_a_module_is_wrong_usage(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args) == 2
    assert "--import needs the name of a module" in capsys.readouterr().err


def test_the_import_may_stand_anywhere_be_repeated_and_be_abbreviated(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for args in (
        ["--import", "my_models", "list", "my_*"],
        ["list", "my_*", "--import=my_models", "--import", "my_net"],
        ["list", "--impo", "my_models", "my_*"],
    ):
        registry._entries.pop("my_net.small", None)
        _forget()
        assert run(args) == 0
        assert capsys.readouterr().out.split()[0] == "my_net.small"
    assert run(["--import", "my_models", "attacks", "bench"]) == 2  # an old command still names the new one
    assert "tests.benchmarks.attacks" in capsys.readouterr().err


def test_lightning_takes_the_import_too(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning", "--import", "broken", "fit", "--help"])
    with pytest.raises(SystemExit) as end:
        lightning()
    assert end.value.code == 1
    assert 'the module "broken" cannot be imported' in capsys.readouterr().err


@pytest.mark.parametrize("command", [["list"], ["export", "onnx"], ["evaluate", "robustness"], ["fit"]])
def test_the_help_of_commands_tells_of_it(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run([*command, "--help"])
    assert "--import MODULE" in capsys.readouterr().out


def test_a_module_that_fails_leaves_nothing_behind_and_may_be_tried_again(home: Path) -> None:
    before = list_models()
    (home / "broken.py").write_text("import my_models\nraise RuntimeError('after the registration')", encoding="utf-8")
    sys.path.insert(0, str(home))
    with pytest.raises(BadArgumentError, match="after the registration"):
        import_models("broken")
    assert list_models() == before
    _forget()
    import_models("my_models")
    assert list_models() == sorted([*before, "my_net.small"])


def test_a_catalogue_that_fails_to_load_leaves_no_empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = [name for name in list_models() if not name.startswith("test_")]
    kept = {name: module for name, module in sys.modules.items() if name.startswith("zoo.models.catalogue")}
    monkeypatch.setattr(registry, "_entries", {})
    monkeypatch.setattr(registry, "_loaded", False)
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "zoo.models.catalogue.heads", None)
    with pytest.raises(ImportError, match="heads"):
        list_models()
    assert list_models() == shipped  # the mark on `heads` went with the modules of the failed try
    for name, module in kept.items():
        monkeypatch.setitem(sys.modules, name, module)


def _install(site: Path, module: str, group: str, entry: str) -> None:
    """What `pip install` leaves of a package with one entry point."""
    info = site / f"{module}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group}]\n{module} = {entry}\n", encoding="utf-8")


def test_plugins_are_listed_and_a_broken_one_is_named_and_skipped(home: Path, tmp_path: Path) -> None:
    ((group, entries),) = tomllib.loads(PLUGIN)["project"]["entry-points"].items()
    assert group == "safety_zoo.models"
    _install(home, "my_models", group, entries["my_models"])
    _install(home, "broken", group, "broken")
    _install(home, "absent", "safety_zoo.commands", "absent:add")
    (home / "broken.py").write_text("raise RuntimeError('not today')", encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    listed, helped = (
        subprocess.run(
            [sys.executable, "-m", "zoo", *words],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path / "elsewhere",
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(home), str(REPOSITORY)])},
        )
        for words in (["list", "my_*"], ["--help"])
    )
    assert listed.stdout.split() == ["my_net.small", "train", "(or", "import)"]
    assert listed.stderr.splitlines() == [
        'the plugin "broken" of broken (safety_zoo.models) is skipped: RuntimeError: not today'
    ]
    said = 'the plugin "absent" of absent (safety_zoo.commands) is skipped: '
    assert helped.stderr.splitlines() == [said + "ModuleNotFoundError: No module named 'absent'"]
