"""Panels: what each head says on its own it says in the panel, the tower runs once, and the whole fails closed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from export import runtime
from export.onnx.export import export_onnx
from export.verify.compare import verify
from tests.verdicts import same_verdict
from zoo.assets import find_asset
from zoo.cli import run
from zoo.contract.card import ModelCard, panel_card
from zoo.contract.policy import Category, PanelPolicy, Policy, Threshold, panel_policy, read_policy
from zoo.contract.verdict import Unseen, Verdict
from zoo.errors import BadCardError, BadInputError, BadPolicyError
from zoo.judging.judge import Judge, PanelJudge, bind
from zoo.models.base import ZooModel
from zoo.models.clip import DualEncoder
from zoo.models.heads import Panel
from zoo.registry import RANDOM, create_model, list_models, model_card, model_entry
from zoo.release.panel import create_panel
from zoo.release.store import load_release, write_release

pytestmark = pytest.mark.usefixtures("traced_once")

CLIP = "test_safeclip.random"
HEADS = ("test_laion_nsfw.random", "test_safety_checker.random", "test_multihead.random", "test_q16.random")
SAFECLIP, DOGS = "configs/policy/safeclip.yaml", "configs/policy/dogs.yaml"


def _policy(*thresholds: float, action: str = "block", **fields: Any) -> Policy:
    names = ("nsfw",) if len(thresholds) == 1 else ("sexual", "violent", "disturbing", "hateful", "political")
    chosen = zip(names, thresholds, strict=False)
    categories = tuple(Category(name, action, Threshold(value)) for name, value in chosen)  # type: ignore[arg-type]
    return Policy("demo", "1", "", categories, **fields)


def _judge(combine: Any, actions: tuple[str, str, str] = ("block", "block", "block")) -> PanelJudge:
    laion = model_card("test_laion_nsfw.random")
    card = panel_card("test_clip.panel", dict.fromkeys("abc", laion))
    heads = {name: _policy(0.2, action=action) for name, action in zip("abc", actions, strict=True)}
    return PanelJudge(card, panel_policy(heads, combine))


def _decide(judge: PanelJudge, *scores: float) -> Verdict:
    return judge.verdicts(np.array([scores]))[0]


@pytest.mark.parametrize(
    ("combine", "scores", "expected"),
    [
        ("any", (0.1, 0.1, 0.1), "safe"),
        ("any", (0.1, 0.1, 0.3), "unsafe"),
        ("majority", (0.1, 0.1, 0.9), "safe"),
        ("majority", (0.1, 0.3, 0.3), "unsafe"),
        ("mean", (0.0, 0.0, 0.9), "safe"),  # risks 0, 0, 0.94
        ("mean", (0.2, 0.2, 0.3), "unsafe"),  # risks 0.5, 0.5, 0.56
        ("max", (0.2, 0.2, 0.2), "safe"),  # at the threshold is not above it
        ("max", (0.0, 0.0, 0.3), "unsafe"),
    ],
)
def test_how_heads_are_combined(combine: str, scores: tuple[float, ...], expected: str) -> None:
    assert _decide(_judge(combine), *scores).decision == expected


@pytest.mark.parametrize(
    ("combine", "scores", "expected"),
    [
        ("any", (0.9, 0.3, 0.1), ("unsafe", "b")),  # review is outranked, however sure
        ("max", (0.9, 0.3, 0.1), ("review", "a")),  # the surest head decides
        ("majority", (0.9, 0.3, 0.1), ("review", "a")),  # two of three flag it, only one would block
        ("mean", (0.9, 0.3, 0.2), ("unsafe", "b")),
        ("any", (0.9, 0.1, 0.1), ("review", "a")),
    ],
)
def test_blocking_and_reviewing_heads(combine: str, scores: tuple[float, ...], expected: tuple[str, str]) -> None:
    verdict = _decide(_judge(combine, ("review", "block", "block")), *scores)
    assert (verdict.decision, verdict.category) == expected


def test_disagreement_is_none_where_all_agree_and_highest_where_half_do() -> None:
    judge = _judge("any")
    assert _decide(judge, 0.1, 0.1, 0.1).disagreement == _decide(judge, 0.9, 0.9, 0.9).disagreement == 0
    assert _decide(judge, 0.9, 0.1, 0.1).disagreement == pytest.approx(2 / 3)
    verdict = _decide(judge, 0.9, 0.1, 0.1)
    assert {name: head.decision for name, head in verdict.heads.items()} == {"a": "unsafe", "b": "safe", "c": "safe"}
    assert Verdict.from_dict(verdict.to_dict()) == verdict


def test_a_panel_calls_nothing_safe_of_which_too_much_is_unseen() -> None:
    whole, cut = _judge("any").verdicts(np.full((2, 3), 0.1), ["a", "b"], [{}, {"tokens": Unseen(3, 10)}])
    assert (whole.decision, whole.unseen) == ("safe", {})
    assert (cut.decision, cut.category, cut.unseen) == ("review", None, {"tokens": Unseen(3, 10)})
    assert {head.decision for head in cut.heads.values()} == {"safe"}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("combine", ["any", "majority", "mean", "max"])
def test_one_head_without_an_answer_leaves_the_whole_unknown(combine: str) -> None:
    verdict = _decide(_judge(combine), 0.1, float("nan"), 0.1)
    assert (verdict.status, verdict.decision, verdict.scores) == ("invalid_scores", "unknown", {})
    assert verdict.detail.startswith("b: ")
    assert not verdict.is_safe


@pytest.mark.parametrize("combine", ["any", "majority", "mean", "max"])
def test_a_softmax_head_whose_scores_do_not_add_up_leaves_the_whole_unknown(combine: Any) -> None:
    heads = {"laion": model_card("test_laion_nsfw.random"), "q16": model_card("test_q16.random")}
    q16 = Policy("q16", "1", "", (Category("inappropriate", "block", Threshold(0.5)),))
    policy = panel_policy({"laion": _policy(0.2), "q16": q16}, combine)
    judge = PanelJudge(panel_card("test_clip.panel", heads), policy)
    rows = np.array([[0.1, 0.0, 0.0], [0.0, 0.9, 0.1], [0.1, 0.5, 0.7]])
    zeros, fine, above = judge.verdicts(rows)
    assert judge.valid(rows).tolist() == [False, True, False]
    assert (zeros.status, zeros.decision) == (above.status, above.decision) == ("invalid_scores", "unknown")
    assert zeros.detail.startswith("q16: ")
    assert (fine.status, fine.decision) == ("ok", "safe")


@pytest.mark.parametrize("rule", ["each", "argmax"])
def test_a_risk_is_above_a_half_exactly_where_something_is_flagged(rule: Any) -> None:
    judge = Judge(model_card("test_multihead.random"), _policy(0.0, 0.3, 0.5, 0.9, 1.0, rule=rule))
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.random((2000, 5)), np.zeros((1, 5)), np.ones((1, 5)), [[0, 0.3, 0.5, 0.9, 1.0]]])
    table = judge.category_scores(rows)
    risks = judge.risks(table)
    assert np.array_equal(risks > 0.5, judge.flags(table).any(axis=1))
    assert ((risks >= 0) & (risks <= 1)).all()


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Releases of all kinds of heads, all with the tower of one zero-shot model, which reads it one layer earlier."""
    folder = tmp_path_factory.mktemp("members")
    torch.manual_seed(0)
    full = create_model(CLIP, layer=-1, post_layernorm=True)
    tower = {k: v for k, v in full.state_dict().items() if k.startswith("image_tower.")}
    early = create_model(CLIP)
    early.load_state_dict({k: v for k, v in full.state_dict().items() if k in early.state_dict()})
    models = {"full": full, "early": early}
    for name in HEADS:
        models[name] = create_model(name)
        models[name].load_state_dict({**models[name].state_dict(), **tower})
    for name, model in models.items():
        write_release(model, load_release(model.card.name).policy, folder / name)
    return {name: folder / name for name in models}


