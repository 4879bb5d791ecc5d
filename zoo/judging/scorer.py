"""From images and texts to verdicts, over any engine. The eager model and the exported bundle both run in here.

Nothing that cannot be judged is called safe, and one broken item never costs the others their answer. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.contract.card import ModelCard
from zoo.contract.verdict import Verdict
from zoo.errors import BadArgumentError, BadInputError, ClosedError
from zoo.inputs import image as image_input
from zoo.inputs.image import DEFAULT_LIMITS, ImageLimits, ImageSource, Pixels
from zoo.inputs.text import TextCodec
from zoo.judging.judge import AnyJudge

Feeds: TypeAlias = dict[str, NDArray[np.generic]]
#: An engine: the arrays of `card.input_names` in, output scores `[B, N]` out.
Engine: TypeAlias = Callable[[Feeds], NDArray[np.floating]]


@dataclass(frozen=True)
class Ready:
    """One item prepared for the engine, or the verdict on why it cannot be judged. `source` is its name in verdicts.

    `pixels` uint8 `[size, size, 3]`, `ids` and `mask` int64 `[T]`; `truncated` where the text was cut.
    """

    source: str
    refusal: Verdict | None = None
    pixels: Pixels | None = None
    ids: NDArray[np.int64] | None = None
    mask: NDArray[np.int64] | None = None
    truncated: bool = False


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
        self._closed = False

    @property
    def why(self) -> str:
        """Which engine runs, where, and why that one; "" where the engine does not say."""
        return str(getattr(self.engine, "why", ""))

    def same_model(self, other: Scorer) -> bool:
        """Whether one scorer can judge what the other prepared: both have the same card and the same weights."""
        ours, theirs = (getattr(scorer.engine, "weights", None) for scorer in (self, other))
        return self.card == other.card and bool(ours == theirs)

    def verdict(self, image: ImageSource | None = None, text: str | None = None) -> Verdict:
        """Judge one item: an image (path, bytes, uint8 `[H, W, 3]`), a text, or both together."""
        return self.judge_ready([self.prepare(image, text)])[0]

    def verdicts(
        self,
        images: Sequence[ImageSource | None] | NDArray[np.generic] | None = None,
        texts: Sequence[str | None] | None = None,
    ) -> list[Verdict]:
        """Judge many items, in order; image i goes with text i. A uint8 `[B, H, W, 3]` array is B images.

        An item that cannot be read gets a verdict that says so. Raises BadInputError only for a call that
        makes no sense: no input at all, lists of different length, or an input that this model never reads.
        """
        return [verdict for batch in self.stream(images, texts) for verdict in batch]

    def stream(
        self,
        images: Sequence[ImageSource | None] | NDArray[np.generic] | None = None,
        texts: Sequence[str | None] | None = None,
    ) -> Iterator[list[Verdict]]:
        """As `verdicts`, but yields the list of each batch when it is judged."""
        items = self._items(images, texts)
        if self._closed:
            raise ClosedError("this scorer is closed; load it again to judge more")
        batches = [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]
        waiting: list[Future[Ready]] = []
        for number, batch in enumerate(batches):
            current = waiting or [self._pool.submit(self.prepare, *item) for item in batch]
            following = batches[number + 1] if number + 1 < len(batches) else []
            waiting = [self._pool.submit(self.prepare, *item) for item in following]
            yield self.judge_ready([future.result() for future in current])

    def prepare(self, image: ImageSource | None = None, text: str | None = None) -> Ready:
        """Decode and tokenise one item; one that cannot be read holds the verdict that says so. Thread-safe.

        Raises BadInputError for an input that this model never reads.
        """
        self._refuse_unread(image is not None, text is not None)
        source = image_input.source_name(image)
        given = {"image": image is not None, "text": text is not None}
        missing = [kind for kind in self.card.requires if not given[kind]]
        if missing or not any(given.values()):
            what = " and ".join(missing) or "an image or a text"
            detail = f"{self.card.name} needs {what}, which was not given"
            return Ready(source, self.judge.unjudged("missing_input", detail, source))
        try:
            pixels = None
            if image is not None and self.card.image is not None:
                pixels = image_input.load(image, self.card.image, self.limits)
            if text is None or self._codec is None:
                return Ready(source, pixels=pixels)
            tokens = self._codec.encode([text])
            return Ready(source, None, pixels, tokens.ids[0], tokens.mask[0], bool(tokens.truncated[0]))
        except BadInputError as problem:
            return Ready(source, self.judge.unjudged("unreadable", str(problem), source))

    def judge_ready(self, items: Sequence[Ready]) -> list[Verdict]:
        """Judge prepared items with one call of the engine, in order. Raises what the engine raises."""
        answers = [item.refusal for item in items]
        rows = [index for index, refusal in enumerate(answers) if refusal is None]
        if rows:
            readable = [items[index] for index in rows]
            scores = self.engine(self.feeds(readable))
            sources, truncated = [item.source for item in readable], [item.truncated for item in readable]
            for row, verdict in zip(rows, self.judge.verdicts(scores, sources, truncated), strict=True):
                answers[row] = verdict
        return [answer for answer in answers if answer is not None]

    def close(self) -> None:
        """End the decoding threads; `stream` and `verdicts` raise ClosedError from then on."""
        self._closed = True
        self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _items(
        self,
        images: Sequence[ImageSource | None] | NDArray[np.generic] | None,
        texts: Sequence[str | None] | None,
    ) -> list[tuple[ImageSource | None, str | None]]:
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

    def feeds(self, items: Sequence[Ready]) -> Feeds:
        """The arrays of `card.input_names` for a batch of prepared items; an input that an item lacks is all zeros."""
        names = self.card.input_names
        feeds: Feeds = {}
        if self.card.image is not None:
            shape = (self.card.image.size, self.card.image.size, 3)
            pixels = [np.zeros(shape, dtype=np.uint8) if item.pixels is None else item.pixels for item in items]
            feeds["image"] = np.stack(pixels)
        if self._codec is not None:
            none = np.zeros(self._codec.spec.context_length, dtype=np.int64)
            feeds["input_ids"] = np.stack([none if item.ids is None else item.ids for item in items])
            feeds["attention_mask"] = np.stack([none if item.mask is None else item.mask for item in items])
        if "image_present" in names:
            feeds["image_present"] = np.array([item.pixels is not None for item in items])
        return feeds
