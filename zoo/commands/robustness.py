"""`zoo evaluate robustness`, `zoo leaderboard`, `zoo attacks`: attack a model, compare reports, list the attacks."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

from zoo.assets import find_asset
from zoo.commands.common import Commands, add_command, add_flag, add_flags, call_with, names, read_policy, renamed
from zoo.errors import BadArgumentError
from zoo.files.held import is_bundle
from zoo.files.writing import refuse_input, write_file

RENAMED = {"--positive": "--positive-label", "--words": "--positive-words", "--calibrate": "--threshold-split"}


def add(commands: Commands) -> None:
    parser = add_command(commands, "attacks", _list)
    add_command(parser.add_subparsers(metavar="{list}"), "list", _list)
    parser = add_command(commands, "leaderboard", _leaderboard)
    add_flag(parser, "reports", "JSON files of `zoo evaluate robustness`, or folders", metavar="REPORT", nargs="+")
    add_flag(parser, "--sort", "best first", metavar="COLUMN", default="asr_at_fpr")
    add_flag(parser, "--out", "the table that is printed", metavar="FILE")
    add_flag(parser, "--plot", "draw all curves (measured with --eps) into one figure", metavar="PNG")
    add_flag(parser, "--json", "plain data in place of the Markdown table")


def add_robustness(actions: Commands) -> None:
    parser = add_command(actions, "robustness", _evaluate, renamed=RENAMED)
    need = parser.add_argument_group("what is attacked")
    add_flag(need, "--model", "release directory or registry name; a bundle with --replay alone", required=True)
    add_flag(need, "--policy", "it judges in place of the model's own")
    add_flag(need, "--name", "of the report and its file (default: the card's)")
    text = "the policy's decision, or the highest label of an image classifier"
    need.add_argument("--target", choices=("policy", "labels"), default="policy", help=text)
    rows = parser.add_argument_group("on what")
    add_flag(rows, "--data", "image, text, label, split")
    add_flags(rows, "--image-root", "--columns")
    add_flag(rows, "--split", choices=("train", "val", "test", "all"), default="test")
    add_flags(rows, "--positive-label", "--positive-words", "--limit")
    add_flag(rows, "--by", "figures by these columns too (kind is always)", metavar="COLUMNS", default="")
    how = parser.add_argument_group("how")
    add_flag(how, "--threat", "threat, a file or a shipped name: linf4 (see `zoo threats list`)", metavar="THREAT")
    text = "attack unsafe items only, or on images also get safe ones flagged"
    how.add_argument("--direction", choices=("evade", "both"), default="evade", help=text)
    how.add_argument("--points", choices=("policy", "fpr", "both"), default="both", help="operating points")
    add_flag(how, "--fpr", "the fixed false positive rate, 0 to 1", metavar="RATE", default=0.05)
    text = "split whose clean safe rows give the threshold at that rate"
    how.add_argument("--threshold-split", choices=("train", "val", "test"), default="val", help=text)
    add_flag(how, "--eps", "also a curve: 0,1/255,2/255,4/255 (images)", metavar="LIST", default="")
    text = "its attacks (default: the threat's but FAB-T and Square)"
    add_flag(how, "--eps-attacks", text, metavar="LIST", default="")
    add_flag(how, "--synonyms", "language model whose neighbours are synonyms", metavar="DIR")
    add_flag(how, "--batch-size", "items attacked at once", metavar="N", default=64)
    add_flags(how, "--seed", "--device")
    out = parser.add_argument_group("where to")
    add_flag(out, "--out", "report as JSON, and its curve", metavar="DIR", default=Path("runs/robustness"))
    text = "store the examples that succeed at the policy's point (--points fpr: at that), to replay or train on"
    add_flag(out, "--save", text, metavar="DIR")
    add_flag(out, "--update-card", "the worst case")
    again = parser.add_argument_group("instead of attacking")
    add_flag(again, "--replay", "judge stored examples: how many still pass", metavar="DIR")
    parser.set_defaults(wrong_usage=parser.error)


def _evaluate(options: argparse.Namespace) -> int:
    r"""Attack a release on labelled data: recall, robust accuracy, attack success, worst case, curve; or replay.

    zoo evaluate robustness --model runs/quickstart/release --data runs/quickstart/data/manifest.csv \
                 --threat linf4 --limit 40 --eps 0,1/255,2/255,4/255 --save adversarial
             zoo evaluate robustness --model runs/quickstart/bundle --replay adversarial
    """
    if options.replay:
        return _replay(options)
    _check(options)
    from zoo.adversary.threat import Threat
    from zoo.evaluation.labelling import Labelling
    from zoo.evaluation.robustness.campaign import RobustnessOptions
    from zoo.evaluation.robustness.examples import save_examples
    from zoo.evaluation.robustness.report import print_report
    from zoo.evaluation.robustness.run import evaluate_robustness
    from zoo.evaluation.robustness.victim import Selection, Victim
    from zoo.release.store import load_release

    selection = Selection(options.data, options.image_root, renamed(options.columns), names(options.by))
    threat_file = find_asset(options.threat, "threat")
    threat = Threat.read(threat_file)
    policy = read_policy(options.policy)
    victim = call_with(Victim, options, release=load_release(options.model), policy=policy)
    given = call_with(
        RobustnessOptions,
        options,
        labelling=Labelling(options.positive_label, names(options.positive_words)),
        split=None if options.split == "all" else options.split,
        eps=read_eps(options.eps) if options.eps else (),
        eps_attacks=names(options.eps_attacks),
        keep=options.save is not None,
        progress=True,
    )
    outcome = evaluate_robustness(victim, options.model, selection, threat, threat_file.stem, given)
    report = dataclasses.replace(outcome.report, model=options.name) if options.name else outcome.report
    print_report(report)
    path = report.write(options.out)
    print(f"figures: {path}")
    if report.curves:
        from zoo.evaluation.robustness.leaderboard import plot_curves

        print(f"curve: {plot_curves([report], path.with_suffix('.png'))}")
    if options.save:
        stored = save_examples(victim, outcome, selection, options.save)
        hold = f"{stored.survived} of {stored.examples} hold as 8-bit files"
        print(f"examples at the operating point {stored.point}: {hold}; {options.save}/manifest.csv")
    if options.update_card:
        report.update_card(Path(options.model))
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what does not go together before anything heavy is loaded."""
    missing = [f"--{name}" for name in ("data", "threat") if getattr(options, name) is None]
    if missing:
        options.wrong_usage(f"the following arguments are required: {', '.join(missing)} (or --replay)")
    if is_bundle(options.model):
        raise BadArgumentError(
            f"{options.model} is a bundle, which has no gradients: attack the release that it was exported from with "
            "--save DIR, and --replay DIR on the bundle"
        )
    check_card(options)
    if options.save and options.save.exists() and (options.save.is_file() or any(options.save.iterdir())):
        raise BadArgumentError(f"--save {options.save}: exists and is not empty; give another folder")
    if options.batch_size < 1 or options.seed < 0:
        raise BadArgumentError(
            f"--batch-size is at least 1 and --seed at least 0: {options.batch_size}, {options.seed}"
        )


