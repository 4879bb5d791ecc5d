"""Attack image and text together, each within its own budget: one after the other, or in turns.

Each side attacks while the other stays where it was last moved to, as in coordinate descent. A move is kept if it
lowers the margin of the model, so that no side undoes the work of the other. A model may withstand either change and
yet fail under both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from rich.progress import Progress
from torch import Tensor, nn

from zoo.adversary.image.attack import IMAGE_ATTACKS, AttackOutcome, allowed_images, check_inputs, check_labels, finite
from zoo.adversary.image.target import ImageBatch, Target, evaluation_mode, margin, misjudged
from zoo.adversary.text.attack import attack_texts
from zoo.adversary.text.edits import Variants, count_banned
from zoo.adversary.text.target import TextModel
from zoo.adversary.threat import TextPart, Threat
from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError
from zoo.inputs.text import TextCodec
from zoo.models.base import token_tensors
from zoo.models.clip import Encoded

#: Pixels `[B, C, H, W]` in [0, 1], ids and mask `[B, T]` int64, to logits `[B, K]`, K >= 2.
JointModel: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


class BothInputs(nn.Module):
    """A model as a function of image and text; `card` says which inputs it takes, in which order.

    Where not `present`, the images are judged as missing.

    The model is one of the zoo, or one under a policy (`two_logits.Judged`). Raises BadArgumentError for
    one that does not judge an image with a text.
    """

    def __init__(self, model: nn.Module, card: ModelCard, *, present: bool = True) -> None:
        super().__init__()
        if "image" not in card.input_names or not card.reads_text:
            raise BadArgumentError(f"{card.name} judges {list(card.input_names)}, not an image with a text")
        self.model = model
        self.names, self.present = card.input_names, present

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        inputs = [pixels, input_ids, attention_mask]
        if "image_present" in self.names:
            inputs.append(torch.full((len(input_ids),), self.present, device=pixels.device))
        logits: Tensor = self.model(*inputs)
        return logits


class _Remembered(nn.Module):
    """Replaces a tower by its answers, looked up by the places `[B]` of its inputs."""

    def __init__(self, parts: list[Encoded]) -> None:
        super().__init__()
        self.encoded = Encoded(*(torch.cat(list(part)) for part in zip(*parts, strict=True)))

    def forward(self, places: Tensor, mask: Tensor | None = None) -> Encoded:
        return Encoded(*(part[places] for part in self.encoded))


@contextmanager
def _remembering(model: JointModel, name: str, batch_size: int, *inputs: Tensor) -> Iterator[bool]:
    """Inside, the tower of this name takes places `[B]` int64 among the rows of `inputs`, which it has encoded once.

    Gives whether it does: no where the model is not one of the zoo with one such tower.
    """
    owners = [part for part in model.modules() if hasattr(part, name)] if isinstance(model, BothInputs) else []
    if len(owners) != 1:
        yield False
        return
    tower = owners[0].get_submodule(name)
    with torch.no_grad():
        parts = zip(*(torch.split(rows, batch_size) for rows in inputs), strict=True)
        setattr(owners[0], name, _Remembered([tower(*part) for part in parts]))
    try:
        yield True
    finally:
        setattr(owners[0], name, tower)


@contextmanager
def fixed_images(model: JointModel, pixels: Tensor, batch_size: int) -> Iterator[JointModel]:
    """Inside, the model takes the places `[B]` int64 of images in `pixels` in place of images.

    A zoo model's image tower runs once for each image, and not for every text that is tried beside it, and the padding
    that all texts of a batch end with is cut off; of any other model the images are looked up.
    """
    with _remembering(model, "image_tower", batch_size, pixels) as encoded:
        if encoded:
            yield lambda places, ids, mask: model(places, *_without_padding(ids, mask))
        else:
            yield lambda places, ids, mask: model(pixels[places], ids, mask)


@contextmanager
def fixed_texts(model: JointModel, ids: Tensor, mask: Tensor, batch_size: int) -> Iterator[JointModel]:
    """Inside, the model takes the places `[B]` int64 of texts in `ids` and `mask` `[N, T]` in place of ids.

    A zoo model's text tower runs once for each text, and not for every step of an attack on the image beside it.
    """
    with _remembering(model, "text_tower", batch_size, ids, mask) as encoded:
        yield model if encoded else lambda pixels, places, part: model(pixels, ids[places], part)


def _without_padding(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, T]` without the columns at the end that are padding in every row; one column at least."""
    length = max(1, int(mask.any(dim=0).nonzero().max()) + 1) if mask.any() else 1
    return ids[:, :length], mask[:, :length]


