"""`zoo data`: datasets that the zoo can make by itself."""

from __future__ import annotations

import argparse

from zoo.commands.common import Commands, add_command, add_flag, add_flags, add_list, call_with, names, renamed


def add(commands: Commands) -> None:
    parser = add_command(commands, "data", _signs, "write a dataset to disk", "zoo data signs --out runs/signs")
    kinds = parser.add_subparsers(title="datasets", metavar="DATASET", required=True)
    signs = add_command(kinds, "signs", _signs)
    add_flag(signs, "--out", "manifest.csv and images/", metavar="DIR", required=True)
    for split, count in (("train", 4000), ("val", 400), ("test", 800)):
        add_flag(signs, f"--{split}", f"pictures in {split}", metavar="N", default=count)
    add_flags(signs, "--seed")
    questions = add_command(kinds, "questions", _questions)
    add_flag(questions, "--signs", "folder that `zoo data signs` wrote", metavar="DIR", required=True)
    add_flag(questions, "--out", "manifest, a CSV file", metavar="FILE", required=True)
    wording = "which of two sets of phrasings, which share no sentence"
    questions.add_argument("--wording", choices=("plain", "new"), default="plain", help=wording)
    add_flag(questions, "--per-image", "questions on a picture, 1 to 5", metavar="N", default=5)
    add_flags(questions, "--seed")
    _add_proxy(kinds)
    _add_folder(kinds)
    _add_corpora(kinds)


def _add_proxy(kinds: Commands) -> None:
    proxy = add_command(kinds, "proxy", _proxy, renamed={"--words": "--positive-words", "--column": "--columns"})
    text = "manifest of captions, a CSV or Parquet file: image, text, split"
    add_flag(proxy, "--captions", text, metavar="MANIFEST", required=True)
    add_flags(proxy, "--image-root", "--columns")
    add_flag(proxy, "--positive-words", "whole words in any case", required=True)
    add_flag(proxy, "--out", "manifest, a CSV file", metavar="FILE", required=True)
    add_flag(proxy, "--mismatch", "share of rows whose prompt is another photo's, 0 to 1", metavar="SHARE", default=0.5)
    text = "rows of each training photo, each with a prompt of its own; other photos have one"
    add_flag(proxy, "--rows-per-image", text, metavar="N", default=1)
    text = "share of validation photos to test on, 0 to 1, for captions that name no test split"
    add_flag(proxy, "--test-share", text, metavar="SHARE", default=0.5)
    add_flags(proxy, "--seed")


def _add_folder(kinds: Commands) -> None:
    folder = add_command(kinds, "folder", _folder)
    add_flag(folder, "folder", "folder of SPLIT/CLASS/image or CLASS/image files", metavar="DIR")
    add_flag(folder, "--out", "manifest, a CSV file: image, label, split", metavar="FILE", required=True)
    text = "share of train that becomes val, 0 to 1, for a folder without a validation split (default: 0.1)"
    add_flag(folder, "--val-share", text, metavar="SHARE")
    add_flags(folder, "--seed")


def _add_corpora(kinds: Commands) -> None:
    corpora = add_command(kinds, "corpora", _corpora)
    add_flag(corpora, "corpora", "YAML file of sources, a file or a shipped name", metavar="SPEC")
    add_flag(corpora, "--root", "folder of the files that it names", metavar="DIR", required=True)
    text = "manifest, a CSV file: text, labels, judged, source, split"
    add_flag(corpora, "--out", text, metavar="FILE", required=True)
    add_flags(corpora, "--seed")
    add_list(kinds, "data", "list the shipped descriptions of data")


def _signs(options: argparse.Namespace) -> int:
    """Drawn signs with captions, a third of them forbidden.

    zoo data signs --out runs/signs
    """
    from zoo.data.signs import write_signs

    print(call_with(write_signs, options))
    return 0


