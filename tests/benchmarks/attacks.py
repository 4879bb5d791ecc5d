"""Our attacks on images against torchattacks' on the same model and images: robust accuracy and time, in one run."""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.benchmarks.common import answered, parser
from tests.benchmarks.shapes import shapes_model
from zoo.adversary.image.attack import attack
from zoo.adversary.threat import ImagePart
from zoo.errors import BadDataError, MissingDependencyError

INSTALL = "pip install --no-deps --target DIR torchattacks scipy requests tqdm"


@dataclass(frozen=True)
class BenchRow:
    """One attack: the share of images left robust by ours and by theirs, CPU seconds of ours (median), time ratios.

    `ratios` are ours over theirs, one of each round; our time includes the clean pass and the check of each success.
    """

    attack: str
    norm: str
    ours: float
    theirs: float | None
    seconds: float
    ratios: tuple[float, ...]

    @property
    def line(self) -> str:
        """The row as text, in columns."""
        found = f"{self.attack:8} {self.norm:5} {self.ours:8.4f} "
        if self.theirs is None:
            return found + f"{'-':>8} {self.seconds:8.2f}"
        middle, low, high = statistics.median(self.ratios), min(self.ratios), max(self.ratios)
        return found + f"{self.theirs:8.4f} {self.seconds:8.2f}  {middle:5.2f} ({low:.2f} to {high:.2f})"


def torchattacks() -> Any:
    """The package. Raises MissingDependencyError that says how to install it without torchvision."""
    try:
        return importlib.import_module("torchattacks")
    except ImportError as problem:
        raise MissingDependencyError(f"{problem}; to compare: {INSTALL}, then PYTHONPATH=DIR zoo ...") from None


def bench(
    model: nn.Module, pixels: Tensor, labels: Tensor, threats: list[ImagePart], rounds: int, *, peers: bool
) -> Iterator[BenchRow]:
    """A row for each threat of one attack, ours and theirs in turn; pixels `[N, C, H, W]` in [0, 1], labels `[N]`."""
    package = torchattacks() if peers else None
    for threat in threats:
        times: tuple[list[float], list[float]] = ([], [])
        robust, theirs = 0.0, None
        peer = None if package is None else _peer(package, model, threat)
        for number in range(rounds):
            for own in (True, False) if number % 2 else (False, True):  # who is first changes
                begin = time.process_time()
                if own:
                    robust = attack(model, pixels, labels, threat, batch_size=len(pixels)).robust_accuracy
                elif peer is not None:
                    found = peer(pixels, labels)
                else:
                    continue
                times[not own].append(time.process_time() - begin)
        if peer is not None:
            with torch.no_grad():
                theirs = float((model(found).argmax(dim=1) == labels).double().mean())
        ratios = tuple(ours / other for ours, other in zip(*times, strict=True)) if peer is not None else ()
        yield BenchRow(threat.attacks[0], threat.norm, robust, theirs, statistics.median(times[0]), ratios)


def _peer(package: Any, model: nn.Module, threat: ImagePart) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Their attack with the same effort; None where they have none of that norm."""
    norm, eps, steps = threat.norm, threat.eps, threat.steps
    common = {"norm": norm, "eps": eps, "steps": steps}
    linf = norm == "Linf"
    found: dict[str, Callable[[], Any]] = {
        "pgd": lambda: (package.PGD if linf else package.PGDL2)(model, eps=eps, alpha=threat.pgd_step, steps=steps),
        "apgd-ce": lambda: package.APGD(model, **common),
        "apgd-t": lambda: package.APGDT(model, **common),
        "fab-t": lambda: package.FAB(model, multi_targeted=True, **common),
        "square": lambda: package.Square(model, norm=norm, eps=eps, n_queries=threat.queries),
    }
    if linf:
        found["fgsm"] = lambda: package.FGSM(model, eps=eps)
    maker = found.get(threat.attacks[0])
    return None if maker is None else maker()


def mnist(folder: Path, network: Literal["fgsm", "pgd_madry"], count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network hardened at Linf 0.3 (Wong et al. 2020, arXiv 2001.03994) with the first test images and labels.

    `folder` holds `NETWORK.safetensors` and `test.npz` (`images` uint8 `[N, 28, 28]`, `labels` `[N]`). Raises
    BadInputError where one is missing.
    """
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    try:
        model.load_state_dict(load_file(folder / f"{network}.safetensors"))
        data = np.load(folder / "test.npz")
        images, labels = data["images"][:count], data["labels"][:count]
    except (OSError, KeyError) as problem:
        raise BadDataError(
            f"{folder}: needs {network}.safetensors, test.npz with images and labels: {problem}"
        ) from None
    return model.eval(), torch.from_numpy(images).float()[:, None] / 255, torch.from_numpy(labels).long()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with these arguments, by default those of the command line."""
    given = _parser().parse_args(arguments)
    if given.peers:
        torchattacks()  # before anything is trained
    if given.mnist:
        model, pixels, labels = mnist(given.mnist, given.network, given.images)
    else:
        model, pixels, labels = shapes_model(given.images, seed=given.seed)
    defaults = (0.3, 2.0) if given.mnist else (4 / 255, 0.5)
    sizes = {"Linf": given.eps_linf or defaults[0], "L2": given.eps_l2 or defaults[1]}
    effort = {"steps": given.steps, "queries": given.queries, "seed": given.seed}
    threats = [
        ImagePart.from_dict({"norm": norm, "eps": sizes[norm], "attacks": [name], **effort})
        for name in given.attacks.split(",")
        for norm in (("Linf", "L2") if given.norm == "both" else (given.norm,))
    ]
    print(f"{len(pixels)} images, {given.steps} steps, {given.queries} queries; times in CPU seconds, ours / theirs")
    print(f"{'attack':8} {'norm':5} {'ours':>8} {'theirs':>8} {'seconds':>8}  ratio (range of {given.rounds} rounds)")
    for row in bench(model, pixels, labels, threats, given.rounds, peers=given.peers):
        print(row.line, flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    text = (
        "Robust accuracy and CPU time of our attacks on images, with --peers beside those of torchattacks on the same\n"
        "model and images, in turns. Without --mnist a small network is trained on drawn shapes first.\n"
        "torchattacks: pip install --no-deps --target DIR torchattacks scipy requests tqdm, then PYTHONPATH=DIR\n"
        "(with its dependencies it brings torchvision, which replaces torch). The reference, autoattack, is not on\n"
        "PyPI: what is compared are torchattacks' versions of its four attacks. Set OMP_NUM_THREADS=1."
    )
    options = parser("tests.benchmarks.attacks", text, "--attacks pgd,square --norm L2")
    options.add_argument("--mnist", type=Path, metavar="DIR", help="folder with test.npz and the hardened networks")
    options.add_argument("--network", choices=("fgsm", "pgd_madry"), default="fgsm", help="of --mnist (default: fgsm)")
    options.add_argument("--peers", action="store_true", help="compare with torchattacks")
    options.add_argument("--attacks", default="fgsm,pgd,apgd-ce,apgd-t,fab-t,square", help="which, with commas")
    options.add_argument("--norm", choices=("Linf", "L2", "both"), default="both", help="bound (default: both)")
    for name in ("linf", "l2"):
        options.add_argument(f"--eps-{name}", type=float, help="eps (MNIST: 0.3, 2; shapes: 4/255, 0.5)")
    for name, count in (("images", 200), ("steps", 10), ("queries", 500), ("rounds", 3), ("seed", 0)):
        options.add_argument(f"--{name}", type=int, default=count, help=f"(default: {count})")
    return options


if __name__ == "__main__":
    sys.exit(answered(main))
