"""ManifestData inside a real Trainer: what is set aside, what stands in a batch, what is refused; and random views."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from tests.trainers import quiet_trainer
from zoo.errors import BadInputError
from zoo.training import Classification, Contrastive, ManifestData
from zoo.training.data import Batch, RandomView

FUSION, CLIP = "test_multimodal_nsfw.fusion", "test_safeclip.random"


class Record(Callback):
    """Keeps every batch, by stage, as the module got it."""

    def __init__(self) -> None:
        self.train: list[list[Batch]] = []
        self.val: list[Batch] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.train.append([])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.train[-1].append(batch)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self.val.append(batch)


def _image(path: Path) -> str:
    """A picture unlike the others, its noise seeded by its name."""
    rng = np.random.default_rng(sum(path.name.encode()))
    Image.fromarray(rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)).save(path)
    return path.name


def _manifest(folder: Path, rows: list[dict[str, str]]) -> str:
    path = folder / "manifest.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["image", "text", "label", "split"])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def _pairs(folder: Path, count: int, split: str) -> list[dict[str, str]]:
    labels = ("unsafe", "safe")
    return [
        {"image": _image(folder / f"{split}{n}.png"), "text": f"{split} {n}", "label": labels[n % 2], "split": split}
        for n in range(count)
    ]


def _trainer(folder: Path, epochs: int = 1, **options: Any) -> tuple[lightning.Trainer, Record]:
    record = Record()
    trainer = quiet_trainer(epochs, callbacks=[record], default_root_dir=folder, num_sanity_val_steps=0, **options)
    return trainer, record


def _lines(batches: list[Batch]) -> list[int]:
    return sorted(line for batch in batches for line in batch["lines"])


def test_unreadable_rows_are_counted_listed_and_in_no_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*_pairs(tmp_path, 6, "train"), *_pairs(tmp_path, 4, "val")]
    (tmp_path / "broken.png").write_bytes((tmp_path / "train0.png").read_bytes()[:200])
    bad = [{"image": "broken.png", "text": "x"}, {"image": "none.png", "text": "x"}, {"text": "y" * 100_001}, {}]
    rows = rows[:2] + [{"label": "safe", "split": "train", **row} for row in bad] + rows[2:]
    data = ManifestData(_manifest(tmp_path, rows), batch_size=2)
    trainer, record = _trainer(tmp_path)
    with caplog.at_level(logging.WARNING, "zoo.data"):
        trainer.fit(Classification(FUSION), data)
    assert "4 of 14 rows are unreadable" in caplog.text
    with (tmp_path / "unreadable.csv").open(encoding="utf-8", newline="") as stream:
        listed = {int(row["line"]): (row["image"], row["reason"]) for row in csv.DictReader(stream)}
    assert listed.keys() == {4, 5, 6, 7}
    assert listed[4][0] == str(tmp_path / "broken.png")
    for line, reason in {4: "broken", 5: "no such file", 6: "100,001", 7: "neither image nor text"}.items():
        assert reason in listed[line][1]
    assert _lines(record.train[0]) == [2, 3, 8, 9, 10, 11]
    assert _lines(record.val) == [12, 13, 14, 15]


def test_a_manifest_without_one_readable_row_is_refused(tmp_path: Path) -> None:
    data = ManifestData(_manifest(tmp_path, [{"image": "none.png", "label": "safe", "split": "train"}]))
    with pytest.raises(BadInputError, match=r"no row is readable; first: .*none\.png"):
        _trainer(tmp_path)[0].fit(Classification(FUSION), data)


@pytest.mark.parametrize("cached", [True, False])
def test_one_caption_per_image_an_epoch(tmp_path: Path, cached: bool) -> None:
    pictures = [_image(tmp_path / f"{number}.png") for number in range(6)]
    rows = [{"image": p, "text": f"{p} {n}", "split": "train"} for p in pictures for n in range(5)]
    rows += _pairs(tmp_path, 3, "val")
    data = ManifestData(
        _manifest(tmp_path, rows), batch_size=3, one_caption_per_image=True, max_cache_gb=4.0 if cached else 0.0
    )
    trainer, record = _trainer(tmp_path, epochs=4)
    trainer.fit(Contrastive(CLIP, positive_label="unsafe"), data)
    for epoch in record.train:
        groups = torch.cat([batch["group"] for batch in epoch]).tolist()
        assert len(groups) == len(set(groups)) == 6
        for batch in epoch:
            for text, pixels in zip(batch["texts"], batch["pixels"], strict=True):
                wanted = data.images.get(tmp_path / str(text).split()[0])
                assert np.array_equal((pixels * 255).round().byte().permute(1, 2, 0).numpy(), wanted)
    assert len({line for epoch in record.train for line in _lines(epoch)}) > 6  # drawn anew each epoch


def test_one_caption_per_image_leaves_rows_without_image_alone(tmp_path: Path) -> None:
    rows = [{"text": f"prompt {n}", "label": "safe", "split": "train"} for n in range(6)]
    rows += _pairs(tmp_path, 2, "train") + _pairs(tmp_path, 2, "val")
    trainer, record = _trainer(tmp_path)
    trainer.fit(
        Classification(FUSION), ManifestData(_manifest(tmp_path, rows), batch_size=4, one_caption_per_image=True)
    )
    assert _lines(record.train[0]) == [2, 3, 4, 5, 6, 7, 8, 9]


def _prompts(count: int, split: str) -> list[dict[str, str]]:
    return [{"text": f"{split} {n}", "label": ("unsafe", "safe")[n % 2], "split": split} for n in range(count)]


def test_a_fusion_model_trains_on_texts_alone(tmp_path: Path) -> None:
    data = ManifestData(_manifest(tmp_path, _prompts(8, "train") + _prompts(4, "val")), batch_size=4)
    trainer, record = _trainer(tmp_path)
    module = Classification(FUSION)
    trainer.fit(module, data)
    assert all("pixels" not in batch and None not in batch["texts"] for batch in record.train[0])
    assert module.model.tokenizer_json is not None
    assert "train" in module.model.tokenizer_json  # merged from the training texts
    assert torch.isfinite(trainer.callback_metrics["val/loss"])


def test_a_fusion_model_trains_with_either_input_missing(tmp_path: Path) -> None:
    rows = _pairs(tmp_path, 12, "train") + _pairs(tmp_path, 6, "val")
    for number, row in enumerate(rows):
        if number % 3 < 2:
            row[("image", "text")[number % 3]] = ""
    data = ManifestData(_manifest(tmp_path, rows), batch_size=6)
    trainer, record = _trainer(tmp_path)
    module = Classification(FUSION, image_dropout=0.2, text_dropout=0.2)
    trainer.fit(module, data)
    pictured, written = Counter[bool](), Counter[bool]()
    for batch in record.train[0]:
        pictured.update(batch["image_present"].tolist())
        written.update(text is not None for text in batch["texts"])
        assert batch["pixels"][~batch["image_present"]].abs().sum() == 0
    assert pictured == written == {True: 8, False: 4}
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize("missing", ["image", "text"])
def test_a_model_that_needs_both_says_so(tmp_path: Path, missing: str) -> None:
    rows = _pairs(tmp_path, 4, "train") + _pairs(tmp_path, 2, "val")
    rows[1][missing] = ""
    with pytest.raises(BadInputError, match=f"as_released needs an? {missing} in every row"):
        _trainer(tmp_path)[0].fit(
            Classification("test_multimodal_nsfw.as_released"), ManifestData(_manifest(tmp_path, rows), batch_size=4)
        )


def test_too_few_rows_for_one_batch_are_refused(tmp_path: Path) -> None:
    data = ManifestData(_manifest(tmp_path, _prompts(5, "train") + _prompts(2, "val")), batch_size=6)
    with pytest.raises(BadInputError, match="5 training items do not fill a batch of 6"):
        _trainer(tmp_path)[0].fit(Classification(FUSION), data)


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    data = ManifestData(_manifest(tmp_path, _prompts(6, "train")), batch_size=2)
    with pytest.raises(BadInputError, match=r'manifest\.csv: no rows for the split "val"'):
        _trainer(tmp_path)[0].fit(Classification(FUSION), data)


def test_a_batch_of_one_is_refused_in_training_alone(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="batch_size must be at least 2 in training, got 1"):
        ManifestData("manifest.csv", batch_size=1).setup("fit")
    data = ManifestData(_manifest(tmp_path, _prompts(4, "train") + _prompts(3, "val")), batch_size=4)
    module = Classification(FUSION)
    _trainer(tmp_path)[0].fit(module, data)
    every = [
        _trainer(tmp_path)[0].validate(module, ManifestData(data.manifest, batch_size=size), verbose=False)[0]
        for size in (1, 3)
    ]
    assert every[0] == pytest.approx(every[1], abs=1e-6)


def test_batches_may_be_overfitted(tmp_path: Path) -> None:
    """Lightning then orders the rows itself."""
    data = ManifestData(_manifest(tmp_path, _prompts(12, "train") + _prompts(4, "val")), batch_size=4)
    trainer, record = _trainer(tmp_path, overfit_batches=2)
    trainer.fit(Classification(FUSION), data)
    assert [batch["lines"] for batch in record.train[0]] == [[2, 3, 4, 5], [6, 7, 8, 9]]


def test_training_views_are_random_and_validation_sees_the_image(tmp_path: Path) -> None:
    rows = _pairs(tmp_path, 4, "train") + _pairs(tmp_path, 4, "val")
    data = ManifestData(_manifest(tmp_path, rows), batch_size=4, min_crop=0.3)
    trainer, record = _trainer(tmp_path)
    trainer.fit(Classification(FUSION), data)
    for batch, same in ((record.train[0][0], False), (record.val[0], True)):
        names = [tmp_path / rows[line - 2]["image"] for line in batch["lines"]]
        plain = torch.stack([torch.from_numpy(data.images.get(name)).permute(2, 0, 1) / 255 for name in names])
        assert torch.allclose(batch["pixels"], plain, atol=1e-6) is same


def test_a_view_that_is_off_is_the_identity() -> None:
    pixels = torch.rand(4, 3, 16, 16)
    assert RandomView()(pixels) is pixels


@pytest.mark.parametrize(("flip", "min_crop"), [(True, 1.0), (False, 0.2), (True, 0.2)])
def test_a_view_keeps_shape_and_range(flip: bool, min_crop: float) -> None:
    torch.manual_seed(0)
    pixels = torch.rand(16, 3, 24, 24)
    seen = RandomView(flip=flip, min_crop=min_crop)(pixels)
    assert seen.shape == pixels.shape
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert not torch.equal(seen, pixels)


def test_a_flip_mirrors_whole_images_and_only_some() -> None:
    torch.manual_seed(0)
    pixels = torch.rand(32, 3, 8, 8)
    seen = RandomView(flip=True)(pixels)
    mirrored = (seen == pixels.flip(3)).flatten(1).all(dim=1)
    kept = (seen == pixels).flatten(1).all(dim=1)
    assert (mirrored ^ kept).all()
    assert 0 < int(mirrored.sum()) < 32


@pytest.mark.parametrize("min_crop", [0.0, 1.5])
def test_a_crop_that_is_no_share_is_refused(min_crop: float) -> None:
    with pytest.raises(BadInputError, match=rf"share of the area in \(0, 1\], got {min_crop}"):
        RandomView(min_crop=min_crop)
