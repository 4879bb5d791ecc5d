"""Splits, which rows each process takes in each epoch, what a run is resumed with, and what all processes collected."""

from __future__ import annotations

import logging
import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import lightning
import numpy as np
import torch
import torch.distributed as dist
from torch import Generator
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from zoo.data.manifest import SPLITS, Row, Split, write_records
from zoo.data.splits import Fractions, assign_splits
from zoo.errors import BadDataError
from zoo.files.writing import told

log = logging.getLogger("zoo.data")

T = TypeVar("T")
#: Where a checkpoint keeps the states of the streams of random numbers, those of each process.
RANDOM_KEY = "safety_zoo_random"
#: The order of an epoch's items, drawn from a generator.
Draw = Callable[[Generator], Sequence[int]]


class EpochOrder(DistributedSampler[Any]):
    """Each item once, dealt out to the processes in turn: in order, or as `draw` orders them anew for each epoch.

    The drawn order is a function of seed and epoch alone, and the processes' k-th batches together hold the same items
    however many processes there are. After a checkpoint within an epoch it goes on with the first item that was not
    taken. Items come with a number to draw from: `(index, number)`.

    Lightning leaves a DistributedSampler in place. Unlike it, this one repeats no item to make the shares equal: drawn
    orders leave out the items that do not fill a turn, and in order the last processes take one item less.
    """

    def __init__(
        self, count: int, trainer: lightning.Trainer | None, batch_size: int, seed: int = 0, draw: Draw | None = None
    ) -> None:
        world, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        if draw is not None and count < batch_size * world:
            devices = f" on each of {world} devices" if world > 1 else ""
            raise BadDataError(f"{count} training items do not fill a batch of {batch_size}{devices}")
        if count < world:
            raise BadDataError(f"{count} rows for {world} devices: each needs at least one; use fewer devices")
        super().__init__(range(count), world, rank, shuffle=False, seed=seed)  # type: ignore[arg-type]
        self.count, self.trainer, self.batch_size, self.draw = count, trainer, batch_size, draw

    def __len__(self) -> int:
        if self.draw is not None:
            return self.count // self.num_replicas
        return len(range(self.rank, self.count, self.num_replicas))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        places = range(self.rank, self.count, self.num_replicas)[: len(self)]
        if self.draw is None:
            yield from ((place, 0) for place in places)
            return
        epoch, done = self._position()
        mixed = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)
        generator = Generator().manual_seed(int(mixed[0] >> np.uint64(1)))
        order = self.draw(generator)
        numbers = torch.randint(2**31, (self.count,), generator=generator).tolist()
        for place in places[done * self.batch_size :]:
            yield order[place], numbers[place]

    def _position(self) -> tuple[int, int]:
        """The epoch, and how many of its batches this run need not take again."""
        if self.trainer is None or not self.trainer.training:
            return self.epoch, 0
        loop = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.ready
        return self.trainer.current_epoch, done if done < len(self) // self.batch_size else 0


def drawn_item(drawn: tuple[int, int] | int) -> tuple[int, int]:
    """The place of an item and the number to draw from; Lightning's own orders (`overfit_batches`) have no number."""
    return drawn if isinstance(drawn, tuple) else (drawn, 0)


