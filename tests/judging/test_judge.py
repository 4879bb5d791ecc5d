"""The judge against a few lines of plain numpy: pooling, rules, thresholds, and scores that are none."""

from __future__ import annotations

import dataclasses
import doctest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml

from zoo.contract.card import ModelCard, panel_card
from zoo.contract.policy import Category, Policy, Threshold, panel_policy, read_policy
from zoo.contract.schema import load_yaml, read_json, read_yaml
from zoo.contract.verdict import Unseen
from zoo.errors import BadInputError, BadPolicyError
from zoo.judging.judge import Judge, bind
from zoo.models.clip import DualEncoder
from zoo.models.served import text_bank
from zoo.registry import create_model, model_card

CLASSIFIER = model_card("test_nsfwjs.random")  # drawing, hentai, neutral, porn, sexy
ZERO_SHOT = model_card("test_safeclip.random")


def _policy(*categories: Category, **fields: Any) -> Policy:
    return Policy("demo", "1", "", categories, **fields)


def _block(name: str, value: float, **fields: Any) -> Category:
    return Category(name, "block", Threshold(value), **fields)


def _review(name: str, value: float, **fields: Any) -> Category:
    return Category(name, "review", Threshold(value), **fields)


def _decide(judge: Judge, *scores: float) -> tuple[str, str | None]:
    verdict = judge.verdicts(np.array([scores], dtype=np.float32))[0]
    return verdict.decision, verdict.category


def test_each_judges_every_category_and_argmax_only_the_highest() -> None:
    categories = (_block("porn", 0.2), _block("sexy", 0.6), Category("neutral", "allow"))
    each = Judge(CLASSIFIER, _policy(*categories))
    argmax = Judge(CLASSIFIER, _policy(*categories, rule="argmax"))
    assert _decide(each, 0, 0, 0.7, 0.3, 0) == ("unsafe", "porn")
    assert _decide(argmax, 0, 0, 0.7, 0.3, 0) == ("safe", "neutral")
    assert _decide(argmax, 0, 0, 0.3, 0.7, 0) == ("unsafe", "porn")
    assert _decide(argmax, 0, 0, 0.2, 0.25, 0.55) == ("safe", "sexy")  # the highest, but under its own threshold


@pytest.mark.parametrize(("pooling", "expected"), [("sum", 0.9), ("mean", 0.3), ("max", 0.5)])
def test_pooling(pooling: Literal["sum", "mean", "max"], expected: float) -> None:
    judge = Judge(CLASSIFIER, _policy(_block("nsfw", 0.2, labels=("hentai", "porn", "sexy")), pooling=pooling))
    scores = judge.category_scores(np.array([[0.05, 0.5, 0.05, 0.3, 0.1]]))
    assert scores[0, 0] == pytest.approx(expected)


def test_a_score_at_the_threshold_is_not_flagged() -> None:
    judge = Judge(CLASSIFIER, _policy(_block("porn", 0.5)))
    assert _decide(judge, 0, 0, 0.5, 0.5, 0)[0] == "safe"
    assert _decide(judge, 0, 0, 0.5, float(np.nextafter(np.float32(0.5), np.float32(1))), 0)[0] == "unsafe"


def test_block_outranks_review_however_high_that_scores() -> None:
    judge = Judge(CLASSIFIER, _policy(_review("sexy", 0.1), _block("porn", 0.1)))
    assert _decide(judge, 0, 0, 0, 0.2, 0.8) == ("unsafe", "porn")
    assert _decide(judge, 0, 0, 0.2, 0, 0.8) == ("review", "sexy")


