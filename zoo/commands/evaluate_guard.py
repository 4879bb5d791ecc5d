"""`zoo evaluate guard`: what a vision-language model refuses with and without the guard, and what that costs."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command, add_flag, add_flags, renamed
from zoo.errors import BadArgumentError

EXAMPLE = (
    "zoo evaluate guard --lvlm runs/guard/tiny_llava --detector runs/quickstart/release \\\n"
    "             --data runs/guard/data/questions.csv --split test --report report --out guard.json"
)


def add(actions: Commands) -> None:
    """Add `zoo evaluate guard`."""
    text = "answer labelled questions with and without the guard: DSR, FPR, detector, overhead, report"
    parser = add_command(actions, "guard", _evaluate, text, EXAMPLE)
    need = parser.add_argument_group("what is measured")
    need.add_argument(
        "--lvlm", required=True, metavar="LVLM", help="vision-language model, a transformers directory or Hub id"
    )
    text = "release directory or registry name of a safeclip_* model"
    need.add_argument("--detector", required=True, metavar="MODEL", help=text)
    add_flag(need, "--policy", "it judges in place of the detector's own")
    need.add_argument(
        "--correction",
        choices=("instruct", "refuse", "flag"),
        default="instruct",
        help="flagged images: instruct the model to check, refuse without asking it, or only flag",
    )
    need.add_argument(
        "--layer", type=int, metavar="N", help="hidden state whose CLS token is read (default: the detector's)"
    )
    rows = parser.add_argument_group("on what")
    add_flag(rows, "--data", "image, question, label (1 unsafe), split", required=True)
    add_flags(rows, "--image-root")
    add_flag(rows, "--columns", "text is the question")
    add_flag(rows, "--split", "(default: all rows)")
    add_flags(rows, "--positive-label")
    rows.add_argument("--question", metavar="TEXT", help="ask this of every image instead of the manifest's questions")
    add_flags(rows, "--limit")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--prompt-template",
        metavar="TEMPLATE",
        help=r"prompt with {image} and {question}, \n for a line break (default: the chat template, else LLaVA-1.5's)",
    )
    how.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="longest answer in tokens")
    text = "causal language model, directory or Hub id, that also judges what is a refusal"
    how.add_argument("--judge", metavar="LM", help=text)
    add_flags(how, "--device", "--seed")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    add_flag(how, "--dtype", "auto is the checkpoint's own", choices=dtypes, default="auto")
    out = parser.add_argument_group("where to")
    add_flag(out, "--out", "figures, intervals and every answer as JSON", metavar="FILE")
    add_flags(out, "--report")


def _evaluate(options: argparse.Namespace) -> int:
    if getattr(options, "model", None):
        raise BadArgumentError("--model is for the plain `zoo evaluate`; a guard is made of --lvlm and --detector")
    from zoo.evaluation.guard import run as guard
    from zoo.evaluation.guard.figures import GuardReport, figures
    from zoo.evaluation.guard.models import RefusalJudge
    from zoo.evaluation.guard.report import table, write_guard_report
    from zoo.evaluation.labelling import Labelling, read_rows
    from zoo.evaluation.report import versions
    from zoo.guard.detector import load_detector
    from zoo.guard.guard import Guard
    from zoo.guard.lvlm import load_lvlm

    columns = renamed(options.columns)
    if not options.question:
        columns.setdefault("text", "question")
    rows = read_rows(options.data, options.image_root, columns, options.split)
    queries = guard.queries_of(
        rows, Labelling(options.positive_label), question=options.question, limit=options.limit, seed=options.seed
    )
    lvlm = load_lvlm(options.lvlm, template=options.prompt_template, device=options.device, dtype=options.dtype)
    judge = RefusalJudge(options.judge, options.device) if options.judge else None
    detector = load_detector(options.detector, options.policy, layer=options.layer)
    guarded = Guard(lvlm.model, lvlm.processor, detector, correction=options.correction)
    outcomes = guard.run(queries, lvlm, guarded, max_new_tokens=options.max_new_tokens)
    if judge:
        outcomes = guard.ask_judge(outcomes, judge.log_odds)
    setting = {
        "lvlm": options.lvlm,
        "detector": f"{options.detector}, layer {detector.layer}",
        "same vision tower": "yes" if guarded.tower_matches else "no: the detector was made of another CLIP",
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
        versions=versions(),
    )
    print(table(report))
    if options.out:
        report.write_json(options.out, indent=2)
        print(f"\nfigures and answers: {options.out}")
    if options.report:
        title = f"Guard of {Path(options.lvlm).name} on {options.data.name}"
        print(f"report: {write_guard_report(report, options.report, title)}")
    return 0
