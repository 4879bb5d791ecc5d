"""`zoo attacks`: list the attacks, and measure those on images, against torchattacks' where it is installed."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command

BENCH = "PYTHONPATH=DIR zoo attacks bench --peers"


def add(commands: Commands) -> None:
    """Declare the subcommand."""
    parser = add_command(commands, "attacks", _list, "list the attacks, or measure them", "zoo attacks list")
    actions = parser.add_subparsers(metavar="{list,bench}")
    add_command(actions, "list", _list, "every attack: what it changes, its bound, its source", "zoo attacks list")
    bench = add_command(actions, "bench", _bench, "robust accuracy and time of our attacks on images", BENCH)
    bench.description = (
        "Robust accuracy and CPU time of our attacks on images, with --peers beside torchattacks' on the same model\n"
        "and images, in turns. Without --mnist a small network is trained on drawn shapes first.\n"
        "torchattacks: pip install --no-deps --target DIR torchattacks scipy requests tqdm, then PYTHONPATH=DIR\n"
        "(with its dependencies it brings torchvision, which replaces torch). The reference, autoattack, is not on\n"
        "PyPI: what is compared are torchattacks' versions of its four attacks. Set OMP_NUM_THREADS=1."
    )
    bench.add_argument("--mnist", type=Path, metavar="DIR", help="folder with test.npz and the hardened networks")
    bench.add_argument("--network", choices=("fgsm", "pgd_madry"), default="fgsm", help="of --mnist (default: fgsm)")
    bench.add_argument("--peers", action="store_true", help="compare with torchattacks")
    bench.add_argument("--attacks", default="fgsm,pgd,apgd-ce,apgd-t,fab-t,square", help="which, with commas")
    bench.add_argument("--norm", choices=("Linf", "L2", "both"), default="both", help="bound (default: both)")
    for name, value in (("linf", None), ("l2", None)):
        bench.add_argument(f"--eps-{name}", type=float, default=value, help="eps (MNIST: 0.3, 2; shapes: 4/255, 0.5)")
    for name, count in (("images", 200), ("steps", 10), ("queries", 500), ("rounds", 3), ("seed", 0)):
        bench.add_argument(f"--{name}", type=int, default=count, help=f"(default: {count})")


def _list(options: argparse.Namespace) -> int:
    from zoo.adversary.sources import SOURCES

    for name, source in SOURCES.items():
        print(f"{name:12} {source.kind:6} {source.bound:20} {source.needs:21} {source.paper}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from zoo.adversary.image.bench import bench, mnist, torchattacks
    from zoo.adversary.threat import Threat
    from zoo.training.shapes import shapes_model

    if options.peers:
        torchattacks()  # before anything is trained
    if options.mnist:
        model, pixels, labels = mnist(options.mnist, options.network, options.images)
    else:
        model, pixels, labels = shapes_model(options.images, seed=options.seed)
    defaults = (0.3, 2.0) if options.mnist else (4 / 255, 0.5)
    sizes = {"Linf": options.eps_linf or defaults[0], "L2": options.eps_l2 or defaults[1]}
    effort = {"steps": options.steps, "queries": options.queries, "seed": options.seed, "schema_version": 1}
    threats = [
        Threat.from_dict({"norm": norm, "eps": sizes[norm], "attacks": [name], **effort})
        for name in options.attacks.split(",")
        for norm in (("Linf", "L2") if options.norm == "both" else (options.norm,))
    ]
    print(
        f"{len(pixels)} images, {options.steps} steps, {options.queries} queries; times in CPU seconds, ours / theirs"
    )
    print(f"{'attack':8} {'norm':5} {'ours':>8} {'theirs':>8} {'seconds':>8}  ratio (range of {options.rounds} rounds)")
    for row in bench(model, pixels, labels, threats, options.rounds, peers=options.peers):
        print(row.line, flush=True)
    return 0