@pytest.mark.parametrize("rule", ["each", "argmax"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf"), 1.5, -0.5])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_scores_that_are_no_probabilities_are_never_safe(rule: Literal["each", "argmax"], broken: float) -> None:
    judge = Judge(CLASSIFIER, _policy(_block("porn", 0.5), rule=rule))
    # The broken one belongs to no category of the policy: it makes the whole row doubtful all the same.
    rows = np.array([[0, 0, 1, 0, 0], [broken, 0, 0.5, 0, 0], [0, 0, 0, 1, 0]])
    fine, bad, flagged = judge.verdicts(rows, ["a", "b", "c"], [{}, {}, {"tokens": Unseen(3, 10)}])
    assert (fine.decision, flagged.decision) == ("safe", "unsafe")
    assert (bad.status, bad.decision, bad.scores, bad.source) == ("invalid_scores", "unknown", {}, "b")
    assert flagged.unseen == {"tokens": Unseen(3, 10)}


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ((0, 0, 0, 0, 0), "invalid_scores"),
        ((0.25, 0.25, 0.25, 0.25, 0.25), "invalid_scores"),
        ((0, 0, 0.989, 0, 0), "invalid_scores"),
        ((0, 0, 0.991, 0, 0), "ok"),  # what half precision may round away
        ((0, 0, 1.009, 0, 0), "invalid_scores"),  # outside [0, 1]
        ((0.009, 0, 1.0, 0, 0), "ok"),
        ((0.011, 0, 1.0, 0, 0), "invalid_scores"),
    ],
)
def test_the_scores_of_a_softmax_add_up_to_1(row: tuple[float, ...], status: str) -> None:
    judge = Judge(CLASSIFIER, _policy(_block("porn", 0.5)))
    (verdict,) = judge.verdicts(np.array([row], dtype=np.float32))
    assert verdict.status == status
    assert judge.valid(np.array([row])).tolist() == [status == "ok"]
    if status != "ok":
        assert (verdict.decision, verdict.scores) == ("unknown", {})
        assert "do not add up to 1" in verdict.detail


def test_the_scores_of_a_sigmoid_may_all_be_0() -> None:
    judge = Judge(model_card("test_multihead.random"), _policy(_block("sexual", 0.5)))
    (verdict,) = judge.verdicts(np.zeros((1, 5)))
    assert (verdict.status, verdict.decision) == ("ok", "safe")
    assert judge.valid(np.ones((1, 5))).all()


@pytest.mark.filterwarnings("ignore:invalid value")
def test_scores_that_leave_nothing_to_share_are_not_judged() -> None:
    policy = _policy(
        _block("dogs", 0.5, descriptors=("a dog",)),
        Category("rest", "allow", descriptors=("a cat", "a car")),
        pooling="logsumexp",
    )
    nothing, fine = Judge(ZERO_SHOT, policy).verdicts(np.array([[0.0, 0.0, 0.0], [0.8, 0.1, 0.1]], dtype=np.float32))
    assert (nothing.status, nothing.decision) == ("invalid_scores", "unknown")
    assert fine.decision == "unsafe"


def test_of_equal_scores_the_first_category_decides() -> None:
    judge = Judge(CLASSIFIER, _policy(_review("sexy", 0.1), _block("porn", 0.1), _block("hentai", 0.1)))
    assert _decide(judge, 0, 0.25, 0, 0.25, 0.5) == ("unsafe", "porn")
    assert _decide(judge, 0.85, 0.05, 0, 0.05, 0.05) == ("safe", "sexy")


def test_the_wrong_number_of_scores_is_refused() -> None:
    judge = Judge(CLASSIFIER, _policy(_block("porn", 0.5)))
    with pytest.raises(BadInputError, match=r"\[B, 5\], got \[1, 4\]"):
        judge.verdicts(np.zeros((1, 4)))


def test_margins_and_unsafe_scores_look_at_what_can_be_flagged() -> None:
    judge = Judge(CLASSIFIER, _policy(_block("porn", 0.5), _review("sexy", 0.25), Category("neutral", "allow")))
    table = judge.category_scores(np.array([[0.0, 0.0, 0.625, 0.375, 0.0]]))
    assert judge.margins(table)[0] == pytest.approx(0.125)
    assert judge.unsafe_score(table)[0] == pytest.approx(0.375)


@pytest.mark.parametrize(
    ("card", "category", "named"),
    [
        (CLASSIFIER, _block("prn", 0.5), 'no output "prn"; did you mean "porn"'),
        (CLASSIFIER, _block("nsfw", 0.5, labels=("porn", "sexi")), 'no output "sexi"; did you mean "sexy"'),
        (ZERO_SHOT, _block("gun", 0.5), '"gun" has no descriptors'),
    ],
)
def test_a_policy_that_does_not_fit_the_model_is_refused(card: ModelCard, category: Category, named: str) -> None:
    with pytest.raises(BadPolicyError, match=named):
        Judge(card, _policy(category))


