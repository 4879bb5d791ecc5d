"""`zoo leaderboard`: the table of robustness reports, from their JSON files alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from zoo.commands.common import Commands, add_command, add_flag


def add(commands: Commands) -> None:
    """Add `zoo leaderboard`."""
    text = "compare robustness reports: a Markdown table, and robustness against the budget as a figure"
    example = "zoo leaderboard runs/robustness --out leaderboard.md --plot curve.png"
    parser = add_command(commands, "leaderboard", _leaderboard, text, example)
    parser.add_argument(
        "reports", nargs="+", type=Path, metavar="REPORT", help="JSON files of `zoo evaluate robustness`, or folders"
    )
    parser.add_argument("--sort", default="asr_at_fpr", metavar="COLUMN", help="best first")
    add_flag(parser, "--out", "the table that is printed", metavar="FILE")
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw all curves (measured with --eps) into one figure"
    )
    add_flag(parser, "--json", "plain data in place of the Markdown table")


def _leaderboard(options: argparse.Namespace) -> int:
    from zoo.evaluation.robustness.leaderboard import leaderboard, markdown, read_reports

    reports = read_reports(options.reports)
    groups = leaderboard(reports, options.sort)
    text = json.dumps(groups, indent=1, ensure_ascii=False) + "\n" if options.json else markdown(groups)
    print(text, end="")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    if options.plot:
        from zoo.evaluation.robustness.leaderboard import plot_curves

        plot_curves(reports, options.plot)
    return 0