#: A margin at or below this is a misjudgement; a tie of logits is not.
_THRESHOLD = -1e-6


@dataclass(frozen=True)
class JointResult(AttackOutcome):
    """The outcome for N items.

    `pixels` `[N, C, H, W]` and `texts` are the best attempts within their budgets, even if they broke nothing.
    `margins` `[N]` are the right logit less the best other one there. `refuted` counts claims that a fresh pass did not
    confirm. `blind` are images without a gradient, which Square attacked instead, and texts whose tokens had none.
    """

    _figures = (*AttackOutcome._figures, "refuted")

    pixels: Tensor
    texts: tuple[str, ...]
    margins: Tensor
    refuted: int
    forwards: int
    backwards: int


def attack_jointly(
    model: JointModel,
    pixels: Tensor,
    texts: Sequence[str],
    labels: Tensor,
    threat: Threat,
    *,
    codec: TextCodec,
    embedding: nn.Embedding,
    modules: Sequence[nn.Module] = (),
    synonyms: Variants | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> JointResult:
    """Look for an image and a text within a joint threat model that are misjudged together.

    `pixels` `[N, C, H, W]` float32 in [0, 1], `labels` `[N]` the right classes, `codec` the model's, `embedding` the
    one that its token ids go through (see `input_embedding`). The model is attacked in evaluation mode, and restored
    afterwards; for a plain function, name the `modules` that it calls. Every success is checked on a fresh pass:
    both budgets, pixels in [0, 1], no banned word, protected words kept, misjudged. Raises BadInputError for pixels,
    labels, texts or logits of a wrong shape, type or range.
    """
    if threat.kind != "joint":
        raise BadArgumentError(f"the joint attack needs a threat on images and texts, got one on {threat.kind}s alone")
    if not len(pixels) == len(texts) == len(labels) or not len(pixels):
        raise BadArgumentError(f"got {len(pixels)} images, {len(texts)} texts and {len(labels)} labels")
    check_inputs(pixels, labels, (), batch_size)
    with evaluation_mode(model, *modules), Progress(disable=not progress, transient=True) as bar:
        clean = pixels.detach().clone()
        labels = labels.to(pixels.device)
        return _Joint(model, clean, texts, labels, threat, codec, embedding, synonyms, batch_size).run(bar)


@dataclass
class _Joint:
    """The items under attack: where image and text of each stand, and the margin there."""

    model: JointModel
    clean: Tensor
    originals: Sequence[str]
    labels: Tensor
    threat: Threat
    codec: TextCodec
    embedding: nn.Embedding
    synonyms: Variants | None
    batch_size: int

    def __post_init__(self) -> None:
        assert self.threat.image is not None  # checked by attack_jointly
        self.part = self.threat.image
        self.pixels, self.texts = self.clean.clone(), list(self.originals)
        self.target = Target(self.model)
        logits = finite([self._logits()])
        check_labels(self.labels, logits.shape[1])
        self.correct = ~misjudged(logits, self.labels)
        self.margins = -margin(logits, self._batch(torch.arange(len(self.texts))))
        self.banned = [count_banned(text, self.threat.banned) for text in self.texts]
        #: For each text the threat that it was found under, and whether words were exchanged for it.
        self.found_by = [(self.threat.text[0], True)] * len(self.texts)
        self.goals = logits.scatter(1, self.labels[:, None], -torch.inf).argmax(dim=1)
        self.blind = torch.zeros_like(self.correct)

    def run(self, bar: Progress) -> JointResult:
        """All moves, then the check."""
        sides = ["image", "text"] if self.threat.first == "image" else ["text", "image"]
        moves = [(number, side) for number in range(self.threat.rounds) for side in sides]
        task = bar.add_task("attacking", total=len(moves))
        for number, side in moves:
            rows = self._alive()
            if len(rows):
                bar.update(task, description=f"{side}: {len(rows)} items hold")
                self._move_images(rows, number) if side == "image" else self._move_texts(rows)
            bar.advance(task)
        claimed = self.correct.clone()
        claimed[self._alive()] = False
        logits = self._logits()
        broken = claimed & misjudged(logits, self.labels) & self._permitted()
        best = self.pixels, tuple(self.texts), -margin(logits, self._batch(torch.arange(len(self.texts))))
        passes = self.target.forwards, self.target.backwards
        refuted = int((claimed & ~broken).sum())
        return JointResult(self.correct, broken, self.blind, self.threat, *best, refuted, *passes)

    def _alive(self) -> Tensor:
        """The items that were judged right, and still are."""
        banned = torch.tensor([count > 0 for count in self.banned], device=self.correct.device)
        return (self.correct & ((self.margins > _THRESHOLD) | banned)).nonzero()[:, 0]

    def _permitted(self) -> Tensor:
        """Which items keep to both budgets and the protected words, and hold no banned word."""
        images = allowed_images(self.pixels, self.clean, self.part)
        kept = [
            threat.permits(before, after, exchanged=exchanged) and not count_banned(after, self.threat.banned)
            for before, after, (threat, exchanged) in zip(self.originals, self.texts, self.found_by, strict=True)
        ]
        return images & torch.tensor(kept, device=images.device)

    def _batch(self, rows: Tensor) -> ImageBatch:
        rows = rows.to(self.clean.device)
        return ImageBatch(self.clean[rows], self.labels[rows], rows)

    def _logits(self) -> Tensor:
        """Logits `[N, K]` of all items as they stand."""
        self.target.model, self.target.extras = self.model, self._tokens()
        every = torch.arange(len(self.texts), device=self.clean.device)
        return torch.cat(
            [self.target.logits(self.pixels[rows], self._batch(rows)) for rows in torch.split(every, self.batch_size)]
        )

    def _tokens(self) -> tuple[Tensor, Tensor]:
        """Ids and mask `[N, T]` of the texts as they stand."""
        return token_tensors(self.codec, self.texts, self.clean.device)

    def _places(self, rows: Tensor) -> Tensor:
        """For each item `[N]` its place among `rows`."""
        places = torch.zeros(len(self.texts), dtype=torch.int64, device=rows.device)
        places[rows] = torch.arange(len(rows), device=rows.device)
        return places

    def _move_images(self, rows: Tensor, number: int) -> None:
        """Attack the images against the texts as they stand; keep what lowers the margin."""
        ids, mask = self._tokens()
        with fixed_texts(self.model, ids[rows], mask[rows], self.batch_size) as model:
            self.target.model, self.target.extras = model, (self._places(rows), mask)
            for part in torch.split(rows, self.batch_size):
                self._try_images(part, number)

    def _try_images(self, rows: Tensor, number: int) -> None:
        """All attacks on one batch; what gives no gradient goes to Square."""
        gradient = self.target.gradient(self.pixels[rows], self._batch(rows), margin)[2]
        blind = gradient.flatten(1).count_nonzero(dim=1) == 0
        self.blind[rows] |= blind
        for name in self.part.attacks:
            self._try_image(rows if name == "square" else rows[~blind], name, number)
        if "square" not in self.part.attacks:
            self._try_image(rows[blind], "square", number)

    def _try_image(self, rows: Tensor, name: str, number: int) -> None:
        for restart in range(1 if name == "fgsm" else self.part.restarts):
            left = rows[self.margins[rows] > _THRESHOLD]
            if not len(left):
                return
            batch = ImageBatch(self.clean[left], self.labels[left], left, self.goals[left])
            images = IMAGE_ATTACKS[name](self.target, batch, self.part, number * self.part.restarts + restart)
            margins = -margin(self.target.logits(images, batch), batch)
            better = (margins < self.margins[left]) & allowed_images(images, batch.pixels, self.part)
            self.pixels[left[better]], self.margins[left[better]] = images[better], margins[better]

    def _move_texts(self, rows: Tensor) -> None:
        """Attack the texts against the images as they stand; keep what lowers the margin, or has fewer banned words."""
        places = self._places(rows)
        with fixed_images(self.model, self.pixels[rows], self.batch_size) as model:
            for threat in self.threat.alternatives:
                self._try_texts(self._alive(), lambda items, ids, mask: model(places[items], ids, mask), threat)

    def _try_texts(self, rows: Tensor, model: JointModel, threat: TextPart) -> None:
        """All attacks of one threat on the texts of some items, which the model takes in place of images."""

        def score(ids: Tensor, mask: Tensor, places: Tensor) -> Tensor:
            self.target.forwards += len(places)
            return -margin(model(rows[places], ids, mask).float(), self._batch(rows[places]))

        results = attack_texts(
            TextModel(score, self.codec, self.embedding),
            [self.originals[item] for item in rows.tolist()],
            threat,
            threshold=_THRESHOLD,
            synonyms=self.synonyms,
            batch_size=self.batch_size,
        )
        for item, result in zip(rows.tolist(), results, strict=True):
            self.blind[item] |= result.obfuscated
            banned = count_banned(result.text, self.threat.banned)
            better = (banned, result.score_after) < (self.banned[item], float(self.margins[item]))
            if better and threat.permits(result.original, result.text, exchanged=result.exchanged):
                self.texts[item], self.banned[item], self.margins[item] = result.text, banned, result.score_after
                self.found_by[item] = threat, result.exchanged
