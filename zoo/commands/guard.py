"""`zoo guard`: what the guard of a vision-language model costs at real size."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command


def add(commands: Commands) -> None:
    """Declare the subcommand."""
    text = "the guard inside a vision-language model; its quality is measured by `zoo evaluate guard`"
    example = "zoo guard bench --lm-layers 16 --lm-width 2048 --lm-heads 16"
    parser: argparse.ArgumentParser = commands.add_parser("guard", help=text, description=text, epilog=example)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    text = "time answers with and without the guard: LLaVA-1.5's sizes, random weights, both sides in turn"
    bench = add_command(actions, "bench", _bench, text, example)
    bench.add_argument("--lm-layers", type=int, default=32, help="layers of the Llama (default: 32, as 7B)")
    bench.add_argument("--lm-width", type=int, default=4096, help="its width (default: 4096)")
    bench.add_argument("--lm-heads", type=int, default=32, help="its attention heads (default: 32)")
    bench.add_argument("--lm-hidden", type=int, help="width inside its MLP (default: 8/3 of the width)")
    bench.add_argument("--clip", default="safeclip_vit_l14_336.zeroshot", help="registry name whose CLIP is the tower")
    bench.add_argument("--new-tokens", type=int, default=32, help="tokens of each answer (default: 32)")
    bench.add_argument("--rounds", type=int, default=10, help="timed rounds (default: 10)")
    bench.add_argument("--threads", type=int, default=2, help="threads on the CPU (default: 2)")
    bench.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    types = ("bfloat16", "float16", "float32")
    text = "of all weights (default: bfloat16; on a CPU without bfloat16 instructions float32 is far faster)"
    bench.add_argument("--dtype", choices=types, default="bfloat16", help=text)
    bench.add_argument("--out", type=Path, help="write the figures to this JSON file")


def _bench(options: argparse.Namespace) -> int:
    from zoo.evaluation.guard.bench import Size, bench_guard

    result = bench_guard(
        Size(options.lm_layers, options.lm_width, options.lm_heads, options.lm_hidden, options.clip),
        rounds=options.rounds,
        new_tokens=options.new_tokens,
        threads=options.threads,
        device=options.device,
        dtype=options.dtype,
    )
    print(result.text())
    if options.out:
        result.write_json(options.out, indent=2)
    return 0
