"""The registry by listing: every model's card, small models that come out the same everywhere, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import zoo.models.catalogue
from zoo import registry
from zoo.contract.card import ModelCard
from zoo.errors import BadCardError, BadInputError, UnknownModelError
from zoo.judging.judge import bind
from zoo.judging.scorer import Feeds
from zoo.models.base import ZooModel
from zoo.models.served import ServedRun, text_banks
from zoo.registry import create_model, default_policy, list_models, model_card, model_entry, model_table, register_model
from zoo.release.store import load_release

ALL = list_models()
TEST_MODELS = list_models("test_*")


@pytest.fixture
def empty_shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone afterwards."""
    list_models()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.parametrize("name", ALL)
def test_every_card_round_trips_and_fits_its_policy(name: str) -> None:
    entry = model_entry(name)
    assert entry.card.name == name
    assert ModelCard.from_dict(json.loads(json.dumps(entry.card.to_dict()))) == entry.card
    bind(entry.card, default_policy(entry))
    assert f"`{name}`" in model_table([name])


def test_a_text_search_finds_where_each_shipped_model_is_registered() -> None:
    catalogue = "".join(
        path.read_text(encoding="utf-8") for path in Path(zoo.models.catalogue.__path__[0]).glob("*.py")
    )
    assert [name for name in ALL if f'"{name}"' not in catalogue] == TEST_MODELS


def test_listing_by_wildcard_tag_and_task() -> None:
    assert list_models() == sorted(ALL)
    assert set(list_models("safeclip_*")) == {name for name in ALL if name.startswith("safeclip_")}
    names = ["safeclip_vit_l14.zeroshot", "safeclip_vit_l14_336.zeroshot"]
    assert list_models("safeclip_vit_l14*", tag="zeroshot") == names
    assert all(name.endswith(".fusion") for name in list_models(tag="fusion"))
    assert list_models("*nsfw*", tag="fusion", task="zero_shot") == []
    tasks = ("zero_shot", "classification", "panel")
    assert sorted(name for task in tasks for name in list_models(task=task)) == sorted(ALL)


@pytest.mark.parametrize(
    ("name", "near"),
    [("safeclip_vit_b23.zeroshot", "safeclip_vit_b32.zeroshot"), ("multimodal_nsfw_tiny.fuson", "tiny.fusion")],
)
def test_an_unknown_name_is_answered_with_close_ones(name: str, near: str) -> None:
    with pytest.raises(UnknownModelError, match=near) as refusal:
        create_model(name)
    assert str(refusal.value).startswith(f'no model is named "{name}"')  # no quotes around it all, as KeyError has


def _build(card: ModelCard) -> ZooModel:
    model = ZooModel(card)
    model.add_module("layer", torch.nn.Linear(card.hparams["width"], 1))
    return model


CARD = model_card("test_nsfwjs.random").replace(name="mine.demo", hparams={"width": 3})


@pytest.mark.usefixtures("empty_shelf")
def test_register_as_function_and_as_decorator() -> None:
    register_model(CARD, policy="configs/policy/nsfwjs.yaml", builder=_build)
    decorate = register_model(CARD.replace(name="mine.other"), policy="configs/policy/nsfwjs.yaml")
    assert list_models("mine.*") == ["mine.demo"]
    assert decorate(_build) is _build
    assert list_models("mine.*") == ["mine.demo", "mine.other"]
    weight = create_model("mine.other", width=5).get_submodule("layer").weight
    assert isinstance(weight, torch.Tensor)
    assert weight.shape == (1, 5)
    with pytest.raises(BadInputError, match=r'"mine\.demo" is already registered'):
        register_model(CARD, policy="configs/policy/nsfwjs.yaml", builder=_build)
    with pytest.raises(BadInputError, match="already registered"):
        register_model(model_card("test_safeclip.random"), policy="x", builder=_build)