def _images(count: int) -> list[Any]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), dtype=np.uint8))


def test_every_head_answers_as_it_does_alone(members: dict[str, Path]) -> None:
    chosen = [members["early"], *(members[name] for name in HEADS)]
    panel = create_panel("test_clip", chosen)
    assert panel.card.bank_names == ("text_bank_0",)
    assert len(panel.card.hparams["readings"]) == 2  # SafeCLIP reads the layer before the last, the others the end
    images = _images(4)
    with zoo.load_scorer(panel) as scorer:
        together = scorer.verdicts(images)
    for source, name in zip(chosen, (CLIP, *HEADS), strict=True):
        with zoo.load_scorer(source) as alone:
            for verdict, expected in zip(together, alone.verdicts(images), strict=True):
                assert same_verdict(verdict.heads[name], dataclasses.replace(expected, unseen=None), 1e-5)


def test_the_tower_runs_once_whatever_the_number_of_heads(members: dict[str, Path]) -> None:
    panel = create_panel("test_clip", [members["early"], *(members[name] for name in HEADS)])
    assert isinstance(panel.model, Panel)
    calls = []
    for layer in panel.model.image_tower.vision_model.encoder.layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    with zoo.load_scorer(panel) as scorer:
        scorer.verdict(_images(1)[0])
    assert len(calls) == 2  # one for each of its two layers


