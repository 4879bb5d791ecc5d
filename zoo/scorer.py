"""From images and texts to verdicts, over any engine. The eager model and the exported bundle both run in here.

Nothing that cannot be judged is called safe, and one broken item never costs the others their answer. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.card import ModelCard
from zoo.errors import BadInputError
from zoo.inputs import image as image_input
from zoo.inputs.image import DEFAULT_LIMITS, ImageLimits, ImageSource, Pixels
from zoo.inputs.text import TextCodec
from zoo.judge import Judge
from zoo.panel import PanelJudge
from zoo.verdict import Verdict

Feeds: TypeAlias = dict[str, NDArray[np.generic]]
#: An engine: the arrays of `card.input_names` in, output scores `[B, N]` out.
Engine: TypeAlias = Callable[[Feeds], NDArray[np.floating]]


@dataclass(frozen=True)
class _Item:
    """One item as given; `source` names it in its verdict."""

    image: ImageSource | None
    text: str | None
    source: str


@dataclass(frozen=True)
class _Ready:
    """One item as the engine eats it, or the verdict that says why it cannot be."""

    refusal: Verdict | None = None
    pixels: Pixels | None = None
    ids: NDArray[np.int64] | None = None
    mask: NDArray[np.int64] | None = None
    truncated: bool = False


class Scorer:
    """Judges items with one engine and one policy. `threads` decode images while the engine runs."""

    def __init__(
        self,
        judge: Judge | PanelJudge,
        codec: TextCodec | None,
        engine: Engine,
        *,
        limits: ImageLimits = DEFAULT_LIMITS,
        batch_size: int = 32,
        threads: int = 2,
    ) -> None:
        if batch_size < 1 or threads < 1:
            raise BadInputError(f"batch_size and threads must be at least 1, got {batch_size} and {threads}")
        self.judge, self.engine, self.limits, self.batch_size = judge, engine, limits, batch_size
        self.card: ModelCard = judge.card
        self._codec = codec if self.card.reads_text else None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def verdict(self, image: ImageSource | None = None, text: str | None = None) -> Verdict:
        """Judge one item: an image (path, bytes, uint8 `[H, W, 3]`), a text, or both together."""
        items = self._items([image], [text])
        return self._judge_batch([self._prepare(item) for item in items], [item.source for item in items])[0]

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
        """As `verdicts`, a list for each batch as it is done."""
        items = self._items(images, texts)
        batches = [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]
        waiting: list[Future[_Ready]] = []
        for number, batch in enumerate(batches):
            current = waiting or [self._pool.submit(self._prepare, item) for item in batch]
            following = batches[number + 1] if number + 1 < len(batches) else []
            waiting = [self._pool.submit(self._prepare, item) for item in following]
            yield self._judge_batch([future.result() for future in current], [item.source for item in batch])

    def close(self) -> None:
        """End the decoding threads."""
        self._pool.shutdown()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _items(
        self,
        images: Sequence[ImageSource | None] | NDArray[np.generic] | None,
        texts: Sequence[str | None] | None,
    ) -> list[_Item]:
        if isinstance(images, (str, bytes, Path)) or isinstance(texts, str):
            raise BadInputError("verdicts() takes a list of images or texts; for a single one use verdict()")
        if images is None and texts is None:
            raise BadInputError("nothing to judge: give images, texts, or both")
        count = len(images) if images is not None else len(texts or ())
        all_images = list(images) if images is not None else [None] * count
        all_texts = list(texts) if texts is not None else [None] * count
        if len(all_images) != len(all_texts):
            raise BadInputError(f"{len(all_images)} images and {len(all_texts)} texts: item i is image i with text i")
        if self.card.image is None and any(image is not None for image in all_images):
            raise BadInputError(f"{self.card.name} reads texts only: no image can be judged")
        if not self.card.reads_text and any(text is not None for text in all_texts):
            raise BadInputError(
                f"{self.card.name} judges images only, so the text would be ignored; "
                "leave it out, or use a model that reads both (`zoo list '*multimodal*'`)"
            )
        return [_Item(i, t, image_input.source_name(i)) for i, t in zip(all_images, all_texts, strict=True)]

    def _prepare(self, item: _Item) -> _Ready:
        given = {"image": item.image is not None, "text": item.text is not None}
        missing = [kind for kind in self.card.requires if not given[kind]]
        if missing or not any(given.values()):
            what = " and ".join(missing) or "an image or a text"
            return _Ready(self.judge.missing_input(f"{self.card.name} needs {what}, which was not given", item.source))
        try:
            pixels = None
            if item.image is not None and self.card.image is not None:
                pixels = image_input.load(item.image, self.card.image, self.limits)
            if item.text is None or self._codec is None:
                return _Ready(pixels=pixels)
            tokens = self._codec.encode([item.text])
            return _Ready(None, pixels, tokens.ids[0], tokens.mask[0], bool(tokens.truncated[0]))
        except BadInputError as problem:
            return _Ready(self.judge.unreadable(str(problem), item.source))

    def _judge_batch(self, ready: list[_Ready], sources: list[str]) -> list[Verdict]:
        answers = [item.refusal for item in ready]
        rows = [index for index, refusal in enumerate(answers) if refusal is None]
        if rows:
            items = [ready[index] for index in rows]
            scores = self.engine(self._feeds(items))
            judged = self.judge.verdicts(scores, [sources[row] for row in rows], [item.truncated for item in items])
            for row, verdict in zip(rows, judged, strict=True):
                answers[row] = verdict
        return [answer for answer in answers if answer is not None]

    def _feeds(self, items: list[_Ready]) -> Feeds:
        names = self.card.input_names
        feeds: Feeds = {}
        if self.card.image is not None:
            blank = np.zeros((self.card.image.size, self.card.image.size, 3), dtype=np.uint8)
            feeds["image"] = np.stack([blank if item.pixels is None else item.pixels for item in items])
        if self._codec is not None:
            none = np.zeros(self._codec.spec.context_length, dtype=np.int64)
            feeds["input_ids"] = np.stack([none if item.ids is None else item.ids for item in items])
            feeds["attention_mask"] = np.stack([none if item.mask is None else item.mask for item in items])
        if "image_present" in names:
            feeds["image_present"] = np.array([item.pixels is not None for item in items])
        return feeds
