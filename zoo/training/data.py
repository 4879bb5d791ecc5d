"""A DataModule over a manifest and an image folder: decoded once, kept in memory, augmented on the device."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset

from zoo.contract.card import ImageInput, ModelCard, SplitRule
from zoo.data.manifest import Row, Split, read_manifest
from zoo.data.splits import fingerprints, groups_of
from zoo.errors import BadArgumentError, BadDataError, BadInputError
from zoo.inputs.image import Decoded, fit, load
from zoo.inputs.text import clean
from zoo.training.order import Draw, EpochOrder, SplitData, drawn_item, loader, shuffled

log = logging.getLogger("zoo.data")


class Batch(TypedDict, total=False):
    """One batch. `pixels` is there when the rows have images, `texts` when they have texts.

    `pixels` float32 `[B, 3, S, S]` in [0, 1], `image_present` bool `[B]`; `texts` None where missing; `labels` the
    label names of each row, `judged` those that were looked for in it (None: all of them); `lines` manifest lines;
    `group` int64 `[B]`: rows of one number show one image. A batch to predict has `images`, the paths, in place of
    `pixels`: the policy says what is shown of them.
    """

    pixels: Tensor
    image_present: Tensor
    texts: list[str | None]
    labels: list[tuple[str, ...]]
    judged: list[tuple[str, ...] | None]
    lines: list[int]
    group: Tensor
    images: list[Path | None]


class ManifestData(SplitData[Row]):
    """Examples from a manifest (see `read_manifest`), split once and for all, unreadable rows set aside.

    Args:
        manifest: CSV or Parquet file.
        image_root: folder that image paths are relative to; the manifest's own when None.
        columns: renames columns, `{text: caption}`.
        batch_size: rows (or images, see below) in a batch.
        one_caption_per_image: train on each image once an epoch, with one of its captions drawn at random, so
            that no other caption of the same image is a negative in the batch.
        splits: shares of train, val and test, for rows without a split in the manifest.
        split_seed: seeds the hash that assigns them.
        flip: mirror a half of the training images. Not for captions that say left or right.
        min_crop: smallest share of the area in (0, 1] that a random crop of a training image keeps.
        by_length: train on batches of texts of similar length, which need little padding (see `similar_lengths`).
        num_workers: processes that assemble batches; 0 suffices while the images fit in memory.
        max_cache_gb: decoded images are kept up to this size; beyond it they are decoded in each epoch.
        mix: further manifests, whose train rows are added to the training split alone, such as adversarial examples
            stored by `zoo evaluate robustness --save`. Rows that look like one of val or test are left out.
    """

    def __init__(
        self,
        manifest: str,
        *,
        image_root: str | None = None,
        columns: dict[str, str] | None = None,
        batch_size: int = 128,
        one_caption_per_image: bool = False,
        splits: tuple[float, float, float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        flip: bool = False,
        min_crop: float = 1.0,
        by_length: bool = False,
        num_workers: int = 0,
        max_cache_gb: float = 4.0,
        mix: list[str] | None = None,
    ) -> None:
        super().__init__(manifest, image_root, batch_size, splits, split_seed)
        self.save_hyperparameters()
        if batch_size < 1:
            raise BadArgumentError(f"batch_size must be at least 1, got {batch_size}")
        self.columns, self.one_caption_per_image, self.by_length = columns, one_caption_per_image, by_length
        self.num_workers, self.max_cache_gb, self.mix = num_workers, max_cache_gb, mix or []
        self.view = RandomView(flip=flip, min_crop=min_crop)
        #: False once a locked tower has computed its features: then training needs no pixels.
        self.pixels_in_training = True
        self.rows: list[Row] = []
        #: Whether `setup` decoded the images: to predict it need not.
        self.images_read = False

    def setup(self, stage: str | None = None) -> None:
        """Read the manifest, decode every image once, set aside what cannot be read, assign the splits.

        To predict, no image is decoded where the manifest names the split of all rows: the policy says what is shown of
        those that are predicted, so they are decoded then, and one that cannot be read has a verdict that says so.
        """
        if stage == "fit" and self.batch_size < 2:
            raise BadArgumentError("batch_size must be at least 2 in training, got 1")
        predicting = stage == "predict"
        if self.rows and (self.images_read or predicting):
            return
        self.unreadable = []
        rows = read_manifest(Path(self.manifest), self.image_root, self.columns)
        mixed = [row for path in self.mix for row in _train_rows(Path(path))] if not predicting else []
        if self.trainer is None:
            raise BadArgumentError("ManifestData takes the image size from the model: use it with a Trainer")
        model: Any = self.trainer.lightning_module.model
        spec: ImageInput | None = model.card.image
        # Where the manifest names the split of all rows, nothing is compared.
        compare = bool(mixed) or any(row.split is None for row in rows)
        self.images_read = compare or not predicting
        paths = sorted({row.image for row in [*rows, *mixed] if row.image and spec and self.images_read})
        self.images = ImageStore(paths, spec, self.max_cache_gb, compare=compare)
        total = len(rows) + len(mixed)
        readable, mixed = ([row for row in part if self._readable(row)] for part in (rows, mixed))
        self.unread = {row.split for row in rows if row.split} - {row.split for row in readable}
        self.report_unreadable(total)
        self.rows = readable
        self.divide(readable, readable, self.images.prints)
        if mixed:
            self.by_split["train"] += self._without_leaks(mixed)

    @property
    def split_rule(self) -> SplitRule | None:
        """The rule by which `setup` assigned rows without a split, None if the manifest names the split of all."""
        drawn = any(row.split is None for row in self.rows)
        return SplitRule(seed=self.split_seed, shares=self.fractions) if drawn else None

    def train_texts(self) -> list[str]:
        """The texts of the training split, to train a tokenizer on."""
        return [row.text for row in self.by_split["train"] if row.text]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of the training split; the last, smaller one is left out."""
        rows = self.items("train")
        items = [[row] for row in rows]
        if self.one_caption_per_image:
            by_image: dict[Path | int, list[Row]] = defaultdict(list)
            for row in rows:
                by_image[row.image or row.line].append(row)
            items = list(by_image.values())
        draw: Draw | None = None
        if self.by_length:
            world = self.trainer.world_size if self.trainer else 1
            lengths = [max(len(row.text or "") for row in item) for item in items]
            draw = partial(similar_lengths, lengths, self.batch_size * world)
        return self._loader(items, self.training_order(len(items), draw))

    def evaluation_dataloader(self, split: Split) -> DataLoader[Batch]:
        """A split in order, every row."""
        items = [[row] for row in self.items(split)]
        return self._loader(items, EpochOrder(len(items), self.trainer, self.batch_size))

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The rows of `test_dataloader`, with the paths of their images."""
        items = [[row] for row in self.items(self.tested)]
        order = EpochOrder(len(items), self.trainer, self.batch_size)
        return loader(_Rows(items, self.images), order, _listed, self.num_workers)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Make pixels of the bytes on the device, and in training a random view of them."""
        image = batch.pop("image", None)  # type: ignore[typeddict-item]
        training = self.trainer is not None and self.trainer.training
        if image is not None and (self.pixels_in_training or not training):
            pixels = image.permute(0, 3, 1, 2).float().div_(255.0)
            batch["pixels"] = self.view(pixels) if training else pixels
        return batch

    def _without_leaks(self, mixed: list[Row]) -> list[Row]:
        """The mixed rows that resemble no row of val or test; the log says how many were left out."""
        held_out = [*self.by_split["val"], *self.by_split["test"]]
        groups = groups_of([*held_out, *mixed], self.images.prints)
        taken = set(groups[: len(held_out)])
        kept = [row for row, group in zip(mixed, groups[len(held_out) :], strict=True) if group not in taken]
        if len(kept) < len(mixed):
            log.warning("mix: %d of %d rows look like one of val or test; left out", len(mixed) - len(kept), len(mixed))
        return kept

    def _readable(self, row: Row) -> bool:
        reason = self.images.refused.get(row.image, "") if row.image else ""
        if not reason and row.image is None and row.text is None:
            reason = "the row has neither image nor text"
        if not reason and row.text is not None:
            try:
                clean(row.text)
            except BadInputError as problem:
                reason = str(problem)
        if reason:
            self.unreadable.append((row.line, str(row.image or ""), reason))
        return not reason

    def _loader(self, items: list[list[Row]], order: EpochOrder) -> DataLoader[Batch]:
        examples = _Rows(items, self.images)
        return loader(examples, order, examples.collate, self.num_workers)


