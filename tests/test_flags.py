"""The commands as one tree: one meaning for each flag, help that teaches, and what is shipped found by its name."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands_of_docs import commands_of, parser, refusal
from zoo.assets import KINDS, find_asset, shipped, summary
from zoo.cli import TRAINING, run, with_configs
from zoo.commands.common import CommandParser, output_file, output_folder
from zoo.errors import BadArgumentError
from zoo.training.cli import RecipeCheck, _cli

NSFWJS = "test_nsfwjs.random"


def _walk(node: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, CommandParser]]:
    assert isinstance(node, CommandParser)
    yield " ".join(words), node
    for action in node._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from _walk(child, (*words, name))


COMMANDS = {name: node for name, node in _walk(parser()) if name and name not in TRAINING}
SPELLINGS = [(name, old) for name, node in COMMANDS.items() for old in node.renamed]


def _options(node: CommandParser) -> list[argparse.Action]:
    kinds = (argparse._HelpAction, argparse._VersionAction, argparse._SubParsersAction)
    return [action for action in node._actions if action.option_strings and not isinstance(action, kinds)]


def _meaning(action: argparse.Action) -> str:
    """What help says before a detail or a default."""
    return re.split(r": | \(|; ", action.help or "")[0]


def test_a_flag_means_the_same_in_every_command() -> None:
    meanings: defaultdict[str, set[tuple[object, ...]]] = defaultdict(set)
    for node in COMMANDS.values():
        for action in _options(node):
            kind = action.type
            if action.option_strings[0] == "--out":  # told by the metavar: FILE or DIR
                assert kind is {"FILE": output_file, "DIR": output_folder}[str(action.metavar)]
                meanings["--out"].add(("out", _meaning(action)))
            elif action.option_strings[0] == "--model":  # a path where only a bundle will do
                meanings["--model"].add((action.dest, action.metavar, _meaning(action).split()[0]))
            else:
                meanings[action.option_strings[0]].add((action.dest, kind, action.metavar, _meaning(action)))
    assert len(meanings) > 70
    assert {flag: found for flag, found in meanings.items() if len(found) > 1} == {}


def test_no_meaning_has_two_flags() -> None:
    flags = defaultdict(set)
    for node in COMMANDS.values():
        for action in _options(node):
            flags[_meaning(action)].add(tuple(action.option_strings))
    assert {meaning: found for meaning, found in flags.items() if len(found) > 1} == {}


def test_an_option_has_one_spelling_and_a_word_for_its_value() -> None:
    for name, node in COMMANDS.items():
        for action in _options(node):
            assert len(action.option_strings) == 1 or isinstance(action, argparse.BooleanOptionalAction), name
            assert action.nargs == 0 or action.metavar or action.choices, (name, action.option_strings)


@pytest.mark.parametrize(("name", "old"), SPELLINGS, ids=lambda value: value.replace(" ", "_"))
def test_an_old_spelling_works_and_names_the_new_one(name: str, old: str, capsys: pytest.CaptureFixture[str]) -> None:
    node = COMMANDS[name]
    new = node.renamed[old]
    known = {action.option_strings[0]: action for action in _options(node)}
    assert old not in known
    action = known[new]
    value = next(iter(action.choices)) if action.choices else "7"
    (example, *_) = commands_of(str(node.epilog))
    words = parser().parse_args([*example[1:], new, value])
    assert "is now" not in capsys.readouterr().err
    for given in ([old, value], [f"{old}={value}"]):
        assert parser().parse_args([*example[1:], *given]) == words
        assert capsys.readouterr().err == (
            f"zoo {name}: {old} is now {new}; the old spelling goes with the next release\n"
        )


def test_the_old_spellings_of_the_last_release_are_kept() -> None:
    assert set(SPELLINGS) == {
        ("recipes copy", "--to"),
        ("data proxy", "--words"),
        ("data proxy", "--column"),
        ("evaluate robustness", "--positive"),
        ("evaluate robustness", "--words"),
        ("evaluate robustness", "--calibrate"),
        ("evaluate texts", "--bundle"),
        ("export triton", "--bundle"),
        ("export triton", "--version"),
        ("policy use", "--bundle"),
        ("bench", "--batch"),
        ("bench", "--image"),
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_parses(name: str) -> None:
    text = COMMANDS[name].format_help()
    examples = [words for words in commands_of(text[text.index("\nexample") :]) if words[0] == "zoo"]
    assert any(" ".join(words[1:]).startswith(name) for words in examples), text
    assert [problem for words in examples if (problem := refusal(words))] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_each_default(name: str) -> None:
    formatter = COMMANDS[name]._get_formatter()
    for action in _options(COMMANDS[name]):
        assert action.help, (name, action.option_strings)
        if action.required or action.default in (None, False, "", []) or action.const is not None:
            continue
        assert f"(default: {action.default})" in formatter._expand_help(action), (name, action.option_strings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "--modle", "x"], 'unknown option "--modle"; did you mean "--model"'),
        (["evaluate", "gurad"], 'unknown command "gurad"; did you mean "guard"?'),
        (["evaluate", "guard", "--lvml", "x"], 'unknown option "--lvml"; did you mean "--lvlm"'),
        (["recipes", "chekc"], 'unknown command "chekc"; did you mean "check"?'),
        (["recipes", "list", "--jsn"], 'unknown option "--jsn"; did you mean "--json"'),
        (["--verison"], 'unknown option "--verison"; did you mean "--version"'),
        (["policy", "usee"], 'unknown command "usee"; did you mean "use"?'),
    ],
)
def test_a_wrong_word_names_its_close_match_at_every_depth(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_out_is_a_folder_or_a_file_and_a_path_of_the_other_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    for words, message in (
        (["data", "signs", "--out", str(tmp_path / "file")], "is a file, and several files are written: name a folder"),
        (["data", "folder", "x", "--out", str(tmp_path)], "is a folder, and a file is written: add a name for it"),
    ):
        with pytest.raises(SystemExit) as end:
            run(words)
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


# What is shipped, by name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shipped_is_found_by_name_and_listed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, listing = KINDS[kind]
    known = shipped(kind)
    assert known
    for name, path in known.items():
        assert find_asset(name, kind) == path
        assert find_asset(f"{folder}/{name}.yaml", kind).samefile(path)
    assert run(listing.split()[1:]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(known)
    assert all(len(line.split()) > 2 for line in lines)
    assert run([*listing.split()[1:], "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == [str(path) for path in known.values()]
    assert all(row["summary"] in line for row, line in zip(rows, lines, strict=True))


def test_no_recipe_has_the_name_of_a_fragment() -> None:
    assert shipped("recipe").keys().isdisjoint(shipped("trainer"))


def test_the_summary_is_the_first_sentence_of_the_header(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("# Blocks dogs,\n# of 1.5 m and more. Not cats.\nsummary: other\n", encoding="utf-8")
    assert summary(file) == "Blocks dogs, of 1.5 m and more"
    file.write_text("name: x\nsummary: flips one verdict in ten\n", encoding="utf-8")
    assert summary(file) == "flips one verdict in ten"


def test_a_file_wins_over_a_shipped_name_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_asset("dogs") == shipped("policy")["dogs"]
    Path("dogs").mkdir()  # a folder is no policy
    assert find_asset("dogs") == shipped("policy")["dogs"]
    Path("dogs").rmdir()
    assert caplog.messages == []
    Path("dogs").write_text("mine", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "zoo"):
        assert find_asset("dogs") == Path("dogs")
        assert find_asset("./dogs").read_text(encoding="utf-8") == "mine"
    assert caplog.messages == ['the file "dogs" is used; the shipped policy of that name is configs/policy/dogs.yaml']


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_gives_the_close_match_and_the_command_that_lists(kind: str) -> None:
    listing = KINDS[kind][1]
    name = next(iter(shipped(kind)))
    for wrong in (f"{name}x", f"{name}x.yaml"):
        with pytest.raises(BadArgumentError) as refused:
            find_asset(wrong, kind)
        message = str(refused.value)
        assert message.startswith(f'no {kind} is named "{wrong}", and no such file exists; did you mean "')
        assert f'"{name}"' in message
        assert message.endswith(f"(all names: {listing})")
    with pytest.raises(BadArgumentError, match=f'did you mean .*"{KINDS[kind][0]}/{name}.yaml"'):
        find_asset(f"{KINDS[kind][0]}/{name}x.yaml", kind)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "--model", NSFWJS, "a.png", "--policy", "nsfwj"], 'no policy is named "nsfwj"'),
        (["policy", "embed", "dgos", "--model", "x"], 'no policy is named "dgos"'),
        (["policy", "use", "dgos", "--model", "x"], 'no policy is named "dgos"'),
        (["verify", "x", "--budget", "in8"], 'no budget is named "in8"'),
        (["data", "corpora", "texts", "--root", ".", "--out", "x.csv"], 'no data is named "texts"'),
        (["recipes", "check", "quickstrat"], 'no recipe is named "quickstrat"'),
        (
            ["evaluate", "robustness", "--model", NSFWJS, "--data", "x", "--threat", "linf4_pdg"],
            'no threat is named "linf4_pdg", and no such file exists; did you mean "linf4_pgd"',
        ),
    ],
)
def test_every_command_takes_names(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 1
    assert message in capsys.readouterr().err


def test_a_policy_by_name_is_the_shipped_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    words = ["score", "--model", NSFWJS, str(tmp_path / "photo.png"), "--json", "--policy"]
    run([*words, "nsfwjs"])
    by_name = capsys.readouterr().out
    run([*words, "configs/policy/nsfwjs.yaml"])
    assert json.loads(by_name) == json.loads(capsys.readouterr().out)
    assert json.loads(by_name)["policy"].startswith("nsfwjs@")


def test_training_takes_names_of_recipes_and_fragments(capsys: pytest.CaptureFixture[str]) -> None:
    config = _cli(RecipeCheck, with_configs(["fit", "--config", "quickstart", "--config=smoke"])).config["fit"]
    assert config.model.init_args.recipe == "quickstart"
    words = ["fit", "--config", "recipes/quickstart.yaml", "--config", "configs/trainer/smoke.yaml"]
    smoke = _cli(RecipeCheck, with_configs(words))
    assert config.trainer == smoke.config["fit"].trainer
    assert run(["fit", "--config", "quickstrat"]) == 1
    assert 'no such file exists; did you mean "quickstart"' in capsys.readouterr().err


@pytest.mark.parametrize("name", TRAINING)
def test_help_of_training_has_an_example_that_binds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run([name, "--help"])
    example = f"zoo {name} --config quickstart"
    assert f"example: {example}. --import" in " ".join(capsys.readouterr().out.split())
    assert refusal(example.split()) == ""
