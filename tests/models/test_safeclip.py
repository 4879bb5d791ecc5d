"""SafeCLIP by its definition, in a few lines of numpy after transformers' own towers, against the verdicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from zoo.contract.card import ModelCard
from zoo.contract.policy import Category, Policy, Threshold
from zoo.inputs.image import fit
from zoo.inputs.text import TextCodec
from zoo.judging.banks import policy_bank
from zoo.models.clip import ClipImageTower, DualEncoder, build_safeclip, clip_config
from zoo.registry import create_model, model_card
from zoo.release.store import load_scorer, model_scorer, write_release

CLIP = "test_safeclip.random"
WORDS = ("a red car", "two dogs", "an old house", "a boat on the sea", "people at a table", "a dark forest", "a cat")


def _towers(seed: int, **hparams: Any) -> tuple[DualEncoder, CLIPModel]:
    """One of ours, and a whole transformers CLIP with the same weights."""
    torch.manual_seed(seed)
    model = create_model(CLIP, **hparams)
    assert isinstance(model, DualEncoder)
    clip = CLIPModel(clip_config(model.card)).eval()
    for parameter in clip.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # fresh LayerNorms would hide a mistake about them
    theirs = clip.state_dict()
    ours = {key: theirs[key.removeprefix("image_tower.").removeprefix("text_tower.")] for key in model.state_dict()}
    model.load_state_dict(ours)
    return model.eval(), clip


def _method(
    clip: CLIPModel, card: ModelCard, codec: TextCodec, pixels: NDArray[np.uint8], policy: Policy
) -> NDArray[np.float64]:
    """Category scores `[B, C]` by the method's definition."""
    layer, post = card.hparams["layer"], card.hparams["post_layernorm"]
    assert card.image is not None
    normal = (pixels / 255.0 - np.array(card.image.mean)) / np.array(card.image.std)
    with torch.inference_mode():
        batch = torch.from_numpy(normal.astype(np.float32)).permute(0, 3, 1, 2)
        cls = clip.vision_model(batch, output_hidden_states=True).hidden_states[layer][:, 0]
        cls = clip.vision_model.post_layernorm(cls) if post else cls
        tokens = codec.encode([phrase for category in policy.categories for phrase in category.descriptors])
        text = clip.get_text_features(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)).pooler_output
    image = cls.numpy().astype(np.float64) @ clip.visual_projection.weight.detach().numpy().T
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    bank = text.numpy() / np.linalg.norm(text.numpy(), axis=1, keepdims=True)
    logits = clip.logit_scale.exp().item() * image @ bank.T / policy.temperature
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    ends = np.cumsum([len(category.descriptors) for category in policy.categories])[:-1]
    if policy.pooling == "logsumexp":
        means = [np.log(np.mean(np.exp(part), axis=1)) for part in np.split(logits, ends, axis=1)]
        by_category = np.exp(np.stack(means, axis=1))
        return np.asarray(by_category / by_category.sum(axis=1, keepdims=True))
    pool: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
        "sum": lambda part: part.sum(axis=1),
        "mean": lambda part: part.mean(axis=1),
        "max": lambda part: part.max(axis=1),
    }
    return np.stack([pool[policy.pooling](part) for part in np.split(p, ends, axis=1)], axis=1)


def _policy(counts: dict[str, int], neutral: tuple[str, ...], **fields: Any) -> Policy:
    words = iter(WORDS)
    categories = [
        Category(
            name,
            "allow" if name in neutral else "block",
            None if name in neutral else Threshold(0.3),
            tuple(next(words) for _ in range(count)),
        )
        for name, count in counts.items()
    ]
    return Policy("demo", "1", "", tuple(categories), **{"rule": "argmax", **fields})


POLICIES = {
    "as in the paper": _policy({"neutral": 2, "porn": 2, "gun": 2}, ("neutral",)),
    "unequal numbers of phrases": _policy({"neutral": 1, "porn": 4, "gun": 2}, ("neutral",)),
    "two neutral classes, last": _policy({"gun": 1, "people": 2, "things": 3}, ("people", "things")),
    "no neutral class": _policy({"gun": 3, "knife": 1}, ()),
    "mean": _policy({"neutral": 1, "gun": 4}, ("neutral",), pooling="mean"),
    "max": _policy({"neutral": 1, "gun": 4}, ("neutral",), pooling="max"),
    "logsumexp": _policy({"neutral": 1, "gun": 4, "knife": 2}, ("neutral",), pooling="logsumexp"),
    "warmer": _policy({"neutral": 2, "gun": 3}, ("neutral",), temperature=4.0),
    "colder, each by itself": _policy({"neutral": 2, "gun": 3}, ("neutral",), temperature=0.5, rule="each"),
}
READINGS = {
    "paper": (-2, False),
    "normed": (-2, True),
    "last": (-1, False),
    "as CLIP": (-1, True),
    "first": (-3, False),
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", POLICIES)
def test_the_scores_are_the_methods(name: str, reading: str) -> None:
    layer, post_layernorm = READINGS[reading]
    model, clip = _towers(7, layer=layer, post_layernorm=post_layernorm)
    policy = POLICIES[name]
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    expected = _method(clip, model.card, model.codec(), images, policy)
    with model_scorer(model, policy) as scorer:
        verdicts = scorer.verdicts(images)
    found = np.array([[verdict.scores[c.name] for c in policy.categories] for verdict in verdicts])
    assert np.abs(found - expected).max() < 1e-5
    for verdict, row in zip(verdicts, expected, strict=True):
        over = [c.name for c, score in zip(policy.categories, row, strict=True) if c.threshold and score > 0.3]
        if policy.rule == "argmax":
            over = [name for name in over if name == policy.categories[int(row.argmax())].name]
        assert verdict.decision == ("unsafe" if over else "safe")


@pytest.mark.slow
def test_the_same_on_a_tower_of_the_published_shape() -> None:
    """ViT-B/32's widths and heads, two layers deep."""
    card = model_card("safeclip_vit_b32.zeroshot", vision_layers=2, text_layers=1, vocabulary_size=300)
    card = card.replace(hparams={**card.hparams, "start_token": 0, "end_token": 1})
    torch.manual_seed(0)
    model = build_safeclip(card).eval()
    clip = CLIPModel(clip_config(card)).eval()
    theirs = clip.state_dict()
    model.load_state_dict(
        {key: theirs[key.removeprefix("image_tower.").removeprefix("text_tower.")] for key in model.state_dict()}
    )
    assert isinstance(model.image_tower, ClipImageTower)
    policy = POLICIES["as in the paper"]
    assert card.image is not None
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8))
    images = fit(photo, card.image)[None]
    with model_scorer(model, policy) as scorer:
        (verdict,) = scorer.verdicts(images)
    expected = _method(clip, card, model.codec(), images, policy)[0]
    assert np.abs(np.array([verdict.scores[c.name] for c in policy.categories]) - expected).max() < 1e-5