def _train_rows(manifest: Path) -> list[Row]:
    """The rows of a manifest whose split is train. Raises BadInputError if there is no such row."""
    rows = [row for row in read_manifest(manifest) if row.split == "train"]
    if not rows:
        raise BadDataError(f'{manifest}: mix adds rows whose split is "train", but no row has it')
    return rows


class ImageStore:
    """Images by path, fitted to the model's size; decoded once, kept as uint8 while they fit in memory."""

    def __init__(self, paths: list[Path], spec: ImageInput | None, max_gigabytes: float, *, compare: bool) -> None:
        self.spec = spec
        self.number = {path: number for number, path in enumerate(paths)}
        self.pixels: NDArray[np.uint8] | None = None
        if spec is not None and len(paths) * 3 * spec.size**2 <= max_gigabytes * 1e9:
            self.pixels = np.empty((len(paths), spec.size, spec.size, 3), dtype=np.uint8)
        self.prints, self.refused = fingerprints(paths, spec, self._keep, compare=compare)

    def get(self, path: Path | None) -> NDArray[np.uint8]:
        """The fitted pixels `[S, S, 3]` of a readable image, or black ones for None."""
        assert self.spec is not None  # only a model that reads images has an image asked for
        if path is None:
            return np.zeros((self.spec.size, self.spec.size, 3), np.uint8)
        if self.pixels is not None:
            kept: NDArray[np.uint8] = self.pixels[self.number[path]]
            return kept
        return load(path, self.spec)

    def _keep(self, path: Path, image: Decoded) -> None:
        if self.pixels is not None and self.spec is not None:
            self.pixels[self.number[path]] = fit(image, self.spec)


