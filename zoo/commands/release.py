"""`zoo release`: from a training checkpoint to a release directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command, read_policy


def add(commands: Commands) -> None:
    """Declare the subcommand."""
    text = "make a release (weights, card, policy, tokenizer, hashes) from a checkpoint"
    example = "zoo release runs/x/checkpoints/best.ckpt --out releases/x"
    parser = add_command(commands, "release", _release, text, example)
    parser.add_argument("checkpoint", type=Path, help="checkpoint that `zoo fit` wrote")
    parser.add_argument("--out", type=Path, required=True, help="release directory to write")
    parser.add_argument("--policy", help="policy file to ship with it (default: the recipe's)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing release")


def _release(options: argparse.Namespace) -> int:
    from zoo.release.checkpoint import release_checkpoint

    policy = read_policy(options.policy)
    single = policy.single() if policy is not None else None
    card = release_checkpoint(options.checkpoint, options.out, policy=single, overwrite=options.overwrite)
    print(f"{options.out}: {card.name}, trained by {card.training.recipe or '?'} for {card.training.epochs} epochs")
    return 0
