"""The parts of the image attacks against plain arithmetic: balls, losses, the projection of FAB, APGD's checkpoints."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.adversary.image import square
from zoo.adversary.image.attack import TOLERANCE, allowed_images
from zoo.adversary.image.ball import Ball, lengths, noise
from zoo.adversary.image.fab import towards_plane
from zoo.adversary.image.pgd import checkpoints
from zoo.adversary.image.target import ImageBatch, cross_entropy, goal_margin, margin, misjudged, targeted_dlr
from zoo.adversary.threat import ImagePart

NORMS: tuple[Literal["Linf", "L2"], ...] = ("Linf", "L2")


def _images(count: int, seed: int = 0, size: int = 6) -> Tensor:
    return torch.rand(count, 2, size, size, generator=torch.Generator().manual_seed(seed))


def _batch(pixels: Tensor, labels: list[int] | None = None, goals: list[int] | None = None) -> ImageBatch:
    rows = torch.arange(len(pixels))
    aims = None if goals is None else torch.tensor(goals)
    return ImageBatch(pixels, torch.tensor(labels or [0] * len(pixels)), rows, aims)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_lands_in_the_ball_and_in_the_box_and_leaves_what_is_there(norm: Literal["Linf", "L2"]) -> None:
    clean, threat = _images(50), ImagePart(norm, 0.3)
    ball = Ball.around(clean, threat)
    far = clean + 3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    assert allowed_images(ball.project(far.clone()), clean, threat).all()
    inside = ball.project(clean + 1e-3)
    assert torch.allclose(ball.project(inside.clone()), inside, atol=1e-7)
    part = torch.tensor([3, 7])
    assert torch.equal(ball.take(part).project(far[part]), ball.project(far.clone())[part])


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_are_allowed_spread_and_the_image_s_own(norm: Literal["Linf", "L2"]) -> None:
    clean, threat = torch.full((40, 1, 8, 8), 0.5), ImagePart(norm, 0.2, seed=3)
    batch, ball = _batch(clean), Ball.around(clean, threat)
    starts = ball.random(threat, "pgd", 0, batch)
    sizes = lengths(starts - clean, norm).flatten()
    assert allowed_images(starts, clean, threat).all()
    assert sizes.max() > 0.19
    assert (sizes.min() > 0.15) if norm == "Linf" else (sizes.min() < 0.05)
    half = batch.take(torch.arange(20, 40))
    assert torch.equal(ball.take(torch.arange(20, 40)).random(threat, "pgd", 0, half), starts[20:])
    assert not torch.equal(ball.random(threat, "pgd", 1, batch), starts)


def test_noise_depends_on_seed_attack_restart_and_row_alone() -> None:
    threat = ImagePart("Linf", 0.1, seed=5)
    whole = noise(threat, "pgd", 2, [4, 9], (3,))
    assert torch.equal(noise(threat, "pgd", 2, [9], (3,))[0], whole[1])
    others = [noise(ImagePart("Linf", 0.1, seed=6), "pgd", 2, [4], (3,)), noise(threat, "fab-t", 2, [4], (3,))]
    others.append(noise(threat, "pgd", 0, [4], (3,)))
    assert not any(torch.equal(other[0], whole[0]) for other in others)


def test_what_is_allowed_has_a_tolerance_and_no_more() -> None:
    clean = torch.full((4, 1, 2, 2), 0.5)
    found = clean.clone()
    found[0] += 0.1 + TOLERANCE / 2
    found[1] += 0.1 + 1e-5
    found[2, 0, 0, 0] = math.nan
    assert allowed_images(found, clean, ImagePart("Linf", 0.1)).tolist() == [True, False, False, True]
    assert allowed_images(clean + 0.1, clean, ImagePart("L2", 0.2)).all()
    assert not allowed_images(clean + 0.1, clean, ImagePart("L2", 0.1999)).any()
    assert not allowed_images(clean + 0.6, clean, ImagePart("Linf", 0.9)).any()  # outside [0, 1]


def test_losses_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0, 0.0, -2.0], [2.0, 1.0, 0.5, 0.0]])
    batch = _batch(_images(2), labels=[0, 0], goals=[2, 1])
    assert margin(logits, batch).tolist() == [2.0, -1.0]
    assert goal_margin(logits, batch).tolist() == [-1.0, -1.0]
    assert F.softplus(cross_entropy(logits, batch)).tolist() == pytest.approx((-logits.log_softmax(1)[:, 0]).tolist())
    assert targeted_dlr(logits, batch).tolist() == pytest.approx([-1 / (3 - (0 - 2) / 2), -1 / (2 - 0.25)])
    three = targeted_dlr(logits[:, :3], batch)
    assert three.tolist() == pytest.approx([-1 / (3 - 0), -1 / (2 - 0.5)])
    two = targeted_dlr(logits[:, :2], _batch(_images(2), labels=[0, 0], goals=[1, 1]))
    assert two.tolist() == [2.0, -1.0]
    assert torch.allclose(targeted_dlr(100 * logits, batch), targeted_dlr(logits, batch))


def test_a_tie_and_a_nan_are_no_misjudgement() -> None:
    logits = torch.tensor([[1.0, 1.0], [math.nan, 0.0], [0.0, 1.0], [0.0, math.inf]])
    assert misjudged(logits, torch.tensor([0, 1, 0, 0])).tolist() == [False, False, True, False]


def _by_bisection(pixels: Tensor, gradient: Tensor, missing: Tensor, norm: str) -> Tensor:
    """The same minimum found by halving an interval for the multiplier, in double precision."""
    pixels, gradient, missing = pixels.double(), gradient.double(), missing.double()
    along = (gradient.sign() if norm == "Linf" else gradient) * missing.sign()[:, None, None, None]
    low, high = torch.zeros_like(missing), torch.full_like(missing, 1e4)
    for _ in range(200):
        middle = (low + high) / 2
        moved = (pixels + middle[:, None, None, None] * along).clamp(0, 1) - pixels
        short = (moved * gradient).sum(dim=(1, 2, 3)).abs() < missing.abs()
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (pixels + high[:, None, None, None] * along).clamp(0, 1) - pixels


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
def test_the_way_to_the_plane_is_the_shortest_inside_the_box(norm: str, scale: float) -> None:
    pixels = _images(64)
    draw = torch.Generator().manual_seed(2)
    gradient = torch.randn(pixels.shape, generator=draw)
    gradient[torch.rand(pixels.shape, generator=draw) < 0.2] = 0
    missing = scale * torch.randn(64, generator=draw)
    found = towards_plane(pixels, gradient, missing, norm)
    best = _by_bisection(pixels, gradient, missing, norm)
    assert torch.allclose((found * gradient).sum(dim=(1, 2, 3)), missing, atol=1e-4)
    assert torch.allclose(lengths(found, norm), lengths(best.float(), norm), rtol=1e-4, atol=1e-6)
    assert (pixels + found).min() >= -1e-6
    assert (pixels + found).max() <= 1 + 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_that_misses_the_box_is_approached_and_no_gradient_means_no_way(norm: str) -> None:
    pixels = _images(2)
    gradient = torch.stack([torch.ones_like(pixels[0]), torch.zeros_like(pixels[0])])
    found = towards_plane(pixels, gradient, torch.tensor([1e3, 1.0]), norm)
    assert torch.allclose(pixels[0] + found[0], torch.ones_like(pixels[0]), atol=1e-6)
    assert not found[1].any()


def test_checkpoints_of_a_hundred_steps_are_the_paper_s() -> None:
    # 0.22, then steps of 0.19, 0.16, 0.13, 0.10, 0.07 and 0.06 of the budget.
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1] * len(checkpoints(1))


def test_what_clipping_cut_off_an_l2_perturbation_is_spent_again() -> None:
    draw = torch.Generator().manual_seed(5)
    clean = (torch.rand(4, 1, 12, 12, generator=draw) > 0.5).float()  # black and white: half of all changes are cut off
    ball = Ball.around(clean, ImagePart("L2", 2.0))
    offset = torch.randn(4, 1, 12, 12, generator=draw)
    once = ball.project(clean + offset * 2.0 / lengths(offset, "L2")) - clean
    again = square._spend(offset.clone(), ball)
    assert (lengths(once, "L2") < 1.6).all()
    assert (lengths(again - clean, "L2") > 1.95).all()
    assert (lengths(again - clean, "L2") <= 2.0 + 1e-6).all()
    assert ((again >= 0) & (again <= 1)).all()
    assert ((again - clean) * offset >= 0).all()  # in the direction that was asked for