def test_one_model_with_two_policies(members: dict[str, Path]) -> None:
    dogs = Policy.read(find_asset(DOGS))
    panel = create_panel("test_clip", [(members["early"], SAFECLIP), (members["early"], dogs)], "max")
    assert list(panel.card.heads) == [f"{CLIP}/safeclip", f"{CLIP}/dogs"]
    with zoo.load_scorer(panel) as scorer, zoo.load_scorer(members["early"], dogs) as alone:
        (image,) = _images(1)
        expected = dataclasses.replace(alone.verdict(image), unseen=None)  # what is unseen, the panel says
        assert same_verdict(scorer.verdict(image).heads[f"{CLIP}/dogs"], expected, 1e-5)


def test_two_projections_of_one_tower_are_two_readings(members: dict[str, Path], tmp_path: Path) -> None:
    other = load_release(members["early"]).model
    assert isinstance(other, DualEncoder)
    torch.nn.init.normal_(other.image_tower.visual_projection.weight)  # type: ignore[union-attr, arg-type]
    policy = Policy.read(find_asset(DOGS))
    write_release(other, policy, tmp_path / "other")
    panel = create_panel("test_clip", [members["early"], tmp_path / "other", members[HEADS[0]]])
    assert len(panel.card.hparams["readings"]) == 3
    with zoo.load_scorer(panel) as scorer, zoo.load_scorer(tmp_path / "other") as alone:
        (image,) = _images(1)
        expected = dataclasses.replace(alone.verdict(image), unseen=None)  # what is unseen, the panel says
        assert same_verdict(scorer.verdict(image).heads[f"{CLIP}/dogs"], expected, 1e-5)


def test_members_of_another_tower_are_refused(members: dict[str, Path], tmp_path: Path) -> None:
    model = create_model(HEADS[0])
    torch.nn.init.normal_(model.image_tower.vision_model.embeddings.patch_embedding.weight)  # type: ignore[union-attr, arg-type]
    write_release(model, load_release(HEADS[0]).policy, tmp_path / "stranger")
    with pytest.raises(BadInputError, match="have different image towers"):
        create_panel("test_clip", [members["early"], tmp_path / "stranger"])
    with pytest.raises(BadInputError, match='no tower is named "clip_vit_l41"; did you mean "clip_vit_l14"'):
        create_panel("clip_vit_l41", [members["early"]])
    with pytest.raises(BadInputError, match="do not fit clip_vit_b32: patch_size is 8, expected 32"):
        create_panel("clip_vit_b32", [members["early"]])
    with pytest.raises(BadInputError, match="is not a head on the embedding"):
        create_panel("test_clip", ["test_nsfwjs.random"])
    with pytest.raises(BadInputError, match="needs at least one head"):
        create_panel("test_clip", [])
    with pytest.raises(BadInputError, match="twice"):
        create_panel("test_clip", [members["early"], members["early"]])
    with pytest.raises(BadInputError, match='named "all"; known: any, majority'):
        create_panel("test_clip", [members["early"]], "all")  # type: ignore[arg-type]


