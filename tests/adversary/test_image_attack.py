"""Attacks on models whose exact robustness is known, on models that hide their gradient, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.adversary.image.attack import allowed_images, attack
from zoo.adversary.threat import ATTACKS, AUTOATTACK, ImagePart
from zoo.errors import BadInputError

SHAPE = (2, 8, 8)
Norm = Literal["Linf", "L2"]
GRADIENT_ATTACKS = tuple(name for name in ATTACKS if name != "square")


class Linear(nn.Module):
    """Two logits, `[0, <w, x> + b]`, with 5 more that never win when `classes` is 7."""

    def __init__(self, classes: int = 2, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(SHAPE, generator=draw))
        self.classes = classes

    def forward(self, pixels: Tensor) -> Tensor:
        value = ((pixels - 0.5) * self.weight).sum(dim=(1, 2, 3))
        low = torch.full((len(pixels), self.classes - 2), -50.0) + 0.1 * pixels[:, :1, 0, 0]
        return torch.cat([torch.stack([torch.zeros_like(value), value], dim=1), low], dim=1)

    def distance(self, pixels: Tensor, norm: Norm) -> Tensor:
        """How far the boundary is from grey images, which no bound of [0, 1] stops for small distances."""
        value = ((pixels - 0.5) * self.weight).sum(dim=(1, 2, 3)).abs()
        return (value / (self.weight.abs().sum() if norm == "Linf" else self.weight.norm())).detach()


class Small(nn.Module):
    """A network with everything that behaves differently in training."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(216, classes)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.layers(pixels)
        return logits


def _grey(count: int, seed: int = 3) -> Tensor:
    return 0.5 + 0.1 * (torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) - 0.5)


