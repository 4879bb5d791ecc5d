"""From images and texts to verdicts, over any engine. The eager model and the exported bundle both run in here.

Nothing that cannot be judged is called safe, and one broken item never costs the others their answer. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.contract.card import ModelCard
from zoo.contract.verdict import Cause, Place, Unseen, Verdict
from zoo.errors import BadArgumentError, BadInputError, ClosedError, ServiceError
from zoo.inputs import image as image_input
from zoo.inputs.image import DEFAULT_LIMITS, ImageLimits, ImageSource, Pixels
from zoo.inputs.views import shown
from zoo.judging.judge import AnyJudge

if TYPE_CHECKING:
    from zoo.inputs.text import TextCodec

#: Images and texts of a call. A uint8 `[B, H, W, 3]` array is B images.
Images: TypeAlias = Sequence[ImageSource | None] | NDArray[np.generic] | None
Texts: TypeAlias = Sequence[str | None] | None
Feeds: TypeAlias = dict[str, NDArray[np.generic]]
#: An engine: the arrays of `card.input_names` in, output scores `[B, N]` out.
Engine: TypeAlias = Callable[[Feeds], NDArray[np.floating]]


@dataclass(frozen=True)
class Ready:
    """One item prepared for the engine, or the verdict on why it cannot be judged. `source` is its name in verdicts.

    The engine judges R rows of it, one for each view of the picture with each window of the text: `pixels` uint8
    `[R, size, size, 3]`, `ids` and `mask` (see `Tokens`) `[R, T]`. `places` names the rows; `unseen` is what no row
    shows.
    """

    source: str
    refusal: Verdict | None = None
    pixels: NDArray[np.uint8] | None = None
    ids: NDArray[np.int64] | None = None
    mask: NDArray[Any] | None = None
    places: tuple[Place, ...] = (Place(),)
    unseen: dict[Cause, Unseen] = field(default_factory=dict)


def feeds(card: ModelCard, items: Sequence[Ready]) -> Feeds:
    """The arrays of `card.input_names` for all rows of prepared items; an input that an item lacks is all zeros."""
    arrays: Feeds = {}
    if card.image is not None:
        shape = (card.image.size, card.image.size, 3)
        arrays["image"] = _rows(items, [item.pixels for item in items], shape, np.uint8)
    if card.reads_text and card.text is not None:
        length = card.text.context_length
        if card.text.variable_length:
            length = max((item.ids.shape[1] for item in items if item.ids is not None), default=1)
        dtype = np.int64 if card.text.features == "tokens" else np.float32
        arrays["input_ids"] = _rows(items, [item.ids for item in items], (length,), np.int64)
        arrays[card.text.mask_name] = _rows(items, [item.mask for item in items], (length,), dtype)
    if "image_present" in card.input_names:
        arrays["image_present"] = np.array([item.pixels is not None for item in items for _ in item.places])
    return arrays


def _rows(
    items: Sequence[Ready], parts: Sequence[NDArray[Any] | None], shape: tuple[int, ...], dtype: type[np.number[Any]]
) -> NDArray[Any]:
    """The rows of all items one after the other; those of an item without this input, and ends, are zeros."""
    whole = [
        np.zeros((len(item.places), *shape), dtype=dtype) if part is None else _filled(part, shape[0])
        for item, part in zip(items, parts, strict=True)
    ]
    return whole[0] if len(whole) == 1 else np.concatenate(whole)


def _filled(rows: NDArray[Any], length: int) -> NDArray[Any]:
    """Rows `[R, T, ...]` with zeros behind them, `[R, length, ...]`."""
    missing = length - rows.shape[1]
    return rows if missing <= 0 else np.pad(rows, [(0, 0), (0, missing)])


#: What a call of the engine costs besides its tokens, in tokens: a transformer of 6 layers reads all its weights once.
_CALL = 16


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """The places of texts, in a group for each call, so that as few tokens as possible are filled up.

    >>> by_length([7, 128, 9, 8])
    [[0, 3, 2], [1]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    cost, start_of = {0: 0}, {}
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        if end < len(order) and lengths[order[end]] == longest:
            continue  # one call for all of a length
        cost[end], start_of[end] = min((cost[start] + _CALL + (end - start) * longest, start) for start in cost)
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.insert(0, order[start_of[end] : end])
        end = start_of[end]
    return groups


class Scorer:
    """Judges items with one engine and one policy. `threads` decode images while the engine runs."""

    def __init__(
        self,
        judge: AnyJudge,
        codec: TextCodec | None,
        engine: Engine,
        *,
        limits: ImageLimits = DEFAULT_LIMITS,
        batch_size: int = 32,
        threads: int = 2,
    ) -> None:
        if batch_size < 1 or threads < 1:
            raise BadArgumentError(f"batch_size and threads must be at least 1, got {batch_size} and {threads}")
        self.judge, self.engine, self.limits, self.batch_size = judge, engine, limits, batch_size
        self.card: ModelCard = judge.card
        self._codec = codec if self.card.reads_text else None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._process = os.getpid()

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.card.name

    @property
    def policy_id(self) -> str:
        """The policy, as verdicts name it."""
        return self.judge.policy_id

    @property
    def score_names(self) -> tuple[str, ...]:
        """The keys of a verdict's scores."""
        return self.judge.score_names

    @property
    def why(self) -> str:
        """Which engine runs, where, and why that one; "" where the engine does not say."""
        return str(getattr(self.engine, "why", ""))

    @property
    def weights(self) -> str:
        """A hash of the weights that judge; "" where the engine does not say."""
        return str(getattr(self.engine, "weights", ""))

    def same_model(self, other: Scorer) -> bool:
        """Whether one scorer can judge what the other prepared: both have the same card and the same weights."""
        return type(self) is type(other) and self.card == other.card and self.weights == other.weights

    def verdict(self, image: ImageSource | None = None, text: str | None = None) -> Verdict:
        """Judge one item: an image (whatever `zoo.inputs.image.decode` takes), a text, or both together.

        Raises BadTypeError for an image of another type, BadInputError for an input that this model never reads.
        """
        return self.judge_ready([self.prepare(image, text)])[0]

    def verdicts(self, images: Images = None, texts: Texts = None) -> list[Verdict]:
        """Judge many items, in order; image i goes with text i. A uint8 `[B, H, W, 3]` array is B images.

        An item that cannot be read gets a verdict that says so. Raises BadInputError only for a call that
        makes no sense: no input at all, lists of different length, or an input that this model never reads; and
        BadTypeError, before anything is judged, for an image of a type that is not taken.
        """
        return [verdict for batch in self.stream(images, texts) for verdict in batch]

    def stream(self, images: Images = None, texts: Texts = None) -> Iterator[list[Verdict]]:
        """As `verdicts`, but yields the list of each batch when it is judged."""
        items = self._items(images, texts)
        self._refuse_fork()
        batches = [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]
        waiting: list[Future[Ready]] = []
        for number, batch in enumerate(batches):
            current = waiting or self._prepared(batch)
            waiting = self._prepared(batches[number + 1] if number + 1 < len(batches) else [])
            yield self.judge_ready([future.result() for future in current])

    def _prepared(self, items: Sequence[tuple[ImageSource | None, str | None]]) -> list[Future[Ready]]:
        try:
            return [self._pool.submit(self.prepare, *item) for item in items]
        except RuntimeError:  # by another thread, it may be in the middle of a list
            raise ClosedError("this scorer is closed; load it again to judge more") from None

    def prepare(self, image: ImageSource | None = None, text: str | None = None) -> Ready:
        """Decode and tokenise one item; one that cannot be read holds the verdict that says so. Thread-safe.

        Raises BadInputError for an input that this model never reads, BadTypeError for what is no image.
        """
        self._refuse_unread(image is not None, text is not None)
        if image is not None:
            image_input.check_source(image)
        source = image_input.source_name(image)
        given = {"image": image is not None, "text": text is not None}
        missing = [kind for kind in self.card.requires if not given[kind]]
        if missing or not any(given.values()):
            what = " and ".join(missing) or "an image or a text"
            detail = f"{self.card.name} needs {what}, which was not given"
            return Ready(source, self.judge.unjudged("missing_input", detail, source))
        try:
            places, pixels, unseen = self._shown(image)
            if text is None or self._codec is None:
                return Ready(source, None, pixels, places=places, unseen=unseen)
            windows = self._codec.windows(text, self.judge.policy.windows)
        except BadInputError as problem:
            return Ready(source, self.judge.unjudged("unreadable", str(problem), source))
        unseen |= windows.unseen
        if len(places) == len(windows.ids) == 1:
            return Ready(source, None, pixels, windows.ids, windows.mask, places, unseen)
        view, window = (index.ravel() for index in np.indices((len(places), len(windows.ids))))
        spans = windows.characters if len(windows.ids) > 1 else [None]
        places = tuple(replace(places[v], characters=spans[w]) for v, w in zip(view, window, strict=True))
        rows = None if pixels is None else pixels[view]
        return Ready(source, None, rows, windows.ids[window], windows.mask[window], places, unseen)

    def _shown(self, image: ImageSource | None) -> tuple[tuple[Place, ...], Pixels | None, dict[Cause, Unseen]]:
        if image is None or self.card.image is None:
            return (Place(),), None, {}
        rows = shown(image, self.card.image, self.judge.policy, self.limits)
        return rows.places, rows.pixels, rows.unseen

    def judge_ready(self, items: Sequence[Ready]) -> list[Verdict]:
        """Judge prepared items with one call of the engine, in order. Raises what the engine raises.

        Raises ServiceError in a process that was forked from the one that loaded it: it would wait forever.
        """
        self._refuse_fork()
        answers = [item.refusal for item in items]
        rows = [index for index, refusal in enumerate(answers) if refusal is None]
        if rows:
            readable = [items[index] for index in rows]
            sources, unseen = [item.source for item in readable], [item.unseen for item in readable]
            places = [item.places for item in readable]
            verdicts = self.judge.verdicts(self._scores(readable), sources, unseen, places)
            for row, verdict in zip(rows, verdicts, strict=True):
                answers[row] = verdict
        return [replace(answer, weights=self._by[0], engine=self._by[1]) for answer in answers if answer is not None]

    @cached_property
    def _by(self) -> tuple[str, str]:
        """Weights and engine, as verdicts name them; hashing those of a model in memory takes a moment."""
        return self.weights, str(getattr(self.engine, "name", ""))

    def _scores(self, items: Sequence[Ready]) -> NDArray[np.floating]:
        """Scores `[R, N]` of all rows of the items, those of texts of much the same length in one call."""
        text = self.card.text
        if text is None or not text.variable_length or text.features != "tokens" or self.card.image is not None:
            return self._called(items)
        groups = by_length([0 if item.ids is None else item.ids.shape[1] for item in items])
        ends = np.cumsum([len(item.places) for item in items])
        rows = [np.arange(end - len(item.places), end) for item, end in zip(items, ends, strict=True)]
        found = np.concatenate([self._called([items[place] for place in group]) for group in groups])
        scores = np.empty_like(found)
        scores[np.concatenate([rows[place] for group in groups for place in group])] = found
        return scores

    def _called(self, items: Sequence[Ready]) -> NDArray[np.floating]:
        """Scores `[R, N]` of all rows of the items, in calls of no more rows than the largest batch."""
        arrays = feeds(self.card, items)
        count = sum(len(item.places) for item in items)
        if count <= max(self.batch_size, len(items)):
            return self.engine(arrays)
        starts = range(0, count, self.batch_size)
        return np.concatenate(
            [
                self.engine({name: rows[start : start + self.batch_size] for name, rows in arrays.items()})
                for start in starts
            ]
        )

    def close(self) -> None:
        """End the decoding threads; `stream` and `verdicts` raise ClosedError from then on."""
        self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse_fork(self) -> None:
        if self._process != os.getpid():
            raise ServiceError(
                f"this scorer was loaded in process {self._process}, and a forked one has none of its threads: load it "
                "again in each process"
            )

    def _items(self, images: Images, texts: Texts) -> list[tuple[ImageSource | None, str | None]]:
        if isinstance(images, (str, bytes, Path)) or isinstance(texts, str):
            raise BadArgumentError("verdicts() takes a list of images or texts; for a single one use verdict()")
        if images is None and texts is None:
            raise BadArgumentError("nothing to judge: give images, texts, or both")
        count = len(images) if images is not None else len(texts or ())
        all_images = list(images) if images is not None else [None] * count
        all_texts = list(texts) if texts is not None else [None] * count
        if len(all_images) != len(all_texts):
            raise BadArgumentError(
                f"{len(all_images)} images and {len(all_texts)} texts: item i is image i with text i"
            )
        for image in all_images:
            if image is not None:
                image_input.check_source(image)
        self._refuse_unread(any(image is not None for image in all_images), any(text is not None for text in all_texts))
        return list(zip(all_images, all_texts, strict=True))

    def _refuse_unread(self, images: bool, texts: bool) -> None:
        if images and self.card.image is None:
            raise BadArgumentError(f"{self.card.name} reads texts only: no image can be judged")
        if texts and not self.card.reads_text:
            raise BadArgumentError(
                f"{self.card.name} judges images only, so the text would be ignored; "
                "leave it out, or use a model that reads both (`zoo list '*multimodal*'`)"
            )
