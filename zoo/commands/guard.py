"""`zoo guard`: what the guard of a vision-language model costs at real size."""

from __future__ import annotations

import argparse

from zoo.commands.common import Commands, add_command, add_flag, add_flags, call_with


def add(commands: Commands) -> None:
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