def test_members_that_compute_otherwise_by_the_same_weights_are_refused(
    members: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = load_release(members[HEADS[0]])

    def build(card: ModelCard) -> ZooModel:
        """A model of another package, whose tower has another epsilon, of which its card says nothing."""
        model = zoo.registry.build(card.replace(name=HEADS[0]))
        model.load_state_dict(head.model.state_dict())
        tower: Any = model.image_tower
        tower.vision_model.config.layer_norm_eps = 1e-3
        for module in tower.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 1e-3
        return model

    monkeypatch.setattr(zoo.registry, "_entries", dict(zoo.registry._entries))
    policy, name = model_entry(HEADS[0]).policy, "test_epsilon.random"
    zoo.register_model(head.card.replace(name=name), builder=build, policy=policy, pretrained=RANDOM)
    with pytest.raises(BadInputError, match=r"its image tower .*layer_norm_eps 0.001 \(expected 1e-05\)"):
        create_panel("test_clip", [members["early"], name])
    model = zoo.registry.build(head.card.replace(hparams={**head.card.hparams, "hidden_act": "gelu"}))
    model.load_state_dict(head.model.state_dict())
    write_release(model, head.policy, tmp_path / "gelu")
    with pytest.raises(BadInputError, match="no image tower in common: hidden_act is quick_gelu and gelu"):
        create_panel("test_clip", [members["early"], tmp_path / "gelu"])
    again = create_panel("test_clip", [tmp_path / "gelu"])  # alone it has its tower for itself
    (image,) = _images(1)
    with zoo.load_scorer(again) as scorer, zoo.load_scorer(tmp_path / "gelu") as alone:
        expected = dataclasses.replace(alone.verdict(image), unseen=None)  # what is unseen, the panel says
        assert same_verdict(scorer.verdict(image).heads[HEADS[0]], expected, 1e-5)


def test_a_panel_whose_card_gives_its_heads_another_tower_is_refused(members: dict[str, Path], tmp_path: Path) -> None:
    panel = create_panel("test_clip", [members["early"], members[HEADS[0]]])
    write_release(panel.model, panel.policy, tmp_path / "panel")
    load_release(tmp_path / "panel")
    card = json.loads((tmp_path / "panel" / "card.json").read_bytes())
    card["hparams"]["heads"][1]["card"]["hparams"]["hidden_act"] = "gelu"
    (tmp_path / "panel" / "card.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(BadCardError, match=f"hidden_act of the shared .* quick_gelu, and head {HEADS[0]} needs gelu"):
        load_release(tmp_path / "panel")


def test_policies_and_panels_that_do_not_fit(members: dict[str, Path], tmp_path: Path) -> None:
    panel = create_panel("test_clip", [members["early"], members[HEADS[0]]])
    assert isinstance(panel.policy, PanelPolicy)
    with pytest.raises(BadPolicyError, match="needs one policy for each head"):
        bind(panel.card, Policy.read(find_asset(SAFECLIP)))
    with pytest.raises(BadPolicyError, match="is one model"):
        bind(model_card(CLIP), panel.policy)
    fewer = dataclasses.replace(panel.policy, heads=panel.policy.heads[:1])
    with pytest.raises(BadPolicyError, match=r"says nothing of the heads \['test_laion_nsfw.random'\]"):
        bind(panel.card, fewer)
    wrong = dataclasses.replace(panel.policy, heads=(dataclasses.replace(panel.policy.heads[0], head="test_safeclip"),))
    with pytest.raises(BadPolicyError, match=r'no head "test_safeclip"; did you mean "test_safeclip\.random"'):
        bind(panel.card, wrong)
    (tmp_path / "policy.yaml").write_text(panel.policy.to_yaml(), encoding="utf-8")
    assert read_policy(tmp_path / "policy.yaml") == panel.policy


@pytest.mark.slow
def test_a_panel_from_command_line_to_bundle(
    members: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release, bundle = tmp_path / "panel", tmp_path / "bundle"
    sources = [f"{members['early']}={SAFECLIP}", *(str(members[name]) for name in HEADS)]
    assert run(["panel", "test_clip", *sources, "--combine", "majority", "--out", str(release)]) == 0
    assert "combined by majority: test_safeclip.random, test_laion_nsfw.random" in capsys.readouterr().out
    assert run(["panel", "test_clip", *sources, "--out", str(members["early"]), "--overwrite"]) == 1
    assert "is what this reads, and the result would replace it; name another --out" in capsys.readouterr().err
    export_onnx(release, bundle)
    for report in verify(bundle):
        report.raise_if_failed()
    images = _images(5)
    with zoo.load_scorer(release) as eager, runtime.load(bundle, threads=1) as exported:
        for one, other in zip(eager.verdicts(images), exported.verdicts(images), strict=True):
            assert one.decision == other.decision
            assert all(same_verdict(one.heads[name], other.heads[name], 1e-5) for name in one.heads)
    # Another policy, with other phrases for the zero-shot head, on the very same bundle.
    policy = read_policy(release / "policy.yaml")
    assert isinstance(policy, PanelPolicy)
    dogs = dataclasses.replace(policy.heads[0], policy=Policy.read(find_asset(DOGS)))
    changed = dataclasses.replace(policy, combine="mean", heads=(dogs, *policy.heads[1:]))
    with zoo.load_scorer(release, changed) as eager, runtime.load(bundle, changed, threads=1) as exported:
        for one, other in zip(eager.verdicts(images), exported.verdicts(images), strict=True):
            assert set(one.heads[CLIP].scores) == {"dogs", "neutral"}
            assert all(same_verdict(one.heads[name], other.heads[name], 1e-5) for name in one.heads)
    shutil.rmtree(bundle)


def test_every_shipped_panel_holds_safeclip_and_all_heads_of_its_size() -> None:
    for name in list_models("clip_*.panel"):
        size = name.removeprefix("clip_").removesuffix(".panel")
        heads = model_card(name).heads
        assert f"safeclip_{size}.zeroshot" in heads
        assert {
            head for head in list_models(f"*_{size}.*") if head.startswith(("laion", "q16", "multih", "safety"))
        } < set(heads)
