"""`zoo score`: judge images, videos and texts, a table for people or JSON lines for programs."""

from __future__ import annotations

import argparse
import json
import os
import sys

from zoo.commands.common import Commands, add_command, add_flag
from zoo.contract.verdict import Verdict
from zoo.errors import BadArgumentError
from zoo.judging.scorer import Scorer
from zoo.release.store import load_scorer

EXIT_UNSAFE, EXIT_UNJUDGED = 3, 4


def add(commands: Commands) -> None:
    parser = add_command(commands, "score", _score)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image and video files")
    add_flag(parser, "--model", "bundle or release directory, hf-hub:ORG/NAME, or registry name", required=True)
    text = "prompt; one for all images, or one for each; repeatable"
    parser.add_argument("--text", action="append", metavar="TEXT", help=text)
    add_flag(parser, "--policy", "it judges in place of the model's own")
    add_flag(parser, "--json", "one object a line, in place of the table")
    parser.add_argument("--verbose", action="store_true", help="say which engine runs and why, on standard error")


def _score(options: argparse.Namespace) -> int:
    """Judge images, videos and texts; exit status 0 all safe, 3 something unsafe, 4 something not judged, or not whole.

    zoo score --model releases/signs a.jpg b.png --json
    """
    images, texts = options.images or None, options.text
    if images is None and texts is None:
        raise BadArgumentError("nothing to judge: name image files, or give --text")
    from rich.console import Console
    from rich.progress import Progress

    if images and texts and len(texts) == 1:
        texts = texts * len(images)
    progress = Progress(console=Console(stderr=True), transient=True, disable=options.json)
    with load_scorer(options.model, options.policy) as scorer, progress:
        if options.verbose:
            print(scorer.why, file=sys.stderr)
        task = progress.add_task("Judging", total=len(images or texts or ()))
        verdicts: list[Verdict] = []
        for batch in scorer.stream(images, texts):
            verdicts += batch
            progress.advance(task, len(batch))
            if options.json:
                for verdict in batch:
                    print(json.dumps(verdict.to_dict(), ensure_ascii=False), flush=True)
        if not options.json:
            _print_table(scorer, verdicts, texts)
    return exit_status(verdicts)


def _text_name(number: int, texts: list[str] | None) -> str:
    """What a text is called: what is printed ends up in logs, where prompts have no place."""
    return f"text {number + 1}, {len((texts or [''])[number])} characters"


def _moment(verdict: Verdict) -> str:
    """Which frame of an animation or video was flagged, and when it is shown; empty for other verdicts."""
    place = verdict.place
    if place is None or place.frame is None or not verdict.is_flagged:
        return ""
    return f"frame {place.frame}" + ("" if place.seconds is None else f" at {place.seconds:.2f} s")


def exit_status(verdicts: list[Verdict]) -> int:
    """4 when anything could not be judged, or not enough of it, else 3 when anything is flagged, else 0."""
    if any(not (verdict.is_safe or verdict.is_flagged) for verdict in verdicts):
        return EXIT_UNJUDGED
    return EXIT_UNSAFE if any(verdict.is_flagged for verdict in verdicts) else 0


def _print_table(scorer: Scorer, verdicts: list[Verdict], texts: list[str] | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"safe": "green", "review": "yellow", "unsafe": "red", "unknown": "magenta"}
    # A long common folder would fold every row, so it is shown once.
    folders = {os.path.dirname(verdict.source) for verdict in verdicts}
    folder = folders.pop() if len(folders) == 1 else ""
    caption = f"in {folder}" if folder else None
    table = Table(title=f"{scorer.card.name}, policy {scorer.judge.policy_id}", caption=caption)
    for column in ("item", "decision", "category", "score", "note"):
        table.add_column(column, justify="right" if column == "score" else "left", overflow="fold")
    for number, verdict in enumerate(verdicts):
        item = verdict.source.removeprefix(f"{folder}/") or _text_name(number, texts)
        note = verdict.detail
        if verdict.disagreement:
            note = "heads disagree: " + ", ".join(f"{name} {head.decision}" for name, head in verdict.heads.items())
        if verdict.status != "ok":
            note = f"{verdict.status}: {note}"
        note = ", ".join(part for part in (_moment(verdict), note) if part)
        score = f"{verdict.scores[verdict.category]:.3f}" if verdict.category else ""
        # Text(): square brackets in a file name or a prompt are not markup.
        decision = Text(verdict.decision, colours[verdict.decision])
        table.add_row(Text(item), decision, Text(verdict.category or ""), Text(score), Text(note))
    Console().print(table)
