"""`zoo evaluate texts`: how well a model of texts ranks each category, clean and under attack, beside a baseline."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command, add_flag, add_flags
from zoo.errors import BadArgumentError
from zoo.files import is_bundle

EXAMPLE = (
    "zoo evaluate texts --model releases/prompts --data runs/text/manifest.csv \\\n"
    "             --baseline minilm:sentence-transformers/all-MiniLM-L6-v2 --search 20"
)


def add(actions: Commands) -> None:
    """Add `zoo evaluate texts`."""
    text = "rank texts by category: AUPRC and AUROC, edited at random and by search, beside a baseline"
    parser = add_command(actions, "texts", _evaluate, text, EXAMPLE, {"--bundle": "--latency-of"})
    add_flag(parser, "--model", "release directory or registry name of a classifier of texts", required=True)
    add_flag(parser, "--data", "as `zoo data corpora` writes it", required=True)
    add_flag(parser, "--split", default="test")
    text = "also logistic regression on a frozen MiniLM, directory or Hub id"
    parser.add_argument("--baseline", metavar="minilm:LM", help=text)
    text = "kinds of random edits: all, none, or homoglyphs,spacing,..."
    parser.add_argument("--attacks", default="all", metavar="LIST", help=text)
    for name, default, text in (
        ("--search", 0, "also search against N positives a category"),
        ("--queries", 200, "texts that one search may have scored"),
        ("--draws", 1000, "draws of the bootstrap"),
        ("--latency", 200, "texts timed, 0 for none"),
    ):
        parser.add_argument(name, type=int, default=default, metavar="N", help=text)
    text = "also time this bundle, exported from the release"
    parser.add_argument("--latency-of", metavar="BUNDLE", help=text)
    add_flags(parser, "--limit", "--seed")
    add_flag(parser, "--out", "report as JSON, and its figure as PNG", metavar="DIR", default=Path("runs/texts"))
    add_flag(parser, "--update-card", "the means")


def _evaluate(options: argparse.Namespace) -> int:
    from zoo.adversary.text.edits import KINDS
    from zoo.evaluation.texts.report import plot_text_report, print_text_report
    from zoo.evaluation.texts.run import TextOptions, evaluate_texts

    if options.update_card and (is_bundle(options.model) or not Path(options.model).is_dir()):
        raise BadArgumentError("--update-card writes into a release directory; export again to carry the figures on")
    named = {"all": tuple(KINDS), "none": ()}
    attacks = named.get(options.attacks, tuple(part.strip() for part in options.attacks.split(",")))
    report = evaluate_texts(
        options.model,
        options.data,
        options.baseline,
        TextOptions(
            split=options.split,
            attacks=attacks,
            search=options.search,
            queries=options.queries,
            limit=options.limit,
            seed=options.seed,
            draws=options.draws,
            bundle=options.latency_of,
            latency=options.latency,
            progress=True,
            command=options.invocation,
        ),
    )
    print_text_report(report)
    path = report.write(options.out)
    print(f"figures: {path}, {plot_text_report(report, path.with_suffix('.png'))}")
    if options.update_card:
        report.update_card(Path(options.model))
    return 0
