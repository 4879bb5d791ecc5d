"""Command lines in Markdown and in the headers of recipes, and what the real parsers say of them."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

REPOSITORY = Path(__file__).resolve().parents[1]
#: Code blocks of shell commands carry no language, or one of these.
SHELL = ("", "sh", "bash", "shell", "console")


def markdown() -> list[Path]:
    """Every Markdown file of the repository, but for what commands and tools write."""
    kept = []
    for path in sorted(REPOSITORY.rglob("*.md")):
        parents = path.relative_to(REPOSITORY).parts[:-1]
        if not any(part.startswith(".") or part in ("runs", "build", "dist", "shared") for part in parents):
            kept.append(path)
    return kept


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced code blocks of a Markdown text: language and content."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands_in(text: str) -> list[list[str]]:
    """The commands of a Markdown text as arguments (`zoo`, `lightning`, benchmarks), shell variables expanded."""
    return [command for language, block in blocks(text) if language in SHELL for command in commands_of(block)]


def commands_of(block: str) -> list[list[str]]:
    """The commands of `commands_in` among shell lines. A line may be continued, and join several by `&&`."""
    variables: dict[str, str] = {}
    commands = []
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        assigned = re.fullmatch(r'(\w+)="(.*)"', line.strip())
        if assigned:
            variables[assigned[1]] = assigned[2]
            continue
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        # A note in brackets after two blanks is the header's own form of a comment.
        for part in re.split(r"\s+&&\s+", re.sub(r"\s{2,}\(.*\)$", "", line.strip())):
            ours = re.match(r"(?:\w+=\S+ )*((?:zoo|lightning|python -m tests\.benchmarks\.\w+)(?: .*)?$)", part)
            if ours:
                commands.append(shlex.split(ours[1], comments=True))
    return commands


@cache
def parser() -> argparse.ArgumentParser:
    """The parser of `zoo`, with the commands of `export`."""
    from zoo.cli import build_parser

    return build_parser()


def refusal(command: list[str]) -> str:
    """What the real parser says against a command: nothing where it takes it."""
    from zoo.cli import moved, own_modules

    program, *args = command
    args = own_modules(args)[1]
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        try:
            if program == "lightning" or args[0] in ("fit", "validate", "test", "predict"):
                _bind(args)
            elif program == "python":
                _parse_benchmark(args[1], args[2:])
            elif problem := moved(args):
                return problem
            else:
                parser().parse_args(args)
        except SystemExit as end:
            if end.code not in (0, None):
                return printed.getvalue() or str(end.code)
    return ""


def _parse_benchmark(module: str, args: list[str]) -> None:
    """Let a benchmark parse its arguments, and stop there."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: Any) -> NoReturn:
        parse(self, *given)
        raise SystemExit(0)

    home = importlib.import_module(module)
    if hasattr(home, "__path__"):
        home = importlib.import_module(f"{module}.__main__")
    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        home.main(args)
    raise AssertionError(f"{module} did not parse its arguments")


def _bind(args: list[str]) -> None:
    """Bind a training command. A recipe that was copied to `mine` is the shipped one."""
    from zoo.cli import with_configs
    from zoo.training.cli import RecipeCheck, _cli

    _cli(RecipeCheck, with_configs([re.sub(r"^mine/", f"{REPOSITORY}/", word) for word in args]))
