"""Published heads: each equals its definition, written out in numpy, on the real weights; then the whole classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import nn

from zoo.assets import find_asset
from zoo.contract.card import ModelCard
from zoo.contract.policy import Policy
from zoo.errors import BadInputError
from zoo.judging.judge import Judge
from zoo.models.heads import ADJUSTMENT, HALF_STEP, HEADS, SafetyChecker
from zoo.registry import create_model, list_models, model_card, model_entry

Array = NDArray[Any]
Weights = dict[str, Array]
TEST_HEADS = [f"test_{kind}.random" for kind in HEADS]


def _read(shared: Path, name: str) -> Weights:
    """The tensors of a published head under the names of its parameters."""
    if name.startswith("q16_"):
        size = name.split(".")[0].removeprefix("q16_")
        return {"prompts": load_file(shared / "heads" / "q16_prompts.safetensors")[size]}
    weights: Weights = load_file(shared / "heads" / f"{name.split('.')[0]}.safetensors")
    return weights


def _head(card: ModelCard, weights: Weights) -> nn.Module:
    head = HEADS[card.hparams["head"]](card)
    missing, extra = head.load_state_dict({key: torch.from_numpy(w) for key, w in weights.items()}, strict=False)
    assert not extra
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return head.eval()


@torch.inference_mode()
def _logits(head: nn.Module, embedding: Array) -> Array:
    return np.asarray(head(torch.from_numpy(embedding.astype(np.float32))), dtype=np.float64)


def _embeddings(width: int, count: int = 400) -> Array:
    """Random embeddings of the length that CLIP's have before they are normalised, about 10."""
    return np.asarray(np.random.default_rng(5).normal(size=(count, width)) * 10 / np.sqrt(width))


def _unit(rows: Array) -> Array:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def _relu(values: Array) -> Array:
    return np.maximum(values, 0)


# The definitions, independent of zoo/models/heads.py.


def _laion(w: Weights, x: Array) -> Array:
    x = (_unit(x) - w["norm.mean"]) / np.sqrt(w["norm.variance"].astype(np.float64))
    layers = sum(key.endswith(".bias") for key in w)
    for number in range(1, layers + 1):
        x = x @ w[f"linear_{number}.weight"].T.astype(np.float64) + w[f"linear_{number}.bias"]
        x = x if number == layers else _relu(x)
    return x


def _multihead(w: Weights, x: Array) -> Array:
    columns = []
    for label in ("sexual", "violent", "disturbing", "hateful", "political"):
        p = {key.removeprefix(label + "."): value.astype(np.float64) for key, value in w.items()}
        hidden = _relu(x @ p["0.weight"].T + p["0.bias"])
        hidden = (hidden - p["3.running_mean"]) / np.sqrt(p["3.running_var"] + 1e-5) * p["3.weight"] + p["3.bias"]
        columns.append(hidden @ p["4.weight"].T + p["4.bias"])
    return np.concatenate(columns, axis=1)


def _q16(w: Weights, x: Array) -> Array:
    return np.asarray(100 * _unit(x) @ _unit(w["prompts"]).T)


def _checker(w: Weights, x: Array) -> Array:
    """Image by image and score by score, rounded to 3 decimals: concepts, then special care."""
    rows = []
    for image in _unit(x):
        adjustment = 0.0
        scores: dict[str, list[float]] = {}
        for name in ("special_care", "concept"):
            cosines = _unit(w[f"{name}_embeds"]) @ image
            scores[name] = []
            for cosine, threshold in zip(cosines, w[f"{name}_embeds_weights"].astype(np.float64), strict=True):
                scores[name].append(np.round(cosine - threshold + adjustment, 3))
                if name == "special_care" and scores[name][-1] > 0:
                    adjustment = 0.01
        rows.append([*scores["concept"], *scores["special_care"]])
    return np.array(rows)


REFERENCES = {"laion_nsfw": _laion, "multihead": _multihead, "q16": _q16}
PUBLISHED = [name for name in list_models() if model_card(name).hparams.get("head") in REFERENCES]


