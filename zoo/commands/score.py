"""`zoo score`: judge images, videos and texts, a table for people, JSON lines for programs, a file for many."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from zoo.commands.common import Commands, add_command, add_flag, add_flags, renamed
from zoo.contract.verdict import Verdict
from zoo.data.listing import Input, Listing, list_items
from zoo.data.manifest import pyarrow_for, write_rows
from zoo.errors import BadArgumentError
from zoo.files.resume import kept_lines, kept_parts
from zoo.files.writing import new_file, refuse_input
from zoo.judging.pair import Pair
from zoo.judging.scorer import Scorer
from zoo.registry import DEFAULT_MODEL, DEFAULT_TEXT_MODEL
from zoo.release.store import load_scorer

AnyScorer: TypeAlias = Scorer | Pair

EXIT_UNSAFE, EXIT_UNJUDGED = 3, 4
#: The rows of a part of `--out-dir`.
PART_ROWS = 10_000
#: The columns of a table of verdicts; a score of each category follows.
COLUMNS = (
    *("source", "status", "decision", "category", "score", "detail", "unseen", "place", "model", "policy", "weights"),
    "engine",
)


def add(commands: Commands) -> None:
    parser = add_command(commands, "score", _score)
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="image or video; folder, with all folders in it; 'pattern/**/*.jpg'; list of paths (.txt, .lst), from the "
        "current folder on; manifest of images and texts (.csv, .tsv, .jsonl, .parquet); - for paths on standard input",
    )
    text = "bundle or release directory, hf-hub:ORG/NAME, or registry name; default for pictures: "
    add_flag(parser, "--model", f"{text}{DEFAULT_MODEL}, for texts: {DEFAULT_TEXT_MODEL}, for both: each its own")
    text = "prompt; one for all images, or one for each; repeatable; - for one on each line of standard input"
    parser.add_argument("--text", action="append", metavar="TEXT", help=text)
    add_flag(parser, "--policy", "it judges in place of the model's own")
    add_flags(parser, "--columns", "--image-root")
    add_flag(parser, "--json", "one object a line, in place of the table")
    add_flag(parser, "--out", "verdicts as .jsonl, .csv or .parquet; a run that was cut goes on", metavar="FILE")
    text = "verdicts as Parquet files of 10,000 rows, for millions of items; a run that was cut goes on"
    add_flag(parser, "--out-dir", text, metavar="DIR")
    add_flag(parser, "--overwrite")
    parser.add_argument("--verbose", action="store_true", help="say which engine runs and why, on standard error")


def _score(options: argparse.Namespace) -> int:
    """Judge images, videos and texts; exit status 0 all safe, 3 something unsafe, 4 something not judged, or not whole.

    Without --model, pictures are judged by a published model that is fetched once (22 MB): it knows nudity and
    pornography in photographs, and nothing else. Texts are judged by one of ours (84 MB): it knows offensive and
    hateful language in English, and nothing else. With both, the graver of the two decisions counts.

    zoo score --model releases/signs photos/ extra.jpg --out verdicts.csv
    """
    _check_out(options)
    listing = _listing(options)
    if options.out is not None:
        refuse_input(options.out, *(item.image for item in listing.items if item.image), *options.inputs)
    with _scorer(options, listing.items) as scorer:
        if options.verbose:
            print(scorer.why, file=sys.stderr)
        items = _read_by(scorer, listing.items)
        counts: Counter[str] = Counter()
        if options.out is not None:
            verdicts = _written(scorer, items, options.out)
        elif options.out_dir is not None:
            verdicts = _written_in_parts(scorer, items, options.out_dir, options.overwrite)
        elif options.json:
            verdicts = _printed(scorer, items)
        else:
            found = [verdict for batch in _judged(scorer, items) for verdict in batch]
            _print_table(scorer, found, [item.text for item in items])
            verdicts = iter(found)
        status = exit_status(_counted(verdicts, counts))
    out = options.out or options.out_dir
    if out is not None or listing.passed_over:
        _print_summary(counts, listing, out)
    return status


def _scorer(options: argparse.Namespace, items: Sequence[Input]) -> AnyScorer:
    """The model that was named, else the default of what is there to judge; of pictures and texts both."""
    pictures = any(item.image is not None for item in items)
    texts = any(item.text is not None for item in items)
    if options.model or not (pictures and texts):
        return load_scorer(options.model or (DEFAULT_TEXT_MODEL if texts else DEFAULT_MODEL), options.policy)
    if options.policy is not None:
        raise BadArgumentError(
            f"a policy is for one model, and without `model` pictures are judged by {DEFAULT_MODEL}, texts by "
            f"{DEFAULT_TEXT_MODEL}: name a model beside it"
        )
    image = load_scorer(DEFAULT_MODEL)
    try:
        return Pair(image, load_scorer(DEFAULT_TEXT_MODEL))
    except BaseException:
        image.close()
        raise


def _check_out(options: argparse.Namespace) -> None:
    if options.out_dir is not None:
        if options.out is not None or options.json:
            raise BadArgumentError("--out-dir writes verdicts: give no --out and no --json beside it")
        pyarrow_for(options.out_dir)
    if options.out is None:
        return
    if options.json:
        raise BadArgumentError("--json prints verdicts and --out writes them: give one of them")
    if options.out.suffix.lower() not in (".jsonl", ".csv", ".parquet"):
        raise BadArgumentError(f"--out {options.out}: verdicts are written as .jsonl, .csv or .parquet")
    if options.out.suffix.lower() == ".parquet":
        pyarrow_for(options.out)
    if options.out.exists() and not options.overwrite:
        raise BadArgumentError(f"--out {options.out}: exists; --overwrite replaces it")


def _listing(options: argparse.Namespace) -> Listing:
    """What the positions and `--text` name together."""
    texts: list[str] | None = options.text
    stdin = [*options.inputs, *(texts or ())].count("-")
    if stdin > 1:
        raise BadArgumentError("- stands for standard input, which can be read once")
    lines = (line.decode("utf-8", "surrogateescape") for line in sys.stdin.buffer) if stdin else iter(())
    if texts == ["-"]:
        texts = [line.rstrip("\r\n") for line in lines if line.strip()]
    if not options.inputs and not texts:
        raise BadArgumentError("nothing to judge: name image files or folders, or give --text")
    listing = list_items(options.inputs, lines, columns=renamed(options.columns), image_root=options.image_root)
    if not texts:
        return listing
    items = listing.items or tuple(Input(None, None, "") for _ in texts)
    if any(item.text is not None for item in items):
        raise BadArgumentError("--text: the manifest has texts of its own; give one or the other")
    if len(texts) == 1:
        texts = texts * len(items)
    if len(texts) != len(items):
        raise BadArgumentError(f"{len(items)} images and {len(texts)} texts: image i is judged with text i")
    paired = zip(items, texts, strict=True)
    return replace(listing, items=tuple(replace(item, text=text) for item, text in paired))


def _read_by(scorer: AnyScorer, items: Sequence[Input]) -> Sequence[Input]:
    """The items without what this model never reads in rows of a manifest, which is said on standard error."""
    if isinstance(scorer, Pair):
        return items
    for kind, reads in (("image", scorer.card.image is not None), ("text", scorer.card.reads_text)):
        rows = 0 if reads else sum(item.row and getattr(item, kind) is not None for item in items)
        if rows:
            print(f"{scorer.card.name} reads no {kind}: those of {rows} rows are not judged", file=sys.stderr)
            without: dict[str, Any] = {kind: None}
            items = [replace(item, **without) if item.row else item for item in items]
    return items


def _judged(
    scorer: AnyScorer, items: Sequence[Input], done: int = 0, *, quiet: bool = False
) -> Iterator[list[Verdict]]:
    """The verdicts of the items that are not done, a batch at a time, with a bar of progress on standard error."""
    left = iter(items[done:])
    images, texts = ([getattr(item, kind) for item in items[done:]] for kind in ("image", "text"))
    with _bar(len(items), done, shown=not quiet and len(images) > 1) as advance:
        if images:
            for batch in scorer.stream(images, texts):
                yield [replace(one, source=item.source or one.source) for one, item in zip(batch, left, strict=False)]
                advance(len(batch))


@contextmanager
def _bar(total: int, done: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar of progress; it is called with the number of items that were just judged."""
    if not shown:  # rich takes 50 ms to load
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Judging", total=total, completed=done)
        yield lambda count: progress.advance(task, count)