@pytest.mark.parametrize(
    ("hparams", "error", "named"),
    [
        ({"vision_widht": 64}, BadInputError, 'no hyperparameter "vision_widht"; did you mean "vision_width"'),
        ({"image_size": 0}, BadCardError, "greater than 0, got 0"),
        ({"image_size": "big"}, BadCardError, "got 'big'"),
        ({"context_length": 1}, BadCardError, "greater than or equal to 3"),
        ({"labels": "unsafe"}, BadCardError, '"labels"'),
        ({"labels": []}, BadCardError, "must list its labels"),
    ],
)
def test_overrides_that_no_card_allows_are_refused(hparams: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        create_model("test_multimodal_nsfw.fusion", **hparams)


def test_a_zero_shot_model_has_no_labels_to_override() -> None:
    with pytest.raises(BadInputError, match='no hyperparameter "labels"'):
        create_model("test_safeclip.random", labels=["a"])


def test_overrides_change_the_card_and_the_model() -> None:
    torch.manual_seed(0)
    labels = ("gore", "nudity", "safe")
    model = create_model(
        "test_multimodal_nsfw.fusion", image_size=48, context_length=10, labels=labels, vision_layers=1
    )
    assert model.card.image is not None
    assert model.card.text is not None
    assert (model.image_size, model.card.text.context_length, model.card.labels) == (48, 10, labels)
    assert model.card.hparams["vision_layers"] == 1
    tokens = model.codec().encode(["a", "b " * 30])
    assert tokens.ids.shape == (2, 10)
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    with torch.inference_mode():
        logits = model(torch.rand(2, 3, 48, 48), ids, mask, torch.ones(2, dtype=torch.bool))
        assert logits.shape == (2, 3)
        with pytest.raises(ValueError, match="48"):  # the old size no longer fits
            model(torch.rand(2, 3, 32, 32), ids, mask, torch.ones(2, dtype=torch.bool))
    assert model_card("test_multimodal_nsfw.fusion").labels == ("unsafe", "safe")


#: Recorded from a run: the first outputs for an image of seeded noise and one that is half red.
GOLDEN: dict[str, list[list[float]]] = {
    "test_clip.panel": [[0.00094, 0.00014, 8e-05], [0.00385, 0.00046, 9e-05]],
    "test_clip_efficientnet.random": [[0.01538, 0.02505, 0.10457], [0.01209, 0.02281, 0.0969]],
    "test_clip_mobilenet_v1.random": [[0.01226, 0.0483, 0.03601], [0.01267, 0.04969, 0.03672]],
    "test_clip_resnet.random": [[0.08774, 0.06842, 0.0229], [0.07583, 0.07833, 0.02522]],
    "test_laion_nsfw.random": [[0.50568], [0.52672]],
    "test_multihead.random": [[0.45933, 0.47921, 0.46081], [0.46344, 0.46068, 0.44522]],
    "test_multimodal_conv.fusion": [[0.46104, 0.53538, 0.4614], [0.46501, 0.53307, 0.46048]],
    "test_multimodal_nsfw.as_released": [[0.43719, 0.56281], [0.43599, 0.56401]],
    "test_multimodal_nsfw.fusion": [[0.37787, 0.62213], [0.37959, 0.62041]],
    "test_nsfwjs.random": [[0.17055, 0.26411, 0.17727], [0.16876, 0.26357, 0.1819]],
    "test_opennsfw.random": [[0.35963, 0.64037], [0.26297, 0.73703]],
    "test_prompt_bert.random": [[0.43776, 0.54492, 0.47406], [0.44806, 0.56849, 0.46411]],
    "test_q16.random": [[0.4206, 0.5794], [0.20775, 0.79225]],
    "test_safeclip.random": [[0.01565, 0.04167, 0.01358], [0.01593, 0.03364, 0.01409]],
    "test_safety_checker.random": [[0.59387, 0.45199, 0.43392], [0.57131, 0.42096, 0.49021]],
    "test_sentence_bert.random": [[0.93175], [0.93575]],
    "test_sentence_words.random": [[0.36614], [0.30567]],
    "test_terms.random": [[0.5], [0.6733]],
    "test_vision_regnet.random": [[0.09234, 0.09033, 0.08722], [0.08818, 0.07152, 0.10907]],
}


@pytest.mark.parametrize("name", TEST_MODELS)
def test_test_models_are_small_and_the_same_everywhere(name: str, tmp_path: Path) -> None:
    torch.manual_seed(99)  # must not matter
    before = torch.get_rng_state()
    release = load_release(name)
    assert torch.equal(before, torch.get_rng_state())
    save_file(release.model.state_dict(), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size < 1_000_000
    images = np.random.default_rng(7).integers(0, 256, (2, 40, 56, 3), dtype=np.uint8)
    images[1, :, :28] = (255, 0, 0)
    feeds: Feeds = {"image": images} if release.card.image else {}
    if release.card.reads_text and release.card.text is not None:
        tokens = release.model.codec().encode(["a red bicycle", "two dogs on a sofa"])
        feeds |= {"input_ids": tokens.ids, release.card.text.mask_name: tokens.mask}
    if "image_present" in release.card.input_names:
        feeds["image_present"] = np.array([True, False])
    scores = ServedRun(release.model, text_banks(release.model, release.judge))(feeds)
    recorded = [[round(float(score), 5) for score in row[:3]] for row in scores]
    assert name in GOLDEN, f'record the scores: "{name}": {recorded},'
    expected = np.array(GOLDEN[name])
    assert np.abs(scores[:, : expected.shape[1]] - expected).max() < 1e-4
    assert np.abs(scores[0] - scores[1]).max() > 1e-3  # else a broken export would pass unnoticed
