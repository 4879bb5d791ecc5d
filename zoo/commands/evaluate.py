"""`zoo evaluate`: a model with its policy on labelled data; `guard`, `robustness` and `texts` measure more."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command, add_flag, add_flags, call_with, names, read_policy, renamed
from zoo.commands.robustness import add_robustness
from zoo.errors import BadArgumentError
from zoo.files import is_bundle

GUARD_EXAMPLE = (
    "zoo evaluate guard --lvlm runs/guard/tiny_llava --detector runs/quickstart/release \\\n"
    "             --data runs/guard/data/questions.csv --split test --report report --out guard.json"
)
TEXTS_EXAMPLE = (
    "zoo evaluate texts --model releases/prompts --data runs/text/manifest.csv \\\n"
    "             --baseline minilm:hf-hub:sentence-transformers/all-MiniLM-L6-v2 --search 20"
)
#: What `--split` takes, and what it means to leave it out.
SPLITS = ("train", "val", "test", "all")
UNSEEN = "(default: all rows; of rows that name none, those that training kept for the test)"


def add(commands: Commands) -> None:
    text = "measure a release or bundle on a labelled manifest: AUROC, rates, retrieval, report"
    example = "zoo evaluate --model releases/x --data data/manifest.csv --split test --report reports/x"
    parser = add_command(commands, "evaluate", _evaluate, text, example)
    # Not `required`: `zoo evaluate guard` goes without; _evaluate() asks for both.
    others = "{guard,robustness,texts}"
    parser.usage = f"zoo evaluate --model MODEL --data DATA [options]\n       zoo evaluate {others} --help"
    add_flag(parser, "--model", "bundle or release directory, or registry name (required)")
    add_flag(parser, "--data", "image, text, label, split (required)")
    add_flags(parser, "--image-root", "--columns")
    add_flag(parser, "--split", UNSEEN, choices=SPLITS)
    add_flag(parser, "--policy", "it judges in place of the model's own")
    add_flags(parser, "--positive-label", "--positive-words")
    parser.add_argument("--retrieval", action="store_true", help="also recall at 1, 5, 10 between images and texts")
    add_flags(parser, "--report", "--update-card")
    parser.set_defaults(wrong_usage=parser.error)
    parser.allow_abbrev = False  # else it takes options of the actions below for abbreviations of its own
    actions = parser.add_subparsers(title="other evaluations", metavar=others, prog="zoo evaluate")
    _add_guard(actions)
    add_robustness(actions)
    _add_texts(actions)


def _evaluate(options: argparse.Namespace) -> int:
    missing = [f"--{name}" for name in ("model", "data") if getattr(options, name) is None]
    if missing:
        options.wrong_usage(f"the following arguments are required: {', '.join(missing)}")
    from zoo.evaluation.labelling import Labelling, read_rows
    from zoo.evaluation.run import evaluate, retrieval

    _check_card(options)
    labelling = Labelling(options.positive_label, names(options.positive_words))
    rows = read_rows(
        options.data,
        options.image_root,
        renamed(options.columns),
        options.split,
        labelling=labelling,
        model=options.model,
    )
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


def _check_card(options: argparse.Namespace) -> None:
    if options.update_card and (is_bundle(options.model) or not Path(options.model).is_dir()):
        raise BadArgumentError("--update-card writes into a release directory; export again to carry the figures on")


def _add_guard(actions: Commands) -> None:
    """Add `zoo evaluate guard`."""
    text = "answer labelled questions with and without the guard: DSR, FPR, detector, overhead, report"
    parser = add_command(actions, "guard", _guard, text, GUARD_EXAMPLE)
    need = parser.add_argument_group("what is measured")
    need.add_argument(
        "--lvlm",
        required=True,
        metavar="LVLM",
        help="vision-language model: transformers directory or hf-hub:ORG/NAME",
    )
    text = "release directory or registry name of a safeclip_* model"
    need.add_argument("--detector", required=True, metavar="MODEL", help=text)
    add_flag(need, "--policy", "it judges in place of the detector's own")
    text = "flagged images: instruct the model to check, refuse without asking it, or only flag"
    need.add_argument("--correction", choices=("instruct", "refuse", "flag"), default="instruct", help=text)
    need.add_argument(
        "--layer", type=int, metavar="N", help="hidden state whose CLS token is read (default: the detector's)"
    )
    rows = parser.add_argument_group("on what")
    add_flag(rows, "--data", "image, question, label (1 unsafe), split", required=True)
    add_flags(rows, "--image-root")
    add_flag(rows, "--columns", "text is the question")
    add_flag(rows, "--split", UNSEEN, choices=SPLITS)
    add_flags(rows, "--positive-label")
    rows.add_argument("--question", metavar="TEXT", help="ask this of every image instead of the manifest's questions")
    add_flags(rows, "--limit")
    how = parser.add_argument_group("how")
    text = r"prompt with {image} and {question}, \n for a line break (default: the chat template, else LLaVA-1.5's)"
    how.add_argument("--prompt-template", metavar="TEMPLATE", help=text)
    how.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="longest answer in tokens")
    text = "causal language model, directory or hf-hub:ORG/NAME, that also judges what is a refusal"
    how.add_argument("--judge", metavar="LM", help=text)
    add_flags(how, "--device", "--seed")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    add_flag(how, "--dtype", "auto is the checkpoint's own", choices=dtypes, default="auto")
    out = parser.add_argument_group("where to")
    add_flag(out, "--out", "figures, intervals and every answer as JSON", metavar="FILE")
    add_flags(out, "--report")


def _guard(options: argparse.Namespace) -> int:
    if getattr(options, "model", None):
        raise BadArgumentError("--model is for the plain `zoo evaluate`; a guard takes --lvlm and --detector")
    from zoo.evaluation.guard import run as guard
    from zoo.evaluation.guard.figures import GuardReport, figures
    from zoo.evaluation.guard.report import table, write_guard_report
    from zoo.evaluation.labelling import Labelling, read_rows
    from zoo.guard.detector import load_detector
    from zoo.guard.guard import Guard
    from zoo.guard.lvlm import load_lvlm

    columns = renamed(options.columns)
    if not options.question:
        columns.setdefault("text", "question")
    labelling = Labelling(options.positive_label)
    rows = read_rows(
        options.data, options.image_root, columns, options.split, labelling=labelling, model=options.detector
    )
    queries = guard.queries_of(rows, labelling, question=options.question, limit=options.limit, seed=options.seed)
    detector = load_detector(options.detector, options.policy, layer=options.layer)
    lvlm = load_lvlm(options.lvlm, template=options.prompt_template, device=options.device, dtype=options.dtype)
    judge = guard.RefusalJudge(options.judge, options.device) if options.judge else None
    guarded = Guard(lvlm.model, lvlm.processor, detector, correction=options.correction)
    outcomes = guard.run(queries, lvlm, guarded, max_new_tokens=options.max_new_tokens)
    if judge:
        outcomes = guard.ask_judge(outcomes, judge)
    setting = {
        "lvlm": options.lvlm,
        "detector": f"{options.detector}, layer {detector.layer}",
        "same vision tower": "yes" if guarded.tower_matches else "no: the detector comes from another CLIP",
        "policy": detector.judge.policy_id,
        "correction": options.correction,
        "data": options.data.name + (f", split {options.split}" if options.split else ""),
        "question": options.question,
        "prompt": lvlm.prompt("...").replace("\n", "\\n"),
        "answers": f"greedy, at most {options.max_new_tokens} tokens, {options.device}, {lvlm.model.dtype}",
        "judge": options.judge,
        "limit": options.limit,
        "seed": options.seed,
    }
    report = GuardReport(
        setting,
        figures(outcomes, seed=options.seed),
        outcomes,
        model=options.lvlm,
        command=options.invocation,
    )
    print(table(report))
    if options.out:
        report.write_json(options.out, indent=2)
        print(f"\nfigures and answers: {options.out}")
    if options.report:
        title = f"Guard of {Path(options.lvlm).name} on {options.data.name}"
        print(f"report: {write_guard_report(report, options.report, title)}")
    return 0


def _add_texts(actions: Commands) -> None:
    """Add `zoo evaluate texts`."""
    text = "rank texts by category: AUPRC and AUROC, edited at random and by search, beside a baseline"
    parser = add_command(actions, "texts", _texts, text, TEXTS_EXAMPLE, {"--bundle": "--latency-of"})
    add_flag(parser, "--model", "release directory or registry name of a classifier of texts", required=True)
    add_flag(parser, "--data", "as `zoo data corpora` writes it", required=True)
    add_flag(parser, "--split", default="test")
    text = "also logistic regression on a frozen MiniLM, directory or hf-hub:ORG/NAME"
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


def _texts(options: argparse.Namespace) -> int:
    from zoo.adversary.text.edits import KINDS
    from zoo.evaluation.text.report import plot_text_report, print_text_report
    from zoo.evaluation.text.run import TextOptions, evaluate_texts

    _check_card(options)
    named = {"all": tuple(KINDS), "none": ()}
    attacks = named.get(options.attacks, names(options.attacks))
    given = call_with(TextOptions, options, attacks=attacks, progress=True, command=options.invocation)
    report = evaluate_texts(options.model, options.data, options.baseline, given)
    print_text_report(report)
    path = report.write(options.out)
    print(f"figures: {path}, {plot_text_report(report, path.with_suffix('.png'))}")
    if options.update_card:
        report.update_card(Path(options.model))
    return 0
