"""`zoo panel`: heads that share an image tower become one release."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command
from zoo.errors import BadArgumentError


def add(commands: Commands) -> None:
    """Declare the subcommand."""
    text = "put heads and zero-shot policies on one image tower: one encoding, a verdict of each and of all"
    example = "zoo panel clip_vit_l14 imported/laion imported/q16 my_clip=my_policy.yaml --combine any --out my_panel"
    parser = add_command(commands, "panel", _panel, text, example)
    parser.add_argument("tower", help='architecture, such as clip_vit_l14 (`zoo list "*.panel"` without the tag)')
    parser.add_argument(
        "members",
        nargs="+",
        metavar="MEMBER[=POLICY]",
        help="release directory, hf-hub:ORG/NAME or registry name; and the policy file to judge it by, else its own",
    )
    parser.add_argument(
        "--combine",
        choices=("any", "majority", "mean", "max"),
        default="any",
        help="unsafe when any head says so, when more than half do, by the mean risk, or as the head of the highest "
        "risk says (default: any)",
    )
    parser.add_argument("--out", type=Path, required=True, help="release directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing release")


def _panel(options: argparse.Namespace) -> int:
    from zoo.release.panel import Member, create_panel
    from zoo.release.store import write_release

    members: list[Member] = []
    for member in options.members:
        source, sign, policy = member.partition("=")
        if sign and not policy:
            raise BadArgumentError(f'"{member}": a policy file is missing after the =')
        members.append((source, policy) if sign else source)
    panel = create_panel(options.tower, members, options.combine)
    write_release(panel.model, panel.policy, options.out, overwrite=options.overwrite)
    print(f"{options.out}: {panel.card.name}, combined by {options.combine}: {', '.join(panel.card.heads)}")
    return 0