class _Rows(Dataset[Row]):
    """Items of one or more rows; one of several is drawn each time."""

    def __init__(self, items: list[list[Row]], images: ImageStore) -> None:
        self.items, self.images = items, images

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, drawn: tuple[int, int] | int) -> Row:
        index, number = drawn_item(drawn)
        choices = self.items[index]
        return choices[number % len(choices)]

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """A batch of rows; its images are `image`, uint8 `[B, S, S, 3]`."""
        batch = _described(rows)
        if number := self.images.number:
            batch["image"] = torch.from_numpy(np.stack([self.images.get(row.image) for row in rows]))
            batch["image_present"] = torch.tensor([row.image is not None for row in rows])
            batch["group"] = torch.tensor([number[row.image] if row.image else -row.line for row in rows])
        return batch


def _listed(rows: list[Row]) -> dict[str, Any]:
    """A batch of rows with the paths of their images, of which nothing is read."""
    return _described(rows) | {"images": [row.image for row in rows]}


def _described(rows: list[Row]) -> dict[str, Any]:
    batch: dict[str, Any] = {"labels": [row.labels for row in rows], "lines": [row.line for row in rows]}
    batch["judged"] = [row.judged for row in rows]
    if any(row.text for row in rows):
        batch["texts"] = [row.text for row in rows]
    return batch


def need_inputs(card: ModelCard, images: Tensor, texts: Tensor) -> None:
    """Raise BadDataError where a row lacks an input that the model requires; bool `[B]`: which rows have one."""
    for kind, what, there in (("image", "an image", images), ("text", "a text", texts)):
        if kind in card.requires and not there.all():
            raise BadDataError(f"{card.name} needs {what} in every row of the manifest")


class RandomView(nn.Module):
    """`[B, 3, S, S]` to the same shape: a random crop of at least `min_crop` of the area, and a mirror image.

    Each image gets its own crop; the crop keeps the aspect ratio within 3:4 and 4:3. With `min_crop` 1 and no
    `flip` the batch is returned unchanged.
    """

    def __init__(self, *, flip: bool = False, min_crop: float = 1.0) -> None:
        super().__init__()
        if not 0 < min_crop <= 1:
            raise BadArgumentError(f"min_crop is a share of the area in (0, 1], got {min_crop}")
        self.flip, self.min_crop = flip, min_crop

    def forward(self, pixels: Tensor) -> Tensor:
        """Draw one view of each image."""
        if self.min_crop == 1 and not self.flip:
            return pixels
        count, device = len(pixels), pixels.device
        if self.min_crop == 1:
            mirrored = torch.rand(count, device=device) < 0.5
            return torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        area = torch.empty(count, device=device).uniform_(self.min_crop, 1.0)
        ratio = torch.empty(count, device=device).uniform_(-0.2877, 0.2877).exp()  # log(4 / 3)
        width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
        left, top = (torch.rand(count, device=device) * 2 - 1 for _ in range(2))
        sign = torch.ones(count, device=device)
        if self.flip:
            sign = torch.where(torch.rand(count, device=device) < 0.5, -sign, sign)
        theta = torch.zeros(count, 2, 3, device=device)
        theta[:, 0, 0], theta[:, 1, 1] = width * sign, height
        theta[:, 0, 2], theta[:, 1, 2] = left * (1 - width), top * (1 - height)
        grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def similar_lengths(lengths: Sequence[int], batch_size: int, generator: Generator, pool: int = 50) -> list[int]:
    """An order of items, each once, in which each run of `batch_size` has similar lengths.

    Items are shuffled, sorted by length within pools of `pool` batches, and the batches shuffled again, so batches
    change with every epoch. The batch that the items do not fill comes last.
    """
    order: list[int] = shuffled(len(lengths), generator)
    whole = len(order) - len(order) % batch_size
    size = pool * batch_size
    batches: list[list[int]] = []
    for start in range(0, whole, size):
        part = sorted(order[start : min(start + size, whole)], key=lambda index: lengths[index])
        batches += [part[first : first + batch_size] for first in range(0, len(part), batch_size)]
    return [index for number in shuffled(len(batches), generator) for index in batches[number]] + order[whole:]
