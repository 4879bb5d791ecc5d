"""`zoo evaluate`: how often a model with its policy is right on labelled data, with a report; the rest apart."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands import evaluate_guard, evaluate_robustness, evaluate_texts
from zoo.commands.common import Commands, add_command, add_flag, add_flags, names, read_policy, renamed
from zoo.errors import BadArgumentError
from zoo.files import is_bundle


def add(commands: Commands) -> None:
    """Add `zoo evaluate` with its actions."""
    text = "measure a release or bundle on a labelled manifest: AUROC, rates, retrieval, report"
    example = "zoo evaluate --model releases/x --data data/manifest.csv --split test --report reports/x"
    parser = add_command(commands, "evaluate", _evaluate, text, example)
    # Not `required`: `zoo evaluate guard` goes without; _evaluate() asks for both.
    others = "{guard,robustness,texts}"
    parser.usage = f"zoo evaluate --model MODEL --data DATA [options]\n       zoo evaluate {others} --help"
    add_flag(parser, "--model", "bundle or release directory, or registry name (required)")
    add_flag(parser, "--data", "image, text, label, split (required)")
    add_flags(parser, "--image-root", "--columns")
    add_flag(parser, "--split", "(default: all rows)")
    add_flag(parser, "--policy", "it judges in place of the model's own")
    add_flags(parser, "--positive-label", "--positive-words")
    parser.add_argument("--retrieval", action="store_true", help="also recall at 1, 5, 10 between images and texts")
    add_flags(parser, "--report", "--update-card")
    parser.set_defaults(wrong_usage=parser.error)
    parser.allow_abbrev = False  # else it takes options of the actions below for abbreviations of its own
    actions = parser.add_subparsers(title="other evaluations", metavar=others, prog="zoo evaluate")
    for module in (evaluate_guard, evaluate_robustness, evaluate_texts):
        module.add(actions)


def _evaluate(options: argparse.Namespace) -> int:
    missing = [f"--{name}" for name in ("model", "data") if getattr(options, name) is None]
    if missing:
        options.wrong_usage(f"the following arguments are required: {', '.join(missing)}")
    from zoo.evaluation.labelling import Labelling, read_rows
    from zoo.evaluation.verdicts import evaluate, retrieval

    if options.update_card and (is_bundle(options.model) or not Path(options.model).is_dir()):
        raise BadArgumentError("--update-card writes into a release directory; export again to carry the figures on")
    rows = read_rows(options.data, options.image_root, renamed(options.columns), options.split)
    labelling = Labelling(options.positive_label, names(options.positive_words))
    result = evaluate(
        options.model,
        rows,
        labelling,
        policy=read_policy(options.policy),
        data=options.data.name,
        command=options.invocation,
    )
    if options.retrieval:
        result.figures.update(retrieval(options.model, rows))
    for name, value in result.figures.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
    if options.report:
        print(f"{'report':24} {result.write_page(options.report)}")
    if options.update_card:
        result.update_card(Path(options.model))
    return 0
