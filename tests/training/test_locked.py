"""A locked tower's cached features are the tower's own, and training leaves it as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainers import quiet_trainer
from zoo.errors import BadInputError
from zoo.models.conv_clip import ConvImageTower, Projection
from zoo.training import Contrastive, ManifestData

NAME = "test_clip_resnet.random"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
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
        assert torch.allclose(module.locked.embed(pixels), module.model.encode_image(pixels), atol=1e-5)


def test_only_convolutional_towers_can_be_locked() -> None:
    with pytest.raises(BadInputError, match="can be locked"):
        Contrastive("test_safeclip.random", locked_views=1)