@pytest.mark.shared_data
@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.startswith("test_")])
def test_a_published_head_equals_its_definition(shared: Path, name: str) -> None:
    card, weights = model_card(name), _read(shared, name)
    x = _embeddings(card.hparams["embedding_dim"])
    expected = REFERENCES[card.hparams["head"]](weights, x)
    found = _logits(_head(card, weights), x)
    assert found.shape == (400, len(card.labels))
    assert expected.std() > 0.1
    probability = 1 / (1 + np.exp(-expected)), 1 / (1 + np.exp(-found))
    assert np.abs(probability[0] - probability[1]).max() < 1e-5
    assert np.abs(found - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())


def _near_the_thresholds(weights: Weights) -> Array:
    """Embeddings whose score for each concept in turn is a few millionths to a hundredth off the step at 0.0005."""
    rng = np.random.default_rng(3)
    offsets = np.array([-1e-2, -1e-3, -1e-4, -1e-5, -4e-6, 4e-6, 1e-5, 1e-4, 1e-3])
    rows = []
    for name in ("concept", "special_care"):
        for direction, threshold in zip(
            _unit(weights[f"{name}_embeds"]), weights[f"{name}_embeds_weights"].astype(np.float64), strict=True
        ):
            other = rng.normal(size=direction.shape)
            other -= (other @ direction) * direction
            for cosine in threshold + HALF_STEP + offsets:
                rows.append(cosine * direction + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other))
    return np.stack(rows) * 10


@pytest.mark.shared_data
def test_the_safety_checker_equals_its_definition_and_gives_the_same_verdicts(shared: Path) -> None:
    name = "safety_checker_vit_l14.compvis"
    card, weights = model_card(name), _read(shared, name)
    near = _near_the_thresholds(weights)
    rng = np.random.default_rng(1)
    concepts = np.concatenate([weights["concept_embeds"], weights["special_care_embeds"]])
    toward = _unit(concepts)[rng.integers(0, 20, 3000)] * rng.random((3000, 1))
    mixed = _unit(rng.normal(size=(3000, 768))) + 0.4 * toward
    x = np.concatenate([_embeddings(768, 1000), mixed, near])
    expected, logits = _checker(weights, x), _logits(_head(card, weights), x)
    # Rounding hides less than half a step; where a score lies within float32's noise of a step, either side is right.
    exact = logits + HALF_STEP
    at_step = np.abs(np.abs(exact * 1000 % 1) - 0.5) < 1e-3
    assert at_step.mean() < 0.02
    assert np.abs(np.round(exact, 3) - expected)[~at_step].max() < 1e-5
    assert np.abs(exact - expected).max() < HALF_STEP + 1e-6

    judge = Judge(card, Policy.read(find_asset(model_entry(name).policy)))
    scores = np.asarray(torch.from_numpy(logits.astype(np.float32)).sigmoid())
    verdicts = np.array([verdict.decision == "unsafe" for verdict in judge.verdicts(scores)])
    assert (verdicts == (expected[:, :17] > 0).any(axis=1)).all()
    assert ((logits > 0) == (expected > 0)).all()
    assert 0.05 < verdicts.mean() < 0.95
    assert 0.05 < verdicts[-len(near) :].mean() < 0.95
    assert (expected[:, 17:] > 0).any(axis=1).sum() > 100


def _checker_of(thresholds: list[float], cosines: list[float], concepts: int) -> Array:
    """Logits of a small checker whose concepts are the axes, for one image with these cosines."""
    labels = tuple(f"concept_{n}" for n in range(concepts))
    labels += tuple(f"special_care_{n}" for n in range(len(thresholds) - concepts))
    width = len(labels) + 1
    card = model_card("test_safety_checker.random", labels=labels, embedding_dim=width)
    axes = np.eye(width)[: len(labels)].astype(np.float32)
    limits = np.array(thresholds, dtype=np.float32)
    head = _head(
        card,
        {
            "concept_embeds": 3 * axes[:concepts],
            "concept_embeds_weights": limits[:concepts],
            "special_care_embeds": axes[concepts:],
            "special_care_embeds_weights": limits[concepts:],
        },
    )
    rest = np.sqrt(1 - np.square(cosines).sum())
    logits = _logits(head, 7 * np.array([[*cosines, rest]]))
    return np.asarray(logits[0] + HALF_STEP)