def _printed(scorer: AnyScorer, items: Sequence[Input]) -> Iterator[Verdict]:
    for batch in _judged(scorer, items, quiet=True):
        for verdict in batch:
            print(_line(verdict), flush=True)
            yield verdict


def _line(verdict: Verdict) -> str:
    """A verdict as JSON; bytes of a path that are not UTF-8 are escaped."""
    return json.dumps(verdict.to_dict(), ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def _written(scorer: AnyScorer, items: Sequence[Input], out: Path) -> Iterator[Verdict]:
    """Write the verdicts; those that an earlier run with the same model, policy and items left are taken over."""
    with kept_lines(out, _setting(scorer, items)) as kept:
        if kept.done:
            print(f"{kept.done} of {len(items)} items were judged by a run before this one", file=sys.stderr)
        for batch in _judged(scorer, items, kept.done):
            kept.add([_line(verdict) for verdict in batch])
        if out.suffix.lower() == ".jsonl":
            with new_file(out) as stream:
                stream.writelines(f"{line}\n" for line in kept)
        else:
            _write_table(scorer, out, (Verdict.from_dict(json.loads(line)) for line in kept))
        yield from (Verdict.from_dict(json.loads(line)) for line in kept)


def _setting(scorer: AnyScorer, items: Sequence[Input]) -> dict[str, object]:
    """What a run must have in common with one that it goes on with."""
    return {
        "model": scorer.name,
        "weights": scorer.weights,
        "policy": scorer.policy_id,
        "number of items": len(items),
        "list of items": hashlib.sha256(repr(items).encode(errors="surrogateescape")).hexdigest(),
    }


def _written_in_parts(scorer: AnyScorer, items: Sequence[Input], folder: Path, overwrite: bool) -> Iterator[Verdict]:
    """Write the verdicts as numbered files, each whole or not at all; those of an earlier run are taken over."""
    setting = _setting(scorer, items) | {"rows of a part": PART_ROWS}
    with kept_parts(folder, setting, "part-*.parquet", overwrite=overwrite):
        paths = [folder / f"part-{number:05}.parquet" for number in range(-(-len(items) // PART_ROWS))]
        done = next((number for number, path in enumerate(paths) if not path.exists()), len(paths))
        if done:
            judged = min(done * PART_ROWS, len(items))
            print(f"{judged} of {len(items)} items were judged by a run before this one", file=sys.stderr)
        for path in paths[:done]:
            yield from _read_part(path)
        judged_now = (verdict for batch in _judged(scorer, items, done * PART_ROWS) for verdict in batch)
        for path in paths[done:]:
            part = list(itertools.islice(judged_now, PART_ROWS))
            _write_table(scorer, path, part)
            yield from part


def _read_part(path: Path) -> Iterator[Verdict]:
    """What counts of the verdicts in a part: their status, decision and category."""
    columns = pyarrow_for(path).parquet.read_table(path, columns=["status", "decision", "category"]).to_pydict()
    for status, decision, category in zip(*columns.values(), strict=True):
        yield Verdict(status, decision, category or None, {}, policy="", model="")


def _write_table(scorer: AnyScorer, path: Path, verdicts: Iterable[Verdict]) -> None:
    categories = scorer.score_names
    columns = (*COLUMNS, *(f"score of {name}" for name in categories))
    write_rows(path, columns, (_cells(verdict, categories) for verdict in verdicts))


def _cells(verdict: Verdict, categories: Iterable[str]) -> list[str | float | None]:
    """A verdict as a row of `COLUMNS` and scores; None where it has no score."""
    source = os.fsencode(verdict.source).decode("utf-8", "replace")
    score = verdict.scores[verdict.category] if verdict.category else None
    unseen = ", ".join(f"{cause} {one}" for cause, one in (verdict.unseen or {}).items())
    place = json.dumps(verdict.to_dict()["place"]) if verdict.place else ""
    told = (source, verdict.status, verdict.decision, verdict.category or "", score, verdict.detail, unseen, place)
    return [*told, verdict.model, verdict.policy, verdict.weights, verdict.engine, *map(verdict.scores.get, categories)]


def _counted(verdicts: Iterable[Verdict], counts: Counter[str]) -> Iterator[Verdict]:
    for verdict in verdicts:
        counts[_outcome(verdict)] += 1
        yield verdict


def _outcome(verdict: Verdict) -> str:
    """What the summary calls a verdict: its decision, or why there is none."""
    if verdict.status != "ok":
        return verdict.status
    return verdict.decision if verdict.is_safe or verdict.is_flagged else "review for what was unseen"


def _print_summary(counts: Counter[str], listing: Listing, out: Path | None) -> None:
    """How many items came out how, and which files were left out, on standard error."""
    total = f"{sum(counts.values())} items: " + ", ".join(f"{count} {name}" for name, count in counts.most_common())
    print(total + (f"; written to {out}" if out else ""), file=sys.stderr)
    if listing.passed_over:
        named = ", ".join(listing.passed_over[:3]) + (", ..." if len(listing.passed_over) > 3 else "")
        print(
            f"{len(listing.passed_over)} files are not pictures or videos and were not judged: {named}", file=sys.stderr
        )


def _text_name(number: int, texts: Sequence[str | None]) -> str:
    """What a text is called: what is printed ends up in logs, where prompts have no place."""
    return f"text {number + 1}, {len(texts[number] or '')} characters"


def _moment(verdict: Verdict) -> str:
    """Which frame of an animation or video was flagged, and when it is shown; empty for other verdicts."""
    place = verdict.place
    if place is None or place.frame is None or not verdict.is_flagged:
        return ""
    return f"frame {place.frame}" + ("" if place.seconds is None else f" at {place.seconds:.2f} s")


def exit_status(verdicts: Iterable[Verdict]) -> int:
    """4 when anything could not be judged, or not enough of it, else 3 when anything is flagged, else 0."""
    status = 0
    for verdict in verdicts:
        judged = verdict.is_safe or verdict.is_flagged
        status = max(status, EXIT_UNJUDGED if not judged else EXIT_UNSAFE if verdict.is_flagged else 0)
    return status


def _print_table(scorer: AnyScorer, verdicts: list[Verdict], texts: Sequence[str | None]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"safe": "green", "review": "yellow", "unsafe": "red", "unknown": "magenta"}
    # A long common folder would fold every row, so it is shown once.
    folders = {os.path.dirname(verdict.source) for verdict in verdicts}
    folder = folders.pop() if len(folders) == 1 else ""
    caption = f"in {folder}" if folder else None
    table = Table(title=f"{scorer.name}, policy {scorer.policy_id}", caption=caption)
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