def _labels(model: Callable[..., Tensor], pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(pixels).argmax(dim=1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_gradient_attacks_break_a_linear_model_exactly_where_it_can_be_broken(
    name: str, norm: Norm, classes: int
) -> None:
    model, pixels = Linear(classes), _grey(24)
    labels, distance = _labels(model, pixels), model.distance(pixels, norm)
    eps = float(distance.median()) * 1.01
    breakable = distance < eps
    sure = (distance - eps).abs() > 0.03 * eps
    result = attack(model, pixels, labels, ImagePart(norm, eps, attacks=(name,), steps=40, targets=2), batch_size=7)
    assert not (result.broken & ~breakable).any()
    assert torch.equal(result.broken[sure], breakable[sure])
    assert allowed_images(result.adversarial, pixels, result.threat).all()
    assert torch.equal(_labels(model, result.adversarial) != labels, result.broken)
    assert result.robust_accuracy == 1 - result.success_rate == 1 - float(result.broken.double().mean())


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_a_model_that_is_very_sure_is_no_harder_to_break(name: str) -> None:
    model, pixels = Linear(4), _grey(12)
    labels = _labels(model, pixels)
    threat = ImagePart("Linf", float(model.distance(pixels, "Linf").max()) * 1.1, attacks=(name,), steps=20, targets=1)
    result = attack(lambda images: 1e5 * model(images), pixels, labels, threat, modules=[model])
    assert result.broken.all()
    assert not result.obfuscated


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_square_breaks_what_can_be_broken_easily_and_nothing_else(norm: Norm) -> None:
    model, pixels = Linear(), _grey(24)
    labels, distance = _labels(model, pixels), model.distance(pixels, norm)
    eps = float(distance.max()) * 0.9
    result = attack(model, pixels, labels, ImagePart(norm, eps, attacks=("square",), queries=600))
    assert not (result.broken & (distance > eps)).any()
    assert result.broken[distance < eps / 2].all()
    assert result.backwards <= len(pixels)  # the look for gradients, before
    assert allowed_images(result.adversarial, pixels, result.threat).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_sequence_gives_each_attack_what_is_left(norm: Norm) -> None:
    model, pixels = Linear(5), _grey(20)
    labels, distance = _labels(model, pixels), model.distance(pixels, norm)
    threat = ImagePart(norm, float(distance.median()), steps=10, queries=30, restarts=2)
    result = attack(model, pixels, labels, threat)
    assert tuple(record.attack for record in result.records) == AUTOATTACK
    left = len(pixels)
    for record in result.records:
        assert record.attempted == left
        assert record.outside == 0
        left -= record.broken
        assert record.robust_accuracy == left / len(pixels)
    assert left == int((result.correct & ~result.broken).sum())


def test_a_constant_model_is_never_broken_and_said_to_have_no_gradient() -> None:
    def constant(pixels: Tensor) -> Tensor:
        return torch.tensor([[0.0, 1.0, 0.5]]).repeat(len(pixels), 1)

    result = attack(constant, _grey(5), torch.tensor([1, 1, 1, 1, 0]), ImagePart("Linf", 0.5, steps=3, queries=50))
    assert result.correct.tolist() == [True] * 4 + [False]
    assert result.clean_accuracy == result.robust_accuracy == 0.8
    assert result.obfuscated
    assert not result.broken.any()
    assert [record.attempted for record in result.records] == [0, 0, 0, 4]


def _rounded(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda pixels: model((pixels * 255).round() / 255)


def _through_numpy(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda pixels: model(torch.from_numpy(pixels.numpy().copy()))


def _detached(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda pixels: model(pixels.detach())


def _hard(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda pixels: F.one_hot(model(pixels).argmax(dim=1), 2).float() + 0 * pixels.sum()


@pytest.mark.parametrize("hide", [_rounded, _through_numpy, _detached, _hard])
@pytest.mark.parametrize("attacks", [("pgd",), ("pgd", "square")])
def test_a_hidden_gradient_is_reported_and_met_by_square(
    hide: Callable[[nn.Module], Callable[[Tensor], Tensor]], attacks: tuple[str, ...]
) -> None:
    model, pixels = Linear(), _grey(8)
    labels, eps = _labels(model, pixels), 0.3
    threat = ImagePart("Linf", eps, attacks=attacks, steps=3, queries=200)
    result = attack(hide(model), pixels, labels, threat, modules=[model])
    assert result.obfuscated
    assert result.blind.all()
    assert ("numpy" in result.why_blind) == (hide is _through_numpy)
    assert [(record.attack, record.attempted) for record in result.records] == [("pgd", 0), ("square", 8)]
    assert result.robust_accuracy < 0.3
    assert result.to_dict()["blind_share"] == 1.0
    assert result.to_dict()["images"] == result.to_dict()["items"] == len(result.correct)


def test_only_the_images_without_a_gradient_go_to_square() -> None:
    class HalfBlind(Linear):
        def forward(self, pixels: Tensor) -> Tensor:
            dark = (pixels[:, :1, :1, :1] < 0.5).float()
            return super().forward(pixels * (1 - dark) + pixels.detach() * dark)

    model, pixels = HalfBlind(), _grey(12)
    pixels[:, 0, 0, 0] = torch.tensor([0.2, 0.8]).repeat(6)
    result = attack(
        model, pixels, _labels(model, pixels), ImagePart("Linf", 0.1, attacks=("pgd",), steps=5, queries=40)
    )
    assert torch.equal(result.blind, pixels[:, 0, 0, 0] < 0.5)
    assert [(record.attack, record.attempted) for record in result.records] == [("pgd", 6), ("square", 6)]
    assert result.obfuscated


def test_the_model_is_attacked_in_evaluation_mode_and_left_as_it_was() -> None:
    model = Small().train()
    model.layers[1].eval()  # a frozen BatchNorm in a model that trains
    next(model.parameters()).requires_grad_(False)
    modes = {name: part.training for name, part in model.named_modules()}
    wanted = [one.requires_grad for one in model.parameters()]
    statistics = {key: value.clone() for key, value in model.state_dict().items()}
    seen: list[bool] = []
    hook = model.layers[4].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    pixels = _grey(10)
    with torch.inference_mode():  # as inside a validation loop
        result = attack(model, pixels + 0, torch.zeros(10, dtype=torch.int64), ImagePart("L2", 0.3, steps=4, queries=9))
    hook.remove()
    assert seen
    assert not any(seen)
    assert not result.randomised
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert [one.requires_grad for one in model.parameters()] == wanted
    assert all(one.grad is None for one in model.parameters())
    assert all(torch.equal(value, statistics[key]) for key, value in model.state_dict().items())
    with pytest.raises(BadInputError):
        attack(model, pixels, torch.full((10,), 99), ImagePart("L2", 0.3))
    assert {name: part.training for name, part in model.named_modules()} == modes


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_results_depend_on_the_seed_and_not_on_how_images_are_batched(norm: Norm) -> None:
    model, pixels = Small().eval(), _grey(18)
    labels = _labels(model, pixels)
    threat = ImagePart(norm, 0.02 if norm == "Linf" else 0.15, attacks=ATTACKS, steps=8, queries=60, restarts=2, seed=4)
    one, split = (attack(model, pixels, labels, threat, batch_size=size) for size in (18, 4))
    assert torch.equal(one.broken, split.broken)
    assert 0 < int(one.broken.sum()) < 18
    assert torch.allclose(one.adversarial, split.adversarial, atol=1e-4)
    pgd = [attack(model, pixels, labels, ImagePart(norm, 0.5, attacks=("pgd",), seed=s)) for s in (4, 4, 5)]
    assert pgd[0].broken.any()
    assert torch.equal(pgd[0].adversarial, pgd[1].adversarial)
    assert not torch.equal(pgd[0].adversarial, pgd[2].adversarial)


def test_each_attack_costs_what_it_should() -> None:
    model, pixels, steps = Linear(4), _grey(6), 5
    labels = _labels(model, pixels)
    threat = ImagePart("Linf", 1e-6, attacks=ATTACKS, steps=steps, queries=7, restarts=2, targets=9)
    result = attack(model, pixels, labels, threat)
    assert not result.broken.any()
    passes = {record.attack: (record.forwards, record.backwards) for record in result.records}
    # A last forward pass of each run is the check. Three classes are to be aimed at, though nine were allowed.
    assert passes == {
        "fgsm": (6, 0),  # its gradient was seen with the clean logits
        "pgd": (6 * 2 * (steps + 1), 6 * 2 * steps),
        "apgd-ce": (6 * 2 * (steps + 1 + 1), 6 * 2 * (steps + 1)),
        "apgd-t": (6 * 2 * 3 * (steps + 1 + 1), 6 * 2 * 3 * (steps + 1)),
        "fab-t": (6 * 2 * 3 * (2 * steps + 1), 6 * 2 * 3 * steps),
        "square": (6 * 2 * (7 + 1), 0),
    }


def test_an_image_that_is_broken_costs_no_more() -> None:
    model, pixels = Linear(), _grey(6)
    result = attack(model, pixels, _labels(model, pixels), ImagePart("Linf", 0.5, attacks=("apgd-ce",), steps=100))
    assert result.broken.all()
    assert result.backwards < 6 * 20


@pytest.mark.parametrize("name", ATTACKS)
def test_images_made_on_a_model_break_its_twin_and_not_a_constant(name: str) -> None:
    model, pixels = Linear(), _grey(10)
    labels = _labels(model, pixels)
    threat = ImagePart("Linf", 0.05 if name != "square" else 0.3, attacks=(name,), steps=30, queries=200)
    twin = attack(model, pixels, labels, threat, victim=_through_numpy(model), modules=[model])
    assert int(twin.broken.sum()) >= 8
    assert not twin.obfuscated  # it is the source whose gradient counts
    assert allowed_images(twin.adversarial, pixels, threat).all()

    def constant(images: Tensor) -> Tensor:
        return F.one_hot(torch.ones(len(images), dtype=torch.int64), 2).float()

    same = attack(model, pixels, labels, threat, victim=constant)
    assert torch.equal(same.correct, labels == 1)
    assert not same.broken.any()


def test_transfer_goes_on_beyond_the_boundary_of_the_source() -> None:
    model, pixels = Linear(), _grey(10)
    labels = _labels(model, pixels)

    threat = ImagePart("Linf", 0.05, attacks=("pgd",), steps=20, step_size=0.01)
    white = attack(model, pixels, labels, threat)
    moved = attack(model, pixels, labels, threat, victim=model)
    assert torch.equal(white.broken, moved.broken)
    with torch.no_grad():
        first, last = (F.cross_entropy(model(result.adversarial), labels) for result in (white, moved))
    assert last > first + 1


def test_what_goes_with_an_image_stays_with_it() -> None:
    model, pixels = Linear(), _grey(12)
    sign = torch.tensor([1.0, -1.0]).repeat(6)

    def signed(images: Tensor, signs: Tensor) -> Tensor:
        logits: Tensor = model(images)
        return logits * signs[:, None]

    with torch.no_grad():
        labels = signed(pixels, sign).argmax(dim=1)
    distance = model.distance(pixels, "Linf")
    threat = ImagePart(
        "Linf", float(distance.median()) * 1.01, attacks=("apgd-ce", "fab-t", "square"), steps=30, queries=9
    )
    result = attack(signed, pixels, labels, threat, extras=[sign], modules=[model], batch_size=5)
    sure = (distance - threat.eps).abs() > 0.03 * threat.eps
    assert torch.equal(result.broken[sure], (distance < threat.eps)[sure])
    with pytest.raises(BadInputError, match=r"extras\[0\] has 11 rows for 12 images"):
        attack(signed, pixels, labels, threat, extras=[sign[1:]])


def test_a_model_that_rolls_dice_is_reported() -> None:
    model, pixels = Linear(), _grey(6)
    labels = _labels(model, pixels)

    def noisy(images: Tensor) -> Tensor:
        logits: Tensor = model(images)
        return logits + torch.randn(len(images), 2)

    torch.manual_seed(0)
    assert attack(noisy, pixels, labels, ImagePart("Linf", 0.01, attacks=("fgsm",)), modules=[model]).randomised


def _wrong(**changes: object) -> dict[str, object]:
    return {"model": Linear(), "pixels": _grey(3), "labels": torch.zeros(3, dtype=torch.int64), **changes}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (_wrong(pixels=_grey(3) * 255), r"in \[0, 1\].*normalisation belongs into the model"),
        (_wrong(pixels=(_grey(3) * 255).byte()), "float32"),
        (_wrong(pixels=_grey(3)[0]), r"\[N, C, H, W\]"),
        (_wrong(pixels=torch.full((3, *SHAPE), torch.nan)), "got nan to nan"),
        (_wrong(labels=torch.zeros(2, dtype=torch.int64)), r"labels must be \[3\] integers, got \[2\]"),
        (_wrong(labels=torch.zeros(3)), "integers"),
        (_wrong(labels=torch.tensor([0, 1, 2])), "labels must be 0 to 1.*got 0 to 2"),
        (_wrong(model=lambda x: x.sum(dim=(1, 2, 3))), "K >= 2, got"),
        (_wrong(model=lambda x: x.sum(dim=(2, 3))[:, :1]), r"got \[3, 1\]"),
        (_wrong(model=lambda x: torch.full((len(x), 2), torch.nan)), "not finite"),
        (_wrong(batch_size=0), "batch_size must be at least 1"),
    ],
)
def test_senseless_input_is_refused(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        attack(threat=ImagePart("Linf", 0.1), **given)  # type: ignore[arg-type]


def test_the_progress_bar_names_the_attacks(capsys: pytest.CaptureFixture[str]) -> None:
    model, pixels = Linear(), _grey(4)
    threat = ImagePart("Linf", 0.5, attacks=("fgsm", "pgd"), steps=3)
    attack(model, pixels, _labels(model, pixels), threat, progress=True)
    shown = capsys.readouterr().out
    assert "fgsm: 4 broken" in shown
    assert "pgd" in shown
    attack(model, pixels, _labels(model, pixels), threat)
    assert capsys.readouterr().out == ""
