"""Command lines in Markdown and in the headers of recipes, and what the real parsers say of them."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

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
    """The `zoo` and `lightning` commands of a Markdown text as arguments, shell variables of a block expanded."""
    return [command for language, block in blocks(text) if language in SHELL for command in commands_of(block)]


def commands_of(block: str) -> list[list[str]]:
    """The `zoo` and `lightning` commands among shell lines. A line may be continued, and join several by `&&`."""
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
            if re.match(r"(?:\w+=\S+ )*(?:zoo|lightning) ", part):
                words = shlex.split(part, comments=True)
                commands.append([word for index, word in enumerate(words) if index or "=" not in word])
    return [
        command[next(i for i, word in enumerate(command) if word in ("zoo", "lightning")) :] for command in commands
    ]


@cache
def parser() -> argparse.ArgumentParser:
    """The parser of `zoo`, with the commands of `export`."""
    from zoo.cli import build_parser

    return build_parser()


def refusal(command: list[str]) -> str:
    """What the real parser says against a command: nothing where it takes it."""
    from zoo.cli import moved

    program, *args = command
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        try:
            if program == "lightning" or args[0] in ("fit", "validate", "test", "predict"):
                _bind(args)
            elif problem := moved(args):
                return problem
            else:
                parser().parse_args(args)
        except SystemExit as end:
            if end.code not in (0, None):
                return printed.getvalue() or str(end.code)
    return ""


def _bind(args: list[str]) -> None:
    """Bind a training command. A recipe that was copied to `mine` is the shipped one."""
    from zoo.training.cli import RecipeCheck, _cli

    _cli(RecipeCheck, [re.sub(r"^mine/", f"{REPOSITORY}/", word) for word in args])
