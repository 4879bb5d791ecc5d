"""Two logits of one, and of a policy: they flag exactly what the judge flags, and they can be attacked."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.adversary.image.attack import attack
from zoo.adversary.image.two_logits import Judged, OneLogit
from zoo.adversary.threat import ImagePart
from zoo.contract.policy import Category, Policy, Threshold
from zoo.errors import BadInputError, BadPolicyError
from zoo.judging.judge import Judge, bind
from zoo.models.base import ZooModel
from zoo.models.served import text_banks
from zoo.registry import create_model

Rule = Literal["each", "argmax"]
Pooling = Literal["sum", "mean", "max", "logsumexp"]


def _policy(*categories: Category, **fields: Any) -> Policy:
    return Policy("demo", "1", "", categories, **fields)


def _block(name: str, value: float, **fields: Any) -> Category:
    return Category(name, "block", Threshold(value), **fields)


def _classifier(score: Literal["softmax", "sigmoid"] = "softmax") -> ZooModel:
    torch.manual_seed(0)
    model = create_model("test_nsfwjs.random").eval()
    model.card = model.card.replace(score=score)
    return model


def _scores(logits: Tensor, score: str) -> np.ndarray[Any, Any]:
    wide = logits.double()
    return (wide.softmax(dim=1) if score == "softmax" else wide.sigmoid()).numpy()


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("rule", ["each", "argmax"])
@pytest.mark.parametrize("pooling", ["sum", "mean", "max"])
@pytest.mark.parametrize("many", [True, False])
def test_a_classifier_is_flagged_exactly_where_its_judge_flags(
    score: Literal["softmax", "sigmoid"], rule: Rule, pooling: Pooling, many: bool
) -> None:
    nsfw = ("hentai", "porn", "sexy") if many else ("porn",)
    review = Category("drawing", "review", Threshold(0.4))
    policy = _policy(_block("nsfw", 0.3, labels=nsfw), review, Category("neutral", "allow"), rule=rule, pooling=pooling)
    model = _classifier(score)
    logits = 3 * torch.randn(4000, 5, generator=torch.Generator().manual_seed(1))
    judge, scores = Judge(model.card, policy), _scores(logits, score)
    table = judge.category_scores(scores)
    flagged = judge.flags(table).any(axis=1)
    assert 0.05 < flagged.mean() < 0.999
    assert (Judged(model, policy).judge(logits).argmax(dim=1).bool().numpy() == flagged).all()
    above = judge.unsafe_score(table) > 0.7
    assert (Judged(model, policy, threshold=0.7).judge(logits).argmax(dim=1).bool().numpy() == above).all()


@pytest.mark.parametrize("rule", ["each", "argmax"])
@pytest.mark.parametrize("pooling", ["sum", "mean", "max", "logsumexp"])
def test_a_zero_shot_model_is_flagged_exactly_where_its_judge_flags(rule: Rule, pooling: Pooling) -> None:
    torch.manual_seed(0)
    model = create_model("test_safeclip.random").eval()
    red = _block("red", 0.25, descriptors=("a red sign", "a red octagon", "red"))
    policy = _policy(
        red,
        Category("neutral", "allow", descriptors=("a street", "a wall")),
        rule=rule,
        pooling=pooling,
        temperature=0.5,
    )
    judged = Judged(model, policy)
    logits = 2 * torch.randn(4000, 5, generator=torch.Generator().manual_seed(1))
    judge = Judge(model.card, policy)
    flagged = judge.flags(judge.category_scores(_scores(logits, "softmax"))).any(axis=1)
    assert 0.05 < flagged.mean() < 0.999
    assert (judged.judge(logits).argmax(dim=1).bool().numpy() == flagged).all()
    size = model.image_size
    pixels = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(judged(pixels), judged.judge(model(pixels, *text_banks(model, bind(model.card, policy)))))


def test_saturated_scores_still_have_a_gradient() -> None:
    logits = torch.tensor([[0.0, 0.0, 60.0, 0.0, 0.0]], requires_grad=True)  # softmax: neutral is 1 in float32
    judged = Judged(_classifier(), _policy(_block("porn", 0.5, labels=("porn", "sexy")), Category("neutral", "allow")))
    (gradient,) = torch.autograd.grad(judged.judge(logits)[0, 1], logits)
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize(("value", "flags"), [(0.0, True), (1.0, False)])
def test_thresholds_at_the_ends(value: float, flags: bool) -> None:
    judged = Judged(_classifier(), _policy(_block("porn", value), Category("neutral", "allow")))
    logits = judged.judge(torch.randn(50, 5) * 5)
    assert logits.isfinite().all()
    assert (logits.argmax(dim=1) == int(flags)).all()


def test_a_policy_s_verdict_is_attacked_through_the_network() -> None:
    model = _classifier()
    pixels = torch.rand(6, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        porn = model.answer(pixels)[1][:, 3]
    limit = float(porn.mean())
    judged = Judged(model, _policy(_block("porn", limit), Category("neutral", "allow")))
    labels = (porn > limit).long()
    assert 0 < int(labels.sum()) < 6
    result = attack(judged, pixels, labels, ImagePart("Linf", 8 / 255, attacks=("apgd-t",), steps=10))
    assert result.correct.all()
    assert result.broken.all()
    assert not result.obfuscated
    with torch.no_grad():
        after = model.answer(result.adversarial)[1][:, 3]
    assert torch.equal(after > limit, labels == 0)


def test_one_logit_is_flagged_above_its_threshold() -> None:
    def bare(pixels: Tensor) -> Tensor:
        return 4 * pixels.mean(dim=(1, 2, 3)) - 2

    def column(pixels: Tensor) -> Tensor:
        return bare(pixels)[:, None]

    pixels = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for model in (bare, column):
        for threshold in (0.45, 0.5, 0.55):
            flagged = OneLogit(model, threshold)(pixels).argmax(dim=1) == 1
            assert torch.equal(flagged, bare(pixels).sigmoid() > threshold)
            assert 0 < int(flagged.sum()) < 30
    with pytest.raises(BadInputError, match=r"one logit for each of 30 images, got \[30, 2\]"):
        OneLogit(lambda x: x.sum(dim=(2, 3)).repeat(1, 2))(pixels)
    with pytest.raises(BadInputError, match="threshold"):
        OneLogit(bare, 1.0)


def test_a_panel_and_a_foreign_policy_are_refused() -> None:
    panel = create_model("test_clip.panel")
    policy = _policy(_block("porn", 0.5), Category("neutral", "allow"))
    with pytest.raises(BadInputError, match="attack its heads one by one"):
        Judged(panel, policy)
    with pytest.raises(BadPolicyError, match="stop_sign"):
        Judged(_classifier(), _policy(_block("stop_sign", 0.5)))