def _questions(options: argparse.Namespace) -> int:
    """Questions and answers about drawn signs, for a vision-language model.

    zoo data questions --signs runs/signs --out runs/signs/questions.csv
    """
    from zoo.data.questions import write_questions

    print(call_with(write_questions, options))
    return 0


def _proxy(options: argparse.Namespace) -> int:
    r"""Photos and prompts that show or ask for a concept, from a manifest of captions.

    Write a manifest (image, text, labels, split, kind) to train and test judges of photo and prompt together.
    A row is unsafe where its photo shows the concept, or its prompt asks for it: labels in_image, in_prompt.
    A photo shows the concept where any of its captions has one of the words: one that no caption names counts
    as absent. In a share of the rows the prompt is a caption of another photo of the same split.

    zoo data proxy --captions flickr8k/captions.csv --columns text=caption \
                 --positive-words dog,dogs,puppy,puppies --out runs/flickr8k_proxy/manifest.csv
    """
    from rich.console import Console
    from rich.table import Table

    from zoo.data.proxy import KINDS, write_proxy

    words, columns = names(options.positive_words), renamed(options.columns)
    table = call_with(write_proxy, options, words=words, columns=columns)
    shown = Table("split", "rows", *KINDS, "unsafe", title=f"{options.out}: where the concept is")
    for split, counts in table.items():
        rows = counts.total()
        share = f"{1 - counts['neither'] / rows:.1%}" if rows else "-"
        shown.add_row(split, str(rows), *(str(counts[kind]) for kind in KINDS), share)
    Console().print(shown)
    return 0


def _folder(options: argparse.Namespace) -> int:
    """A manifest of a folder of images: SPLIT/CLASS/image or CLASS/image.

    zoo data folder photos --out photos/manifest.csv
    """
    from rich.console import Console
    from rich.table import Table

    from zoo.data.folder import write_folder_manifest

    report = write_folder_manifest(options.folder, options.out, val_share=options.val_share, seed=options.seed)
    splits = [split for split in ("train", "val", "test", "") if any(key[0] == split for key in report.counts)]
    table = Table("class", *(split or "no split" for split in splits), title=str(report.manifest))
    for label in sorted({label for _, label in report.counts}):
        table.add_row(label, *(str(report.counts.get((split, label), 0)) for split in splits))
    totals = [sum(count for (split, _), count in report.counts.items() if split == one) for one in splits]
    table.add_section()
    table.add_row("all", *map(str, totals))
    Console().print(table)
    if report.skipped:
        first = report.skipped[0]
        print(f"left out, because their names are not those of images: {len(report.skipped)} files; first: {first}")
    return 0


def _corpora(options: argparse.Namespace) -> int:
    """A manifest of several corpora of texts, each with its own categories.

    zoo data corpora text_corpora --root corpora --out runs/text/manifest.csv
    """
    from rich.console import Console
    from rich.table import Column, Table

    from zoo.assets import find_asset
    from zoo.data.corpora import Corpora, write_corpora
    from zoo.data.manifest import SPLITS

    spec = Corpora.read(find_asset(options.corpora, "data"))
    report = write_corpora(spec, options.root, options.out, options.seed)
    sources = Table("source", "rows", "of a text seen before", "unusable", title=str(report.manifest))
    for name, count in report.sources.items():
        sources.add_row(name, str(count.rows), str(count.merged), str(count.unusable))
    categories = Table(Column("category", no_wrap=True), *SPLITS, "both ways", title="positives of judged")
    for name in dict.fromkeys(mark.name for source in spec.sources for mark in source.categories):
        cells = [f"{report.positives.get((name, s), 0)} of {report.judged.get((name, s), 0)}" for s in SPLITS]
        categories.add_row(name, *cells, str(report.contradictions.get(name, 0)))
    console = Console()
    console.print(sources)
    console.print(categories)
    print(
        f"{report.near_duplicates} texts nearly repeat another, and share its split; "
        f"{report.unlabelled} were left out, labelled both ways in everything"
    )
    return 0