def test_more_phrases_gain_nothing_by_logsumexp() -> None:
    """A category whose phrases all score alike has the same score with one of them as with three."""
    from zoo.judging.judge import Judge

    def score(counts: dict[str, int], logits: list[float]) -> float:
        p = np.exp(logits) / np.exp(logits).sum()
        judge = Judge(model_card(CLIP), _policy(counts, ("neutral",), pooling="logsumexp"))
        return float(judge.category_scores(p[None])[0, 1])

    assert score({"neutral": 1, "gun": 1}, [1.0, 2.0]) == pytest.approx(score({"neutral": 1, "gun": 3}, [1.0, 2, 2, 2]))


def test_a_policy_is_embedded_once_per_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SAFETY_ZOO_CACHE", str(tmp_path / "cache"))
    embedded: list[tuple[str, ...]] = []
    real = DualEncoder.embed_phrases

    def counting(self: DualEncoder, words: tuple[str, ...]) -> Tensor:
        embedded.append(words)
        return real(self, words)

    monkeypatch.setattr(DualEncoder, "embed_phrases", counting)
    model, _ = _towers(1)
    policy = POLICIES["as in the paper"]
    write_release(model, policy, tmp_path / "release")
    image = np.zeros((32, 32, 3), dtype=np.uint8)

    def score(**changes: Any) -> dict[str, float]:
        changed = Policy.from_dict(policy.to_dict() | changes)
        with load_scorer(tmp_path / "release", changed) as scorer:
            return scorer.verdict(image).scores

    first = score()
    assert score() == first
    score(version="2", rule="each")
    warm = score(temperature=2.0)
    assert warm != first
    assert len(embedded) == 1  # neither another version, nor rule, nor temperature has other phrases
    (kept,) = (tmp_path / "cache" / "text_banks").iterdir()

    kept.write_bytes(kept.read_bytes()[:-7])  # a cache that was cut off costs time, not the answer
    assert score() == first
    assert len(embedded) == 2
    np.save(kept, np.ones((1, 16), dtype=np.float32))
    assert score() == first
    assert len(embedded) == 3
    assert "embedding" in caplog.text

    with torch.no_grad():
        model.text_tower.text_projection.weight.mul_(-1)  # type: ignore[union-attr, operator]
    with model_scorer(model, policy) as scorer:  # other weights in memory: another tower
        assert scorer.verdict(image).scores != first
    assert len(embedded) == 4


@pytest.mark.parametrize("place", [0, 8, 200, -20], ids=["magic", "header", "numbers", "digest"])
def test_a_bank_with_a_flipped_bit_is_made_again(place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_ZOO_CACHE", str(tmp_path))
    policy = POLICIES["as in the paper"]
    expected = np.eye(len(policy.phrases), 16, dtype=np.float32)
    made = []

    def embed(words: tuple[str, ...]) -> NDArray[np.float32]:
        made.append(words)
        return expected

    policy_bank(policy, embed, "encoder")
    (kept,) = (tmp_path / "text_banks").iterdir()
    content = bytearray(kept.read_bytes())
    content[place] ^= 4
    kept.write_bytes(content)
    np.testing.assert_array_equal(policy_bank(policy, embed, "encoder"), expected / policy.temperature)
    assert len(made) == 2
    np.testing.assert_array_equal(policy_bank(policy, embed, "encoder"), expected / policy.temperature)
    assert len(made) == 2
    (tmp_path / "text_banks" / "other").write_bytes(kept.read_bytes())
    policy_bank(policy, embed, "another encoder")
    (other,) = set((tmp_path / "text_banks").glob("*.npy")) - {kept}
    other.write_bytes(kept.read_bytes())  # a whole bank, but that of another encoder
    policy_bank(policy, embed, "another encoder")
    assert len(made) == 4


def test_without_a_home_folder_the_bank_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SAFETY_ZOO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with load_scorer(CLIP) as scorer:
        assert scorer.verdict(np.zeros((32, 32, 3), dtype=np.uint8)).status == "ok"


def test_without_a_place_to_keep_it_the_bank_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SAFETY_ZOO_CACHE", str(tmp_path / "file"))
    with load_scorer(CLIP) as scorer:
        assert scorer.verdict(np.zeros((32, 32, 3), dtype=np.uint8)).status == "ok"
