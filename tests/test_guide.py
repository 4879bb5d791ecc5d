"""The guide is true: generated parts are current, links resolve, command lines parse, recipes have their results."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

from tests.commands_of_docs import REPOSITORY, blocks, commands_in, commands_of, markdown, parser, refusal
from tests.guide import PARTS, part
from zoo.assets import shipped

GUIDE = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in markdown()}
HEADERS = {
    name: path.read_text(encoding="utf-8").split("\nseed_everything")[0] for name, path in shipped("recipe").items()
}
OLD = (REPOSITORY / "tests" / "old_commands.txt").read_text(encoding="utf-8").splitlines()
PROSE = {name: re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE) for name, text in GUIDE.items()}


def test_the_guide_is_where_it_is_looked_for() -> None:
    folders = ("zoo", "zoo/data", "zoo/models", "zoo/guard", "zoo/adversary", "recipes", "configs", "export")
    expected = {f"{folder}/README.md" for folder in (*folders, "tests/benchmarks")}
    assert expected | {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "export/MATRIX.md"} <= set(GUIDE)


def test_the_readme_is_read_in_ten_minutes() -> None:
    assert len(GUIDE["README.md"].encode()) <= 12_288


@pytest.mark.parametrize(("file", "name"), PARTS, ids=lambda value: str(value))
def test_generated_parts_are_current(file: str, name: str) -> None:
    start, end = part(file, name)
    made = PARTS[file, name]() + "\n"
    assert GUIDE[file][start:end] == made, "run: python tests/guide.py"
    assert made.count("\n") > 2


def test_the_quickstarts_output_is_a_run_of_it() -> None:
    start, end = part("README.md", "quickstart-output")
    output = GUIDE["README.md"][start:end]
    assert re.search(r"policy quickstart@\d+#[0-9a-f]{8}", output)
    assert output.count(".jpg │") == 10
    assert re.search(r"auroc +0\.9\d", output)


def test_every_recipe_has_its_results() -> None:
    results = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (REPOSITORY / "recipes/results").iterdir()
    }
    assert set(results) == set(shipped("recipe"))
    for name, one in results.items():
        assert set(one) <= {"trains", "needs", "time", "measured_on", "results", "commands", "note"}, name
        assert ("results" in one) == ("measured_on" in one) == ("commands" in one), name
        for figure in one.get("results", ()):
            low, high = figure.get("interval_95", (figure["value"], figure["value"]))
            assert low <= figure["value"] <= high, (name, figure)


def test_the_matrix_has_every_model() -> None:
    from zoo.registry import list_models

    named = set()
    for cell in re.findall(r"^\| ([^|]+) \|", GUIDE["export/MATRIX.md"], re.MULTILINE):
        first, *tags = re.findall(r"`([^`]+)`", cell) or [""]
        named |= {first, *(first.split(".")[0] + tag for tag in tags)}
    assert {name for name in list_models() if not name.startswith("test_")} <= named


@pytest.mark.parametrize("file", GUIDE)
def test_links_resolve(file: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PROSE[file]):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (REPOSITORY / file).parent / path if path else REPOSITORY / file
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a Markdown text."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_files_that_are_named_exist() -> None:
    texts = {**GUIDE, **HEADERS}
    del texts["CHANGELOG.md"]  # names what is gone, too
    for file, text in texts.items():
        for name in re.findall(r"(?<![\w/.])(?:configs|recipes|zoo|export|tests)/[\w/-]+\.(?:yaml|py|md|json)\b", text):
            assert Path(name).stem == "NAME" or (REPOSITORY / name).is_file(), (file, name)


COMMANDS = sorted({tuple(command) for text in GUIDE.values() for command in commands_in(text)})
IN_HEADERS = {
    name: commands_of("\n".join(line[1:] for line in header.splitlines() if line.startswith("#   ")))
    for name, header in HEADERS.items()
}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_lines_of_the_guide_parse(command: tuple[str, ...]) -> None:
    assert len(COMMANDS) > 50
    assert refusal(list(command)) == ""


@pytest.mark.parametrize("name", HEADERS)
def test_command_lines_of_recipe_headers_parse(name: str) -> None:
    assert any(f"recipes/{name}.yaml" in command for command in IN_HEADERS[name])
    assert [problem for command in IN_HEADERS[name] if (problem := refusal(command))] == []


def test_commands_within_sentences_have_these_options() -> None:
    for file, text in PROSE.items():
        if file == "CHANGELOG.md":  # names what is gone, too
            continue
        for words in re.findall(r"`zoo ([a-z][^`]*)`", text):
            options = known_options(words.split())
            assert options is not None, (file, f"zoo {words}")
            unknown = [word for word in words.split() if word.startswith("--") and word not in options]
            assert unknown == [], (file, f"zoo {words}")


def known_options(words: list[str]) -> set[str] | None:
    """The options of the command that these words name, None where there is no such command."""
    node = parser()
    for word in words:
        choices = next((action.choices for action in node._actions if isinstance(action.choices, dict)), None)
        if word.startswith("-") or choices is None:
            break
        if word not in choices:
            return {"--help"} if node is not parser() else None
        node = choices[word]
    return {option for action in node._actions for option in action.option_strings}


@pytest.mark.parametrize("command", OLD)
def test_commands_of_the_old_readme_work_or_name_their_new_form(command: str) -> None:
    (words,) = commands_of(command)
    problem = refusal(words)
    assert not problem or re.search(r"\b(?:now|moved|use)\b.*(?:zoo|python|--)", problem, re.DOTALL), problem


PYTHON = [(file, code) for file, text in GUIDE.items() for language, code in blocks(text) if language == "python"]


@pytest.mark.parametrize(("file", "code"), PYTHON, ids=[f"{file}-{index}" for index, (file, _) in enumerate(PYTHON)])
def test_python_of_the_guide_names_what_is_there(file: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("zoo", "export"):
            exec(ast.unparse(node), {})  # raises ImportError
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("zoo", "runtime"):
            home = importlib.import_module({"zoo": "zoo", "runtime": "export.runtime"}[node.value.id])
            assert hasattr(home, node.attr), (file, ast.unparse(node))


def test_the_public_api_and_all_errors_are_described() -> None:
    import zoo
    import zoo.errors

    text = GUIDE["zoo/README.md"]
    public = [name for name in zoo.__all__ if not name.startswith("__")]
    errors = [name for name, value in vars(zoo.errors).items() if isinstance(value, type) and name.endswith("Error")]
    assert [name for name in (*public, *errors) if not re.search(rf"\b{name}\b", text)] == []


def test_modules_have_moved_as_the_changelog_says() -> None:
    unreleased = GUIDE["CHANGELOG.md"].partition("\n## 0.1.0")[0]
    rows = re.findall(r"^\| (`zoo\..*) \| (`zoo\..*) \|$", unreleased, re.MULTILINE)
    assert rows
    for before, now in rows:
        for name in re.findall(r"`([\w.]+)`", now):
            importlib.import_module(name)
        gone = set(re.findall(r"`([\w.]+)`", before)) - {"zoo.release"}  # a folder today
        assert [name for name in gone if importlib.util.find_spec(name)] == []


@pytest.mark.parametrize("folder", ["recipes", "configs"])
def test_no_path_of_a_machine_is_left(folder: str) -> None:
    files = [path for path in (REPOSITORY / folder).rglob("*") if path.suffix in (".yaml", ".json", ".md")]
    assert files
    for path in files:
        text = re.sub(r"https?://\S+", "", path.read_text(encoding="utf-8"))
        text = re.sub(r"\]\([^)]*\)", "]", text)  # links of the README
        outside = re.findall(r"(?:\.\./(?!configs/)|(?<![\w.$*}])/(?:home|work|tmp|root|data|mnt|Users)/)\S*", text)
        assert outside == [], path


def test_recipes_name_their_variables() -> None:
    """Each ${oc.env:NAME} of a recipe, and of the fragments that it names, is in the table of variables."""
    table = GUIDE["recipes/README.md"]
    for path in [*shipped("recipe").values(), *Path(REPOSITORY / "configs").rglob("*.yaml")]:
        for name, default in re.findall(r"\$\{oc\.env:(\w+),([^}]*)\}", path.read_text(encoding="utf-8")):
            assert re.search(rf"\| `{name}` \|.*\| `{re.escape(default)}` \|", table), (path, name, default)
