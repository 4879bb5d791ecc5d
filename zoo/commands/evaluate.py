"""`zoo evaluate`: a model with its policy on labelled data; `guard`, `robustness` and `texts` measure more.

`zoo guard`: what the guard of a vision-language model costs at real size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command, add_flag, add_flags, call_with, names, read_policy, renamed
from zoo.commands.robustness import add_robustness, check_card
from zoo.errors import BadArgumentError

#: What `--split` takes, and what it means to leave it out.
SPLITS = ("train", "val", "test", "all")
UNSEEN = "(default: all rows; of rows that name none, those that training kept for the test)"


def add(commands: Commands) -> None:
    parser = add_command(commands, "evaluate", _evaluate)
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
    _add_bench(commands)


def _evaluate(options: argparse.Namespace) -> int:
    """Measure a release or bundle on a labelled manifest: AUROC, rates, retrieval, report.

    zoo evaluate --model releases/x --data data/manifest.csv --split test --report reports/x
    """
    missing = [f"--{name}" for name in ("model", "data") if getattr(options, name) is None]
    if missing:
        options.wrong_usage(f"the following arguments are required: {', '.join(missing)}")
    from zoo.evaluation.labelling import Labelling, read_rows
    from zoo.evaluation.run import evaluate, retrieval

    check_card(options)
    labelling = Labelling(options.positive_label, names(options.positive_words))
    rows = call_with(read_rows, options, columns=renamed(options.columns), labelling=labelling)
    policy = read_policy(options.policy)
    result = call_with(evaluate, options, rows=rows, labelling=labelling, policy=policy, data=options.data.name)
    if options.retrieval:
        result.figures.update(retrieval(options.model, rows))
    for name, value in result.figures.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
    if options.report:
        print(f"{'report':24} {result.write_page(options.report)}")
    if options.update_card:
        result.update_card(Path(options.model))
    return 0


def _add_guard(actions: Commands) -> None:
    """Add `zoo evaluate guard`."""
    parser = add_command(actions, "guard", _guard)
    need = parser.add_argument_group("what is measured")
    text = "vision-language model: transformers directory or hf-hub:ORG/NAME"
    add_flag(need, "--lvlm", text, metavar="LVLM", required=True)
    text = "release directory or registry name of a safeclip_* model"
    add_flag(need, "--detector", text, metavar="MODEL", required=True)
    add_flag(need, "--policy", "it judges in place of the detector's own")
    text = "flagged images: instruct the model to check, refuse without asking it, or only flag"
    need.add_argument("--correction", choices=("instruct", "refuse", "flag"), default="instruct", help=text)
    add_flag(need, "--layer", "hidden state whose CLS token is read (default: the detector's)", metavar="N")
    rows = parser.add_argument_group("on what")
    add_flag(rows, "--data", "image, question, label (1 unsafe), split", required=True)
    add_flags(rows, "--image-root")
    add_flag(rows, "--columns", "text is the question")
    add_flag(rows, "--split", UNSEEN, choices=SPLITS)
    add_flags(rows, "--positive-label")
    add_flag(rows, "--question", "ask this of every image instead of the manifest's questions", metavar="TEXT")
    add_flags(rows, "--limit")
    how = parser.add_argument_group("how")
    text = r"prompt with {image} and {question}, \n for a line break (default: the chat template, else LLaVA-1.5's)"
    add_flag(how, "--prompt-template", text, metavar="TEMPLATE")
    add_flag(how, "--max-new-tokens", "longest answer in tokens", metavar="N", default=32)
    text = "causal language model, directory or hf-hub:ORG/NAME, that also judges what is a refusal"
    add_flag(how, "--judge", text, metavar="LM")
    add_flags(how, "--device", "--seed")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    add_flag(how, "--dtype", "auto is the checkpoint's own", choices=dtypes, default="auto")
    out = parser.add_argument_group("where to")
    add_flag(out, "--out", "figures, intervals and every answer as JSON", metavar="FILE")
    add_flags(out, "--report")


def _guard(options: argparse.Namespace) -> int:
    r"""Answer labelled questions with and without the guard: DSR, FPR, detector, overhead, report.

    zoo evaluate guard --lvlm runs/guard/tiny_llava --detector runs/quickstart/release \
                 --data runs/guard/data/questions.csv --split test --report report --out guard.json
    """
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
    rows = call_with(read_rows, options, columns=columns, labelling=labelling, model=options.detector)
    queries = call_with(guard.queries_of, options, rows=rows, labelling=labelling)
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
    measured = figures(outcomes, seed=options.seed)
    report = GuardReport(setting, measured, outcomes, model=options.lvlm, command=options.command)
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
    parser = add_command(actions, "texts", _texts, renamed={"--bundle": "--latency-of"})
    add_flag(parser, "--model", "release directory or registry name of a classifier of texts", required=True)
    add_flag(parser, "--data", "as `zoo data corpora` writes it", required=True)
    add_flag(parser, "--split", default="test")
    text = "also logistic regression on a frozen MiniLM, directory or hf-hub:ORG/NAME"
    add_flag(parser, "--baseline", text, metavar="minilm:LM")
    text = "kinds of random edits: all, none, or homoglyphs,spacing,..."
    add_flag(parser, "--attacks", text, metavar="LIST", default="all")
    add_flag(parser, "--search", "also search against N positives a category", metavar="N", default=0)
    add_flag(parser, "--queries", "texts that one search may have scored", metavar="N", default=200)
    add_flag(parser, "--draws", "draws of the bootstrap", metavar="N", default=1000)
    add_flag(parser, "--latency", "texts timed, 0 for none", metavar="N", default=200)
    add_flag(parser, "--latency-of", "also time this bundle, exported from the release", metavar="BUNDLE")
    add_flags(parser, "--limit", "--seed")
    add_flag(parser, "--out", "report as JSON, and its figure as PNG", metavar="DIR", default=Path("runs/texts"))
    add_flag(parser, "--update-card", "the means")


def _texts(options: argparse.Namespace) -> int:
    r"""Rank texts by category: AUPRC and AUROC, edited at random and by search, beside a baseline.

    zoo evaluate texts --model releases/prompts --data runs/text/manifest.csv \
                 --baseline minilm:hf-hub:sentence-transformers/all-MiniLM-L6-v2 --search 20
    """
    from zoo.adversary.text.edits import KINDS
    from zoo.evaluation.text.report import plot_text_report, print_text_report
    from zoo.evaluation.text.run import TextOptions, evaluate_texts

    check_card(options)
    named = {"all": tuple(KINDS), "none": ()}
    attacks = named.get(options.attacks, names(options.attacks))
    given = call_with(TextOptions, options, attacks=attacks, progress=True)
    report = evaluate_texts(options.model, options.data, options.baseline, given)
    print_text_report(report)
    path = report.write(options.out)
    print(f"figures: {path}, {plot_text_report(report, path.with_suffix('.png'))}")
    if options.update_card:
        report.update_card(Path(options.model))
    return 0


def _add_bench(commands: Commands) -> None:
    text = "the guard inside a vision-language model; its quality is measured by `zoo evaluate guard`"
    example = "zoo guard bench --lm-layers 16 --lm-width 2048 --lm-heads 16"
    parser = add_command(commands, "guard", _bench, text, example)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    bench = add_command(actions, "bench", _bench)
    add_flag(bench, "--lm-layers", "layers of the Llama (32: as in 7B)", metavar="N", default=32)
    add_flag(bench, "--lm-width", "its width", metavar="N", default=4096)
    add_flag(bench, "--lm-heads", "its attention heads", metavar="N", default=32)
    add_flag(bench, "--lm-hidden", "width inside its MLP (default: 8/3 of the width)", metavar="N")
    add_flag(bench, "--new-tokens", "tokens of each answer", metavar="N", default=32)
    text = "registry name whose CLIP is the tower"
    add_flag(bench, "--clip", text, metavar="NAME", default="safeclip_vit_l14_336.zeroshot")
    add_flag(bench, "--rounds", default=10)
    add_flags(bench, "--threads", "--device")
    text = "of all weights; on a CPU without bfloat16 instructions float32 is far faster"
    add_flag(bench, "--dtype", text, choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add_flag(bench, "--out", "the figures as JSON (default: they are only printed)", metavar="FILE")


def _bench(options: argparse.Namespace) -> int:
    """Time answers with and without the guard: LLaVA-1.5's sizes, random weights, both sides in turn.

    zoo guard bench --lm-layers 16 --lm-width 2048 --lm-heads 16
    """
    from zoo.evaluation.guard.bench import Size, bench_guard

    size = Size(options.lm_layers, options.lm_width, options.lm_heads, options.lm_hidden, options.clip)
    result = call_with(bench_guard, options, size=size)
    print(result.text())
    if options.out:
        result.write_json(options.out, indent=2)
    return 0