def test_a_special_care_hit_raises_every_score_that_follows() -> None:
    scores = _checker_of([0.2, 0.2, 0.1, 0.1, 0.1], [0.195, 0.1, 0.09, 0.2, 0.095], concepts=2)
    assert scores == pytest.approx([0.005, -0.09, -0.01, 0.1, 0.005], abs=1e-6)
    scores = _checker_of([0.2, 0.2, 0.1, 0.1, 0.1], [0.195, 0.1, 0.09, 0.1004, 0.095], concepts=2)
    assert scores == pytest.approx([-0.005, -0.1, -0.01, 0.0004, -0.005], abs=1e-6)  # 0.0004 is rounded to no hit
    scores = _checker_of([0.2, 0.2, 0.1, 0.1, 0.1], [0.195, 0.1, 0.09, 0.1006, 0.095], concepts=2)
    assert scores == pytest.approx([0.005, -0.09, -0.01, 0.0006, 0.005], abs=1e-6)
    assert ADJUSTMENT == 0.01


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_lowering_by_half_a_step_decides_as_rounding_does_ties_included(kind: type[Any]) -> None:
    step = kind(HALF_STEP)
    values = [step, np.nextafter(step, kind(0)), np.nextafter(step, kind(1)), kind(0), kind(0.0015), kind(-0.0005)]
    for value in values:
        assert (value - step > 0) == (np.round(value, 3) > 0)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "column", "percent"), [("laion_nsfw_vit_b32.published", 0, 3.8), ("q16_vit_b32.prompts", 1, 3.2)]
)
def test_share_of_real_photos_that_is_flagged(shared: Path, name: str, column: int, percent: float) -> None:
    """Reference figures on 999 photos with published CLIP ViT-B/32 embeddings, all of them benign."""
    with np.load(shared / "flickr8k_small" / "clip_vit_b32_embeddings.npz") as stored:
        embeddings = stored["image_embed"]
    card = model_card(name)
    logits = torch.from_numpy(_logits(_head(card, _read(shared, name)), embeddings))
    scores = logits.sigmoid() if card.score == "sigmoid" else logits.softmax(dim=1)
    assert embeddings.shape == (999, 512)
    assert round(100 * float((scores[:, column] > 0.5).double().mean()), 1) == percent


@pytest.mark.parametrize("name", TEST_HEADS)
def test_the_length_of_the_embedding_matters_where_upstream_does_not_normalise(name: str) -> None:
    torch.manual_seed(0)
    card = model_card(name)
    head = HEADS[card.hparams["head"]](card).eval()
    x = _embeddings(card.hparams["embedding_dim"], 8)
    difference = np.abs(_logits(head, x) - _logits(head, 5 * x)).max()
    assert difference > 0.1 if name.startswith("test_multihead") else difference < 1e-4


@pytest.mark.parametrize("name", TEST_HEADS)
def test_every_pixel_has_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name)
    pixels = torch.rand(2, 3, model.image_size, model.image_size, requires_grad=True)
    model(pixels).sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad != 0).float().mean() > 0.99


def test_the_tower_is_read_as_clip_reads_it() -> None:
    """The last layer, the final LayerNorm, the projection: and the head sees that embedding as it is."""
    torch.manual_seed(0)
    model = create_model("test_multihead.random")
    tower = model.get_submodule("image_tower")
    with torch.inference_mode():
        pixels = torch.rand(2, 3, 32, 32)
        output = tower.get_submodule("vision_model")(tower.get_submodule("normalise")(pixels))
        embedding = tower.get_submodule("visual_projection")(output.pooler_output)
        assert torch.equal(model(pixels), model.get_submodule("head")(embedding))
    assert embedding.shape == (2, 16)
    assert model.tokenizer_json is None


def test_what_no_head_can_be_built_from_is_refused() -> None:
    with pytest.raises(BadInputError, match='no head is named "q15"; did you mean "q16"'):
        create_model("test_q16.random", head="q15")
    with pytest.raises(BadInputError, match=r"labels must be concept_\.\.\. and then special_care_"):
        create_model("test_safety_checker.random", labels=["special_care_0", "concept_0"])


def test_the_safety_checkers_tensors_are_its_definition_and_not_trained() -> None:
    head = SafetyChecker(model_card("test_safety_checker.random"))
    assert list(head.parameters()) == []
    assert len(head.state_dict()) == 4
