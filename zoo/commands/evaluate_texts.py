"""`zoo evaluate texts`: how well a model of texts ranks each category, clean and under attack, beside a baseline."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command
from zoo.errors import BadArgumentError
from zoo.files import is_bundle

EXAMPLE = (
    "zoo evaluate texts --model releases/prompts --data runs/text/manifest.csv \\\n"
    "             --baseline minilm:sentence-transformers/all-MiniLM-L6-v2 --search 20"
)


def add(actions: Commands) -> None:
    """Declare the action."""
    text = "rank texts by category: AUPRC and AUROC, edited at random and by search, beside a baseline"
    parser = add_command(actions, "texts", _evaluate, text, EXAMPLE)
    parser.add_argument("--model", required=True, help="release directory or registry name of a classifier of texts")
    parser.add_argument("--data", type=Path, required=True, help="manifest that `zoo data corpora` wrote")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="default: test")
    parser.add_argument(
        "--baseline", metavar="minilm:M", help="also logistic regression on a frozen MiniLM, directory or Hub id"
    )
    parser.add_argument(
        "--attacks", default="all", metavar="LIST", help="kinds of random edits: all, none, or homoglyphs,spacing,..."
    )
    parser.add_argument("--search", type=int, default=0, metavar="N", help="also search against N positives a category")
    parser.add_argument("--queries", type=int, default=200, help="texts that one search may have scored (default: 200)")
    parser.add_argument("--limit", type=int, metavar="N", help="only N texts, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0, help="seed of edits, samples and intervals (default: 0)")
    parser.add_argument("--draws", type=int, default=1000, help="draws of the bootstrap (default: 1000)")
    parser.add_argument("--bundle", help="measure the latency of this bundle, exported from the release")
    parser.add_argument("--latency", type=int, default=200, metavar="N", help="texts timed, 0 for none (default: 200)")
    parser.add_argument("--out", type=Path, default=Path("runs/texts"), help="folder of the JSON and PNG (runs/texts)")
    parser.add_argument("--update-card", action="store_true", help="write the means into the release's card.json")


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
            bundle=options.bundle,
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
