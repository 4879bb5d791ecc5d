"""The generated parts of the guide. `python tests/guide.py` writes them; test_guide.py checks that they are current.

A generated part stands between `<!-- NAME -->` and `<!-- /NAME -->` in one Markdown file, see PARTS.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "recipes" / "results"
WIDTH = 110  # of a command line in a code block


def models() -> str:
    """The registered models, as `zoo list --table` prints them."""
    from zoo.registry import list_models, model_table

    return model_table([name for name in list_models() if not name.startswith("test_")])


def published() -> str:
    """The models whose weights come by name from an archive, with what was measured of each."""
    from zoo.archives.archive import Archived
    from zoo.registry import list_models, model_entry

    names = {metric: column for column, (metric, _) in MEASURED.items()}
    rows, told = [], dict[str, None]()
    for entry in map(model_entry, list_models()):
        card, archived = entry.card, entry.pretrained
        if not isinstance(archived, Archived):
            continue
        found = {one.metric: one for one in card.measurements if one.metric in names}
        cells = [f"{found[metric].value:{form}}" if metric in found else "-" for metric, form in MEASURED.values()]
        came = (" and ".join(card.requires), card.licence, str(archived), archived.megabytes)
        rows.append((f"`{card.name}`", *came, *cells))
        for one in found.values():
            told[f"- {names[one.metric]}: {one.data}; `{one.command.replace(card.name, 'NAME')}`"] = None
    head = table(("model", "reads", "licence", "weights from", "MB", *MEASURED), rows)
    return "\n".join([head, "", *told])


#: The columns of figures, each with its metric in cards and how it is printed.
MEASURED = {
    "flagged": ("flagged_share", ".1%"),
    "AUROC": ("auroc", ".3f"),
    "AUPRC": ("auprc", ".3f"),
    "ms": ("ms", ".2f"),
}


def attacks() -> str:
    """The attacks, as `zoo attacks list` knows them."""
    from zoo.adversary.threat import SOURCES

    rows = [(f"`{name}`", source.kind, source.bound, source.needs, source.paper) for name, source in SOURCES.items()]
    return table(("attack", "changes", "bound", "needs", "source"), rows)


def recipes() -> str:
    """Every recipe with its needs and results, then the commands that give the figures."""
    read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    rows = [
        (f"`{name}`", one["trains"], one["needs"], one.get("time", "-"), results(one)) for name, one in read.items()
    ]
    commands: dict[str, list[str]] = {}
    for name, one in read.items():
        for command in one.get("commands", ()):
            commands.setdefault(command, []).append(name)
    blocks = [
        f"{', '.join(f'`{name}`' for name in names)}:\n\n```\n{wrapped(line)}\n```" for line, names in commands.items()
    ]
    head = table(("recipe", "what it trains", "needs", "training time", "results"), rows)
    return "\n\n".join(
        [head, "The figures come from these commands, with the release of the recipe as `RELEASE`:", *blocks]
    )


def results(one: dict[str, Any]) -> str:
    """The cell of a table: figures, what they were measured on, and the remark."""
    if not one.get("results"):
        return "not measured"
    cell = f"{'; '.join(map(figure, one['results']))}. {one['measured_on']}"
    return f"{cell}. {one['note']}" if "note" in one else cell


def figure(one: dict[str, Any]) -> str:
    """One figure with its unit and 95 % interval: `AUROC 0.982 (0.97 to 0.99)`."""
    value = f"{one['value']} {one['unit']}" if "unit" in one else f"{one['value']:.3f}"
    low, high = one.get("interval_95", (None, None))
    interval = "" if low is None else f" ({low} to {high})"
    return f"{one['figure']} **{value}**{interval}"


def policies() -> str:
    """The shipped policies with their summaries."""
    return summaries("policy", "policy")


def budgets() -> str:
    """The shipped budgets with their summaries."""
    return summaries("export", "budget")


def threats() -> str:
    """The shipped threats with the first sentence of their header."""
    rows = []
    for path in sorted((REPOSITORY / "configs" / "threat").glob("*.yaml")):
        header = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
        assert header
        words = " ".join(line.lstrip("# ") for line in header[0].splitlines())
        rows.append((f"`{path.stem}`", re.split(r"(?<=[.:])\s", words + " ")[0].rstrip(".:")))
    return table(("threat", "what it allows"), rows)


def summaries(folder: str, noun: str) -> str:
    """The files of a folder of configs that carry a summary."""
    files = sorted((REPOSITORY / "configs" / folder).glob("*.yaml"))
    rows = [(f"`{path.stem}`", yaml.safe_load(path.read_text(encoding="utf-8"))["summary"]) for path in files]
    return table((noun, "summary"), rows)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def wrapped(command: str) -> str:
    """A shell command broken before options, so that it fits the page."""
    lines, line = [], ""
    for word in re.split(r" (?=--)", command):
        if line and len(line) + len(word) > WIDTH:
            lines.append(line + " \\")
            line = "   "
        line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


PARTS: dict[tuple[str, str], Callable[[], str]] = {
    ("zoo/models/README.md", "models"): models,
    ("zoo/models/README.md", "published"): published,
    ("zoo/adversary/README.md", "attacks"): attacks,
    ("recipes/README.md", "recipes"): recipes,
    ("configs/README.md", "policies"): policies,
    ("configs/README.md", "threats"): threats,
    ("configs/README.md", "budgets"): budgets,
}


def part(file: str, name: str) -> tuple[int, int]:
    """Where the part's text starts and ends in its file."""
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    match = re.search(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", text, re.DOTALL)
    assert match, f"{file} has no part <!-- {name} -->"
    return match.span()


def write(file: str, name: str, text: str) -> None:
    """Replace the text of one part."""
    start, end = part(file, name)
    whole = (REPOSITORY / file).read_text(encoding="utf-8")
    (REPOSITORY / file).write_text(whole[:start] + text + "\n" + whole[end:], encoding="utf-8")


def quickstart_output(log: str) -> str:
    """The end of what `make quickstart` prints: the table of verdicts and the figures, in a code block."""
    lines = [line for line in log.splitlines() if not line.startswith((".venv/", "make"))]
    first = max(index for index, line in enumerate(lines) if ", policy quickstart@" in line)
    last = max(index for index, line in enumerate(lines) if line.startswith("report   "))
    shown = [line.rstrip() for line in lines[first : last + 1] if "━━ " not in line]
    return "\n".join(["```", *shown, "```"])


def main() -> None:
    """Write every generated part; `make quickstart > LOG` first, then `python tests/guide.py LOG`, its output too."""
    for (file, name), make in PARTS.items():
        write(file, name, make())
    for log in sys.argv[1:]:
        write("README.md", "quickstart-output", quickstart_output(Path(log).read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))  # the checkout's zoo, also where another one is installed
    main()
