"""`zoo release`, `zoo import` and `zoo panel`: what makes a release, of a checkpoint, published weights, or heads."""

from __future__ import annotations

import argparse
import inspect

from zoo.commands.common import Commands, add_command, add_flag, call_with, hparams, read_policy
from zoo.errors import BadArgumentError
from zoo.files.writing import refuse_input
from zoo.models.upstream import KINDS, UPSTREAM


def add(commands: Commands) -> None:
    parser = add_command(commands, "release", _release)
    add_flag(parser, "checkpoint", "checkpoint that `zoo fit` wrote", metavar="CHECKPOINT")
    add_flag(parser, "--policy", "it is shipped with the release (default: the recipe's)")
    _add_out(parser)
    _add_import(commands)
    _add_panel(commands)


def _add_out(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--out", "release directory", metavar="DIR", required=True)
    add_flag(parser, "--overwrite", "a release")


def _add_import(commands: Commands) -> None:
    parser = add_command(commands, "import", _import, "turn published weights into a release")
    heads = "".join(
        f"{kind:<22}  safetensors of {entry.source}; {entry.licence}\n"
        + (f"{'':24}{entry.note}\n" if entry.note else "")
        for kind, entry in UPSTREAM.items()
    )
    parser.epilog = inspect.cleandoc(_import.__doc__ or "").partition("\n\n")[2].replace("{heads}\n", heads)
    parser.add_argument("kind", choices=tuple(KINDS), metavar="KIND", help="whose weights, see below")
    parser.add_argument("source", metavar="SOURCE", help="file, directory or hf-hub:ORG/NAME, as the kind wants it")
    _add_out(parser)
    text = "the CLIP below heads, hf-hub:ORG/NAME, transformers directory or release of ours (default: OpenAI's)"
    parser.add_argument("--tower", metavar="TOWER", help=text)
    parser.add_argument("--sha256", metavar="HEX", help="sha256 of a file of heads that you checked yourself")
    add_flag(parser, "--name", "for clip, the registry name that it becomes, such as safeclip_vit_b32.zeroshot")
    text = "for clip, another CLIP for projection, text tower, tokenizer and temperature"
    parser.add_argument("--projection-from", metavar="SOURCE2", help=text)
    add_flag(parser, "--set", "for heads and clip")


def _add_panel(commands: Commands) -> None:
    parser = add_command(commands, "panel", _panel)
    text = 'image tower with heads, such as clip_vit_l14 (`zoo list "*.panel"` without the tag)'
    parser.add_argument("architecture", metavar="ARCHITECTURE", help=text)
    text = "release directory, hf-hub:ORG/NAME or registry name; and a policy for it, a file or a shipped name"
    parser.add_argument("members", nargs="+", metavar="MEMBER[=POLICY]", help=f"{text} (default: its own)")
    text = "unsafe when any head says so, when more than half do, by the mean risk, or as the head of highest risk says"
    parser.add_argument("--combine", choices=("any", "majority", "mean", "max"), default="any", help=text)
    _add_out(parser)


def _release(options: argparse.Namespace) -> int:
    """Make a release (weights, card, policy, tokenizer, hashes) from a checkpoint.

    zoo release runs/x/checkpoints/best.ckpt --out releases/x
    """
    from zoo.release.checkpoint import release_checkpoint

    policy = read_policy(options.policy)
    single = policy.single() if policy is not None else None
    card = release_checkpoint(options.checkpoint, options.out, policy=single, overwrite=options.overwrite)
    print(f"{options.out}: {card.name}, trained by {card.training.recipe or '?'} for {card.training.epochs} epochs")
    return 0


def _import(options: argparse.Namespace) -> int:
    r"""Turn published weights into a release.

    KIND      SOURCE
    nsfwjs    directory of a TensorFlow.js layers model: model.json and its weight shards
    clip      a CLIP for a safeclip model (--name): hf-hub:ORG/NAME, transformers directory, or safeclip release of
              ours, which can be read again at another layer that it keeps
    {heads}

    examples:
      zoo import nsfwjs nsfwjs/models/mobilenet_v2 --out nsfwjs
      zoo import laion_nsfw_vit_b32 laion_nsfw_vit_b32.safetensors --tower clip-vit-base-patch32/ --out laion
      zoo import clip hf-hub:openai/clip-vit-large-patch14-336 --name safeclip_vit_l14_336.zeroshot \
          --projection-from hf-hub:openai/clip-vit-large-patch14 --set layer=-1 --set post_layernorm=true --out safeclip

    Heads are read from safetensors alone, and only when the file is the one that was tested (by sha256), or one that
    you checked yourself and give the sha256 of. No weights are shipped: theirs are the licences above.
    """
    from zoo.release.imports import import_release

    card = call_with(import_release, options, hparams=hparams(options.set))
    print(f"{options.out}: {card.name}\n  source   {card.source}\n  licence  {card.licence}")
    return 0


def _panel(options: argparse.Namespace) -> int:
    """Put heads and zero-shot policies on one image tower: one encoding, a verdict of each and of all.

    zoo panel clip_vit_l14 imported/laion imported/q16 my_clip=my_policy.yaml --combine any --out my_panel
    """
    from zoo.release.panel import Member, create_panel
    from zoo.release.store import write_release

    members: list[Member] = []
    for member in options.members:
        source, sign, policy = member.partition("=")
        if sign and not policy:
            raise BadArgumentError(f'"{member}": a policy is missing after the =')
        members.append((source, policy) if sign else source)
        refuse_input(options.out, source)
    panel = create_panel(options.architecture, members, options.combine)
    write_release(panel.model, panel.policy, options.out, overwrite=options.overwrite)
    print(f"{options.out}: {panel.card.name}, combined by {options.combine}: {', '.join(panel.card.heads)}")
    return 0
