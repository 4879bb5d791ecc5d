"""Published robust MNIST networks: our attacks against known figures, and against another implementation's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from tests.benchmarks.attacks import mnist
from zoo.adversary.image.attack import AttackResult, allowed_images, attack
from zoo.adversary.threat import ImagePart

pytestmark = pytest.mark.shared_data

EPS = 0.3
Network: TypeAlias = Literal["fgsm", "pgd_madry"]
NETWORKS: tuple[Network, ...] = ("fgsm", "pgd_madry")


def _network(shared: Path, name: Network) -> nn.Module:
    """Adversarially trained networks (Wong et al. 2020, arXiv 2001.03994), Linf eps 0.3."""
    return mnist(shared / "mnist", name, 1)[0]


def _digits(shared: Path, count: int) -> tuple[Tensor, Tensor]:
    return mnist(shared / "mnist", "fgsm", count)[1:]


def _checked(model: nn.Module, pixels: Tensor, labels: Tensor, result: AttackResult) -> None:
    """What is reported broken is misjudged inside the budget, and nothing else has been touched."""
    with torch.no_grad():
        wrong = model(result.adversarial).argmax(dim=1) != labels
    assert torch.equal(wrong & result.correct, result.broken)
    assert allowed_images(result.adversarial, pixels, result.threat).all()
    assert torch.equal(result.adversarial[~result.broken], pixels[~result.broken])
    assert not result.obfuscated
    assert not result.randomised


@pytest.mark.parametrize(("name", "clean", "robust"), [("fgsm", 0.985, 0.937), ("pgd_madry", 0.990, 0.931)])
def test_fgsm_leaves_the_published_share(shared: Path, name: Network, clean: float, robust: float) -> None:
    model, (pixels, labels) = _network(shared, name), _digits(shared, 10_000)
    with torch.no_grad():
        right = model(pixels).argmax(dim=1) == labels
    assert float(right.double().mean()) == pytest.approx(clean, abs=1e-3)
    pixels, labels = pixels[:1000], labels[:1000]
    result = attack(model, pixels, labels, ImagePart("Linf", EPS, attacks=("fgsm",)))
    assert result.clean_accuracy == float(right[:1000].double().mean())
    assert result.robust_accuracy == pytest.approx(robust, abs=2e-3)
    _checked(model, pixels, labels, result)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("fgsm", 0.875), ("pgd_madry", 0.883)])
def test_pgd_and_a_short_sequence_leave_less(shared: Path, name: Network, most: float) -> None:
    model, (pixels, labels) = _network(shared, name), _digits(shared, 1000)
    threat = ImagePart("Linf", EPS, attacks=("pgd",), steps=50, restarts=3)
    result = attack(model, pixels, labels, threat)
    assert result.robust_accuracy <= most
    _checked(model, pixels, labels, result)
    # The sequence with a fifth of the standard effort.
    short = attack(model, pixels, labels, ImagePart("Linf", EPS, steps=20, targets=3, queries=300))
    assert short.robust_accuracy < result.robust_accuracy
    _checked(model, pixels, labels, short)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_attack_works_in_both_norms_with_a_budget_that_none_survives(shared: Path, name: Network) -> None:
    model, (pixels, labels) = _network(shared, name), _digits(shared, 60)
    for one in ("pgd", "apgd-ce", "apgd-t", "fab-t", "square"):
        # In L2 the gradient of networks hardened in Linf leads the attacks on the cross-entropy astray.
        for norm, eps, most in (("Linf", 0.5, 0.0), ("L2", 8.0, 0.5 if one in ("pgd", "apgd-ce") else 0.1)):
            threat = ImagePart.from_dict({"norm": norm, "eps": eps, "attacks": [one], "steps": 40, "queries": 1500})
            result = attack(model, pixels, labels, threat)
            _checked(model, pixels, labels, result)
            assert result.robust_accuracy <= most, (one, norm)


def test_examples_of_one_network_are_weaker_against_the_other(shared: Path) -> None:
    one, other = (_network(shared, name) for name in NETWORKS)
    pixels, labels = _digits(shared, 200)
    threat = ImagePart("Linf", EPS, attacks=("pgd",), steps=20)
    white, moved = attack(other, pixels, labels, threat), attack(one, pixels, labels, threat, victim=other)
    _checked(other, pixels, labels, moved)
    assert white.robust_accuracy < moved.robust_accuracy < moved.clean_accuracy


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_as_strong_as_torchattacks_in_no_more_time(shared: Path, name: Network) -> None:
    """Attack by attack with equal effort; torchattacks is no dependency: `pip install --no-deps torchattacks`."""
    peers = pytest.importorskip("torchattacks")
    model, (pixels, labels) = _network(shared, name), _digits(shared, 200)
    options = {"norm": "Linf", "eps": EPS, "steps": 20}
    theirs = {
        "pgd": peers.PGD(model, eps=EPS, alpha=0.01, steps=20),
        "apgd-ce": peers.APGD(model, **options),
        "apgd-t": peers.APGDT(model, **options),
        "fab-t": peers.FAB(model, multi_targeted=True, **options),
        "square": peers.Square(model, norm="Linf", eps=EPS, n_queries=500),
    }
    spent = [0.0, 0.0]
    for one, peer in theirs.items():
        begin = time.perf_counter()
        found = peer(pixels, labels)
        spent[0] += time.perf_counter() - begin
        with torch.no_grad():
            wrong = model(found).argmax(dim=1) != labels
        begin = time.perf_counter()
        threat = ImagePart("Linf", EPS, attacks=(one,), steps=20, queries=500, step_size=0.01)
        ours = attack(model, pixels, labels, threat, batch_size=200)
        spent[1] += time.perf_counter() - begin
        assert ours.robust_accuracy <= 1 - float(wrong.double().mean()) + 0.005, one
    assert spent[1] <= 1.15 * spent[0]  # the rest is for what else the machine does