UNEQUAL = _policy(
    _block("gun", 0.25, descriptors=("a gun", "a person holding a rifle", "pistols")),
    _block("beer", 0.25, descriptors=("a glass of beer",)),
    Category("neutral", "allow", None, ("a meadow", "a house")),
    rule="argmax",
)


@pytest.mark.parametrize("pooling", ["sum", "max"])
def test_zero_shot_scores_equal_plain_numpy(pooling: Literal["sum", "max"]) -> None:
    policy: Policy = dataclasses.replace(UNEQUAL, pooling=pooling)
    torch.manual_seed(3)
    model = create_model("test_safeclip.random")
    assert isinstance(model, DualEncoder)
    bank = text_bank(model, policy)
    assert bank is not None
    pixels = torch.rand(5, 3, 32, 32)
    with torch.inference_mode():
        scores = model(pixels, bank).softmax(dim=1).numpy()
        images = model.image_tower(pixels).embedding.double().numpy()
        tokens = model.codec().encode(["a gun", "a person holding a rifle", "pistols", "a glass of beer"])
        tokens_neutral = model.codec().encode(["a meadow", "a house"])
        texts = np.concatenate(
            [
                model.text_tower(torch.from_numpy(t.ids), torch.from_numpy(t.mask)).embedding.double().numpy()
                for t in (tokens, tokens_neutral)
            ]
        )
    cosines = (images / np.linalg.norm(images, axis=1)[:, None]) @ (texts / np.linalg.norm(texts, axis=1)[:, None]).T
    powers = np.exp(cosines * np.exp(float(model.logit_scale.detach())))
    share = powers / powers.sum(axis=1, keepdims=True)
    parts = [share[:, 0:3], share[:, 3:4], share[:, 4:6]]
    expected = np.stack([part.sum(axis=1) if pooling == "sum" else part.max(axis=1) for part in parts], axis=1)
    judge = Judge(model.card, policy)
    assert np.abs(judge.category_scores(scores) - expected).max() < 1e-6
    for row, verdict in zip(expected, judge.verdicts(scores), strict=True):
        best = int(row.argmax())
        assert verdict.category == ("gun", "beer", "neutral")[best]
        assert verdict.decision == ("unsafe" if best < 2 and row[best] > 0.25 else "safe")


def test_phrases_keep_the_order_of_the_policy() -> None:
    assert UNEQUAL.phrases[2:5] == ("pistols", "a glass of beer", "a meadow")