class SplitData(lightning.LightningDataModule, Generic[T]):
    """The base of the DataModules: items of a manifest in splits, and an order that a resumed run goes on with.

    `order_seed`, together with the epoch, seeds the order of training; `unreadable` has line, image and reason of each
    row that was set aside, `unread` the splits of which every row was.
    """

    def __init__(
        self, manifest: str, image_root: str | None, batch_size: int, fractions: Fractions, split_seed: int
    ) -> None:
        super().__init__()
        self.manifest, self.batch_size = manifest, batch_size
        self.image_root = Path(image_root) if image_root else None
        self.fractions, self.split_seed, self.order_seed = fractions, split_seed, 0
        self.by_split: dict[Split, list[T]] = {}
        self.unreadable: list[tuple[int, str, str]] = []
        self.unread: set[Split] = set()

    def divide(self, items: Sequence[T], rows: Sequence[Row], prints: Mapping[Path, bytes]) -> None:
        """Put each item into the split of its row, and seed the order by the seed of the first process."""
        splits = assign_splits(rows, prints, self.fractions, self.split_seed)
        self.by_split = {split: [] for split in SPLITS}
        for item, split in zip(items, splits, strict=True):
            self.by_split[split].append(item)
        seed = torch.initial_seed()
        self.order_seed = int(self.trainer.strategy.broadcast(seed)) if self.trainer else seed

    def report_unreadable(self, total: int) -> None:
        """List what was set aside in `unreadable.csv` in the log directory, if anything was.

        Raises BadInputError when none of the `total` rows is left.
        """
        if not self.unreadable:
            return
        # log_dir is asked of all processes at once
        path = Path((self.trainer and self.trainer.log_dir) or ".") / "unreadable.csv"
        if self.trainer is None or self.trainer.is_global_zero:
            write_records(path, ("line", "image", "reason"), self.unreadable)
        count = len(self.unreadable)
        log.warning("%d of %d rows are unreadable and left out; they are listed in %s", count, total, told(path))
        if count == total:
            raise BadDataError(f"{self.manifest}: no row is readable; first: {self.unreadable[0]}")

    def items(self, split: Split) -> list[T]:
        """The items of a split. Raises BadDataError when there are none."""
        if not self.by_split[split]:
            what = "none of the rows is readable" if split in self.unread else "no rows"
            raise BadDataError(f'{self.manifest}: {what} for the split "{split}"')
        return self.by_split[split]

    def training_order(self, count: int, draw: Draw | None = None) -> EpochOrder:
        """A drawn order of the items of an epoch, shuffled by default. Raises BadDataError for less than a batch."""
        draw = draw or partial(shuffled, count)
        return EpochOrder(count, self.trainer, self.batch_size, self.order_seed, draw)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation split in order, every row."""
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """The test split in order, every row, or the validation split if the manifest has no test rows."""
        return self.evaluation_dataloader(self.tested)

    @property
    def tested(self) -> Split:
        """The split that is tested and predicted."""
        return "test" if self.by_split["test"] or "test" in self.unread else "val"

    @abstractmethod
    def evaluation_dataloader(self, split: Split) -> DataLoader[Any]:
        """The items of a split to evaluate on."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs for the same order."""
        return {"order_seed": self.order_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the order of the run that is resumed."""
        self.order_seed = int(state_dict["order_seed"])


class _Unhurried(DataLoader[Any]):
    """Draws nothing before a batch is wanted: Lightning lets workers begin before it knows where a run goes on."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


def loader(
    dataset: Dataset[T], order: EpochOrder, collate: Callable[[list[T]], Any], num_workers: int = 0
) -> DataLoader[Any]:
    """Batches of a dataset that is indexed by what `order` yields; a drawn order leaves out the last, smaller batch."""
    return _Unhurried(
        dataset,
        batch_size=order.batch_size,
        sampler=order,
        drop_last=order.draw is not None,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=collate,
        generator=Generator(),  # else each epoch would take a number from torch's own stream, a resumed one another
    )


def shuffled(count: int, generator: Generator) -> list[int]:
    """The numbers below `count` in a random order."""
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def processes() -> int:
    """How many processes train or evaluate together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(parts: Sequence[T]) -> list[T]:
    """What the processes have collected, of all of them, on all of them; tensors must be on the CPU."""
    if processes() == 1:
        return list(parts)
    every: list[Any] = [None] * processes()
    dist.all_gather_object(every, list(parts))
    return [one for part in every for one in part]


def random_states() -> dict[str, Any]:
    """The state of each stream of random numbers, in types that a checkpoint without pickle may hold."""
    name, keys, *rest = np.random.get_state()
    states = {"torch": torch.get_rng_state(), "numpy": [name, torch.tensor(keys), *rest], "python": random.getstate()}
    return states | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {})


def restore_random_states(states: dict[str, Any]) -> None:
    """Go on with the streams of `random_states`; with those of GPUs where there are as many as there were."""
    torch.set_rng_state(states["torch"].cpu())
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy(), *rest))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    if len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states.get("cuda", ())])