def check_card(options: argparse.Namespace) -> None:
    """Refuse `--update-card` for anything but a release directory."""
    if options.update_card and (is_bundle(options.model) or not Path(options.model).is_dir()):
        raise BadArgumentError("--update-card writes into a release directory; export again to carry the figures on")


def _replay(options: argparse.Namespace) -> int:
    from zoo.evaluation.robustness.examples import print_replay, replay

    given = [f"--{name}" for name in ("data", "threat", "save", "eps") if getattr(options, name)]
    if given or options.update_card or options.target == "labels":
        raise BadArgumentError(
            f"--replay judges what is stored and takes no {', '.join(given) or 'card and no labels'}"
        )
    policy = read_policy(options.policy)
    report = replay(options.model, options.replay, policy=policy, device=options.device, command=options.command)
    report = dataclasses.replace(report, model=options.name) if options.name else report
    print_replay(report)
    print(f"figures: {report.write(options.out)}")
    return 0


def read_eps(text: str) -> tuple[float, ...]:
    """The budgets of `0,1/255,2/255`, sorted. Raises BadArgumentError for what is not a number of at least 0."""
    from zoo.adversary.threat import read_fraction

    budgets = set()
    for part in names(text):
        try:
            value = read_fraction(part)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise BadArgumentError(
                f'--eps: a budget is a number or a fraction of at least 0, such as 4/255, got "{part}"'
            )
        budgets.add(value)
    if not budgets:
        raise BadArgumentError("--eps names no budget; expected numbers or fractions such as 0,1/255,4/255")
    return tuple(sorted(budgets))


def _leaderboard(options: argparse.Namespace) -> int:
    """Compare robustness reports: a Markdown table, and robustness against the budget as a figure.

    zoo leaderboard runs/robustness --out leaderboard.md --plot curve.png
    """
    from zoo.evaluation.robustness.leaderboard import leaderboard, markdown, plot_curves, read_reports

    for path in filter(None, (options.out, options.plot)):
        refuse_input(path, *options.reports, *(file for one in options.reports for file in one.glob("*.json")))
    reports = read_reports(options.reports)
    groups = leaderboard(reports, options.sort)
    text = json.dumps(groups, indent=1, ensure_ascii=False) + "\n" if options.json else markdown(groups)
    print(text, end="")
    if options.out:
        write_file(options.out, text)
    if options.plot:
        plot_curves(reports, options.plot)
    return 0


def _list(options: argparse.Namespace) -> int:
    """List every attack: what it changes, its bound, its source.

    zoo attacks list
    """
    from zoo.adversary.threat import SOURCES

    for name, source in SOURCES.items():
        print(f"{name:12} {source.kind:6} {source.bound:20} {source.needs:21} {source.paper}")
    return 0