def test_the_example_of_the_judge_gives_what_it_says() -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(Judge, "Judge")
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize(
    ("pooling", "threshold", "named"),
    [
        ("sum", 1.0, '"bad" is never flagged: its threshold is 1, and no score is above 1'),
        (
            "mean",
            0.5,
            '"bad" is never flagged: its threshold is 0.5, and no score is above 0.5 (mean of 2 of 5',
        ),
        ("mean", 0.49, None),
        ("max", 0.99, None),
    ],
)
def test_a_category_that_is_never_flagged_is_named(
    pooling: Any, threshold: float, named: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    card = model_card("nsfwjs_mobilenet_v2.gantman")
    bad = Category("bad", "block", Threshold(threshold), labels=("porn", "hentai"))
    rest = Category("rest", "allow", labels=("neutral", "drawing"))
    sexy = Category("sexy", "review", Threshold(0.5))
    policy = Policy("mine", "1", "Two labels", (bad, rest, sexy), pooling=pooling)
    if named is None:
        scores = np.zeros((1, 5))
        scores[0, 1] = 1
        assert bind(card, policy).verdicts(scores)[0].decision == "unsafe"
        assert not caplog.text
    else:
        bind(card, policy)
        assert f'policy "mine": {named}' in caplog.text


def test_an_unsafe_label_that_is_allowed_is_warned_of_by_name(caplog: pytest.LogCaptureFixture) -> None:
    card = model_card("nsfwjs_mobilenet_v2.gantman")
    block = Category("drawing", "block", Threshold(0.5))
    bind(card, Policy("mine", "1", "Wrong way round", (block, Category("porn", "allow"))))
    assert 'policy "mine": allows "porn", so that nsfwjs_mobilenet_v2.gantman never flags it' in caplog.text


def test_an_unsafe_label_in_no_category_is_warned_of_by_name(caplog: pytest.LogCaptureFixture) -> None:
    card = model_card("nsfwjs_mobilenet_v2.gantman")
    bind(card, Policy("mine", "1", "One left out", (Category("hentai", "block", Threshold(0.5)),)))
    assert 'no category has the label "porn", so that nsfwjs_mobilenet_v2.gantman never flags it' in caplog.text
    assert "neutral" not in caplog.text


def test_a_label_in_two_categories_is_refused_where_one_has_it_by_its_name() -> None:
    """By `argmax` a neutral category with a label of its own and this one would always be the higher."""
    block = Category("porn", "block", Threshold(0.5))
    rest = Category("rest", "allow", labels=("porn", "neutral"))
    policy = Policy("mine", "1", "Twice", (block, rest), rule="argmax")
    with pytest.raises(BadPolicyError, match=r"labels that stand in two categories.*\['porn'\]"):
        bind(model_card("nsfwjs_mobilenet_v2.gantman"), policy)


@pytest.mark.parametrize("pooling", ["sum", "max", "logsumexp"])
@pytest.mark.parametrize(("temperature", "never"), [(1.0, False), (20.0, False), (2000.0, True)])
def test_a_temperature_at_which_nothing_is_ever_flagged_is_named(
    pooling: Any, temperature: float, never: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gun = Category("gun", "block", Threshold(0.6), descriptors=("a gun",))
    rest = Category("rest", "allow", descriptors=("a meadow", "a lake"))
    policy = Policy("mine", "1", "Even", (gun, rest), pooling=pooling, temperature=temperature)
    bind(model_card("safeclip_tiny.zeroshot"), policy)
    assert ('"gun" is never flagged: its threshold is 0.6' in caplog.text) == never


@pytest.mark.parametrize(("combine", "never"), [("any", False), ("majority", True)])
def test_a_panel_that_never_flags_is_named(combine: Any, never: bool, caplog: pytest.LogCaptureFixture) -> None:
    names = ("test_laion_nsfw.random", "test_q16.random")
    card = panel_card("test_clip.panel", {name: model_card(name) for name in names})
    one, other = ("nsfw", 0.5), ("inappropriate", 1.0)
    policies = {
        name: Policy("mine", "1", "One label", (Category(label, "block", Threshold(limit)),))
        for name, (label, limit) in zip(names, (one, other), strict=True)
    }
    bind(card, panel_policy(policies, combine))
    assert '"inappropriate" is never flagged: its threshold is 1' in caplog.text
    assert ("2 heads must agree, and these alone can flag: test_laion_nsfw.random" in caplog.text) == never


def test_aliases_that_stand_for_billions_of_values_are_refused() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    with pytest.raises(yaml.YAMLError, match="aliases stand for more than 1,000,000 values"):
        load_yaml("\n".join(lines))
    assert load_yaml("a: &a [x, y]\nb: [*a, *a]\nc: {<<: {d: 1}}") == {
        "a": ["x", "y"],
        "b": [["x", "y"]] * 2,
        "c": {"d": 1},
    }


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    policy = Policy("mine", "1", "Two", (Category("porn", "block", Threshold(0.5)), Category("neutral", "allow")))
    text = policy.to_yaml()
    assert "action: block\n" in text
    path = tmp_path / "policy.yaml"
    path.write_text(text.replace("action: block\n", "action: block\n  action: allow\n"), encoding="utf-8")
    with pytest.raises(BadInputError, match="the key 'action' stands there twice"):
        read_policy(path)


def test_a_key_that_stands_twice_in_another_spelling_or_in_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    for text in ("a: {yes: 1, true: 2}", "- - {1: a, 0x1: b}", "? [a]\n: 1\n? [a]\n: 2"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BadInputError, match=r"stands there twice|unhashable"):
            read_yaml(path)
    path.write_text("base: &base {a: 1, b: 2}\nmine: {<<: *base, b: 3}", encoding="utf-8")
    assert read_yaml(path) == {"base": {"a": 1, "b": 2}, "mine": {"a": 1, "b": 3}}
    path.write_text('{"categories": [{"action": "block", "action": "allow"}]}', encoding="utf-8")
    with pytest.raises(BadInputError, match="the key 'action' stands there twice"):
        read_json(path)
