"""A locked tower's cached features are the tower's own, and training leaves it as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.trainers import quiet_trainer
from zoo.errors import BadArgumentError, BadDataError, BadInputError
from zoo.inputs.text import train_tokenizer
from zoo.models.conv_clip import ConvImageTower, Projection
from zoo.registry import build, default_policy, model_card, model_entry
from zoo.release.store import write_release
from zoo.training import Contrastive, ManifestData, contrastive

NAME, LITE = "test_clip_resnet.random", "test_clip_efficientnet.random"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return drawn(tmp_path, seed=0)


def drawn(tmp_path: Path, seed: int) -> Path:
    """The manifest of 24 pictures of noise in a folder."""
    rng = np.random.default_rng(seed)
    lines = ["image,text,split"]
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,picture number {number},{'train' if number < 16 else 'val'}")
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("mirror", [False, True])
def test_a_locked_backbone_is_not_trained_and_its_features_are_its_own(
    manifest: Path, tmp_path: Path, mirror: bool
) -> None:
    module = Contrastive(NAME, model_args={"mirror": mirror}, locked_views=2)
    tower = module.model.image_tower
    assert isinstance(tower, ConvImageTower)
    assert isinstance(tower.projection, Projection)
    assert module.locked is not None
    before = {key: value.clone() for key, value in tower.backbone.state_dict().items()}
    projection = tower.projection.linear.weight.detach().clone()
    data = ManifestData(str(manifest), batch_size=8)
    trainer = quiet_trainer(2, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=data)
    after = tower.backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not torch.equal(projection, tower.projection.linear.weight)
    module.eval()
    row = data.by_split["train"][0]
    assert row.image is not None
    number = torch.tensor([data.images.number[row.image]])
    pixels = torch.from_numpy(data.images.get(row.image)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        # min_crop is 1 and flip is off, so that every view is the whole image; it is never mirrored.
        known = torch.allclose(module.locked.embed_known(number), module.model.encode_image(pixels), atol=1e-5)
        assert known is not mirror
        other = pixels.flip(2)
        found = module.locked.embed(torch.cat([pixels, other]), [-1, -2])
        assert torch.allclose(found, module.model.encode_image(torch.cat([pixels, other])), atol=1e-5)
        again = module.locked.embed(torch.zeros_like(pixels).expand(3, -1, -1, -1), [-2, -1, -2])
        assert torch.equal(again, found[[1, 0, 1]]), "features are computed once"
    (tmp_path / "other").mkdir()
    other_data = ManifestData(str(drawn(tmp_path / "other", seed=1)), batch_size=8)
    before_other = dict(module.locked.seen)
    trainer.validate(module, datamodule=other_data, verbose=False)
    both = module.locked.seen.keys() & before_other.keys()
    assert both
    assert not any(torch.equal(module.locked.seen[number], before_other[number]) for number in both)


def test_texts_are_embedded_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Contrastive("test_clip_resnet.random").eval()
    module.model.tokenizer_json = train_tokenizer(["a dog", "two dogs run"], 300)
    module._codec = module.model.codec()
    texts = ["two dogs run and run and run", "a", "a dog", "two", "dogs run"]
    with torch.no_grad():
        wanted = module.model.encode_text(*module.tokens(texts))
        monkeypatch.setattr(contrastive, "PART", 2)
        assert torch.allclose(module._embed_texts(texts), wanted, atol=1e-5)
    assert (wanted[0] - wanted[2]).abs().max() > 1e-3, "the texts do not tell"


def test_an_image_tower_begins_from_a_classifier(tmp_path: Path) -> None:
    name = "efficientnet_lite0.imagenet"
    sizes = {size: model_card(LITE).hparams[size] for size in ("stem", "stages", "features")}

    def release(folder: str, **other: object) -> str:
        classifier = build(model_card(name, **sizes | other))
        write_release(classifier, default_policy(model_entry(name)).single(), tmp_path / folder)
        return str(tmp_path / folder)

    model = Contrastive(LITE, image_weights=release("same"), locked_views=1).model
    tower = model.image_tower
    assert isinstance(tower, ConvImageTower)
    stored = load_file(tmp_path / "same" / "model.safetensors")
    for key, value in tower.backbone.state_dict().items():
        assert torch.equal(value, stored[f"backbone.{key}"])
    assert "image tower: efficientnet_lite0.imagenet of https://github.com/tensorflow/tpu" in model.card.source
    with pytest.raises(BadDataError, match=r"has no image tower like that of test_clip_efficientnet\.random"):
        Contrastive(LITE, image_weights=release("wider", features=24))
    with pytest.raises(BadArgumentError, match=r"test_clip_resnet\.random has no MobileNetV1 or EfficientNet-Lite"):
        Contrastive(NAME, image_weights=str(tmp_path / "same"))


def test_only_convolutional_towers_can_be_locked() -> None:
    with pytest.raises(BadInputError, match="can be locked"):
        Contrastive("test_safeclip.random", locked_views=1)
