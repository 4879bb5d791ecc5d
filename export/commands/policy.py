"""`zoo policy`: list the shipped policies, embed phrases before their first use, give a bundle another policy."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from export.bundle.store import read_bundle, use_policy
from zoo.commands.common import Commands, add_command, add_flag, add_list, list_shipped
from zoo.contract.policy import read_policy
from zoo.files.held import is_bundle
from zoo.judging.banks import cache_folder
from zoo.judging.judge import bind


def add(commands: Commands) -> None:
    text = "list policies, prepare them, and give one to a bundle"
    parser = add_command(
        commands, "policy", list_shipped, text, "zoo policy list && zoo policy embed dogs --model signs"
    )
    parser.set_defaults(kind="policy", json=False)
    actions = parser.add_subparsers(title="actions", metavar="{list,embed,use}")
    add_list(actions, "policy", "list the shipped policies, names for --policy")
    text = "embed a policy's phrases with a model's text tower and keep them, so that its first use is fast"
    embed = add_command(actions, "embed", _embed, text, "zoo policy embed my_policy.yaml --model bundles/signs")
    embed.add_argument("policy", metavar="POLICY", help="policy, a file or a shipped name")
    add_flag(embed, "--model", "bundle or release directory, hf-hub:ORG/NAME, or registry name", required=True)
    text = "make a policy that of a deployed bundle, without touching its engines"
    use = add_command(actions, "use", _use, text, "zoo policy use dogs --model bundles/signs", {"--bundle": "--model"})
    use.add_argument("policy", metavar="POLICY", help="policy, a file or a shipped name; or the bundle's own, edited")
    add_flag(use, "--model", "bundle directory; a signed one is to be signed again", type=Path, required=True)


def _use(options: argparse.Namespace) -> int:
    policy = read_policy(options.policy)
    use_policy(options.model, policy)
    print(f"{options.model}: judges by {policy.id}; zoo verify counts the flips at its operating points")
    return 0


def _embed(options: argparse.Namespace) -> int:
    policy = read_policy(options.policy)
    if is_bundle(Path(options.model)):
        from export.runtime import text_bank

        bundle = read_bundle(options.model)
        shapes = [text_bank(bundle, one).shape for one in bind(bundle.card, policy).zero_shot_policies]
    else:
        from zoo.models.served import text_banks
        from zoo.release.store import load_release

        model = load_release(options.model).model
        shapes = [tuple(bank.shape) for bank in text_banks(model, bind(model.card, policy))]
    rows = ", ".join(f"{rows} phrases of {width} numbers" for rows, width in shapes) or "no phrases to embed"
    try:
        folder = cache_folder() / "text_banks"
        place = f"kept in {folder}" if os.access(folder, os.W_OK | os.X_OK) else f"not kept: {folder} cannot be written"
    except RuntimeError as problem:
        place = f"not kept: {problem}"
    print(f"{policy.id}: {rows}, {place}")
    return 0
