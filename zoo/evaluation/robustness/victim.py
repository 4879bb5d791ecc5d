"""The attacked model, its two logits at an operating point, a threshold by its FPR; the items it is attacked on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from zoo.adversary.image.target import evaluation_mode
from zoo.adversary.image.two_logits import Judged
from zoo.contract.card import ModelCard
from zoo.contract.policy import Policy
from zoo.data.manifest import Row
from zoo.errors import BadArgumentError, BadDataError, close_match, quoted
from zoo.evaluation.labelling import Labelling, items_of, limited
from zoo.evaluation.robustness.report import DecisionPoint
from zoo.judging.scorer import Ready, feeds
from zoo.keys import refuse_unsigned
from zoo.release.store import Release, model_scorer


@dataclass(frozen=True)
class Item:
    """One image, text or both, as the model reads them, with its class; `row` is the manifest's first row of it.

    `label` is 1 unsafe or 0 safe, or the place among the card's labels where those are attacked. `image` and `text` are
    None if the model reads none or the row has none.
    """

    row: Row
    label: int
    labels: tuple[str, ...]
    image: Path | None
    text: str | None

    @property
    def group(self) -> Hashable:
        """Items of one group depend on each other: they show the same image."""
        return str(self.row.image) if self.row.image else self.row.line


@dataclass(frozen=True)
class AdversarialExample:
    """The changed form of an item: its image `[3, S, S]` (float32 in [0, 1], uint8 once kept), its text, or both."""

    pixels: Tensor | None = None
    text: str | None = None


@dataclass(frozen=True)
class Items:
    """N readable, labelled items, and their `pixels` uint8 `[N, 3, S, S]`, zero without an image.

    `lost` counts the items that are not among them, by reason, and `details` names the first of each; `columns` are
    those of the manifest that tell kinds of items apart.
    """

    items: list[Item]
    pixels: Tensor | None
    lost: dict[str, int] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labels(self) -> Tensor:
        """The class of each item `[N]` int64."""
        return torch.tensor([item.label for item in self.items], dtype=torch.int64)

    @property
    def with_image(self) -> Tensor:
        """Which items `[N]` have an image that the model reads."""
        return torch.tensor([item.image is not None for item in self.items])

    @property
    def with_text(self) -> Tensor:
        """Which items `[N]` have a text that the model reads."""
        return torch.tensor([item.text is not None for item in self.items])

    def take(self, rows: Tensor) -> Items:
        """Some of the items, by their places."""
        pixels = None if self.pixels is None else self.pixels[rows]
        return dataclasses.replace(self, items=[self.items[place] for place in rows.tolist()], pixels=pixels)

    def changed(self, examples: Sequence[AdversarialExample]) -> Items:
        """The items as an attack left them, with pixels float32 in [0, 1]."""
        texts = [item.text if one.text is None else one.text for item, one in zip(self.items, examples, strict=True)]
        items = [dataclasses.replace(item, text=text) for item, text in zip(self.items, texts, strict=True)]
        pixels = None
        if self.pixels is not None:
            pairs = zip(self.pixels.float().div_(255), examples, strict=True)
            pixels = torch.stack([given if one.pixels is None else one.pixels for given, one in pairs])
        return Items(items, pixels)


@dataclass(frozen=True)
class Selection:
    """Which rows of a manifest are meant; see `read_items`."""

    data: Path
    image_root: Path | None = None
    columns: dict[str, str] = field(default_factory=dict)
    by: tuple[str, ...] = ()


def read_items(
    rows: Sequence[Row],
    victim: Victim,
    selection: Selection,
    labelling: Labelling | None,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Items:
    """The items of these rows as the victim reads them; `limit` draws that many by `seed`.

    An image with several captions is one item for a model that reads images alone. Without a `labelling` the class is
    the row's label among the card's labels. Raises BadInputError for an unknown column, a label that the
    card lacks, or when no item can be judged.
    """
    card = victim.card
    groups = limited(items_of(list(rows), by_image=not card.reads_text), limit, seed)
    items: list[Item] = []
    read: list[Ready] = []
    lost = {"unlabelled": 0, "unreadable": 0, "missing_input": 0}
    details: dict[str, str] = {}
    # Attacks change what the model reads at once: the card's own view on white, and the text that fits.
    with model_scorer(
        victim.model, replace(victim.policy, views="centre", frames=1, windows=1, unseen="allow")
    ) as scorer:
        for group in track(groups, "Reading items", transient=True):
            row, names = group[0], tuple(dict.fromkeys(name for one in group for name in one.labels))
            label = _class(names, row, card) if labelling is None else labelling.label(group)
            image, text = row.image if card.image else None, row.text if card.reads_text else None
            ready = None if label is None else scorer.prepare(image, text)
            if label is None or ready is None:
                reason, detail = "unlabelled", "no label"
            elif ready.refusal is not None:
                reason, detail = ready.refusal.status, ready.refusal.detail
            else:
                items.append(Item(row, label, names, image, text))
                read.append(ready)
                continue
            lost[reason] += 1
            details.setdefault(reason, f"line {row.line}: {detail}")
    if not items:
        raise BadDataError(f"{selection.data}: none of {len(groups)} items can be judged: {details}")
    known = items[0].row.record
    for name in selection.by:
        if name not in known:
            raise BadArgumentError(f'`by`: {selection.data} has no column "{name}"' + close_match(name, known))
    columns = tuple(name for name in dict.fromkeys(("kind", *selection.by)) if name in known)
    pixels = torch.from_numpy(feeds(card, read)["image"]).permute(0, 3, 1, 2) if card.image else None
    return Items(items, pixels, lost, details, columns)


def _class(names: Sequence[str], row: Row, card: ModelCard) -> int | None:
    """The place of an item's label among the card's labels; None without a label."""
    if len(names) > 1:
        raise BadDataError(f"line {row.line}: has {len(names)} labels, and one class is attacked")
    if names and names[0] not in card.labels:
        known = close_match(names[0], card.labels)
        raise BadDataError(f"line {row.line}: {card.name} has no label {quoted(names[0])}{known}")
    return card.labels.index(names[0]) if names else None


@dataclass(frozen=True)
class AttackedPoint:
    """A model that decides: `module` maps the model's inputs to logits `[B, K]`, and the highest is its answer."""

    at: DecisionPoint
    module: nn.Module

    def answers(self, logits: Tensor) -> Tensor:
        """The class `[N]` that is answered for the model's own logits `[N, K]`."""
        if isinstance(self.module, Judged):
            logits = self.module.judge(logits)
        return logits.argmax(dim=1)


class Victim:
    """A release on a device, ready to be judged and attacked.

    With `target` labels its own classes are attacked, without a policy. Raises BadInputError for a panel, and
    TamperedFileError with a key configured, as no release is signed.
    """

    def __init__(
        self,
        release: Release,
        policy: Policy | None = None,
        *,
        target: Literal["policy", "labels"] = "policy",
        device: str = "cpu",
    ) -> None:
        card = release.card
        refuse_unsigned(card.name)
        card.refuse_panel("attack the models of its heads one by one")
        self.by_label = target == "labels"
        if self.by_label and (not card.labels or card.image is None or card.reads_text):
            raise BadArgumentError(
                f"`target` labels is for classifiers of images, and {card.name} is not one: attack its policy"
            )
        self.card, self.device = card, torch.device(device)
        self.policy: Policy = (policy or release.policy).single()
        self.model = release.model.to(self.device).eval()
        self.codec = self.model.codec() if card.reads_text else None
        self.judged = None if self.by_label else Judged(self.model, self.policy)

    def own_point(self) -> AttackedPoint:
        """The policy's own decisions, or the model's own classes."""
        return AttackedPoint(DecisionPoint("labels" if self.by_label else "policy"), self.judged or self.model)

    def point_at(self, fpr: float, logits: Tensor, where: str) -> AttackedPoint:
        """The decision that flags at most a share `fpr` of the safe items with these logits `[N, K]`.

        Raises as `threshold_height`.
        """
        threshold = self._threshold_at(threshold_height(self.heights(logits), fpr))
        at = DecisionPoint("fpr", threshold, fpr, calibrated_on=where, negatives=len(logits))
        point = AttackedPoint(at, Judged(self.model, self.policy, threshold))
        measured = float(point.answers(logits).double().mean())
        return AttackedPoint(dataclasses.replace(at, fpr_measured=measured), point.module)

    def extras(self, items: Items) -> tuple[Tensor, ...]:
        """The model's inputs besides pixels, in its order, one row for each item."""
        extras: list[Tensor] = []
        if self.codec is not None:
            tokens = self.codec.encode([item.text or "" for item in items.items])
            extras = [torch.from_numpy(part) * items.with_text[:, None] for part in (tokens.ids, tokens.mask)]
        if "image_present" in self.card.input_names:
            extras.append(items.with_image)
        return tuple(part.to(self.device) for part in extras)

    def floats(self, pixels: Tensor) -> Tensor:
        """Pixels, uint8 or float32 in [0, 1], as float32 in [0, 1] on the device, as the model and the attacks do."""
        there = pixels.to(self.device)
        return there if there.is_floating_point() else there.float().div_(255)

    @torch.no_grad()
    def logits(self, items: Items, batch_size: int, *, progress: bool = False) -> Tensor:
        """The model's own logits `[N, K]`, on the CPU."""
        extras = self.extras(items)
        banks = self.judged.banks if self.judged else ()
        parts = torch.split(torch.arange(len(items)), batch_size)
        logits = []
        with evaluation_mode(self.model):
            for rows in track(parts, "Judging", transient=True, disable=not progress):
                inputs = [] if items.pixels is None else [self.floats(items.pixels[rows])]
                inputs += [part[rows.to(self.device)] for part in extras]
                logits.append(self.model(*inputs, *banks).float().cpu())
        return torch.cat(logits)

    def heights(self, logits: Tensor) -> NDArray[np.float64]:
        """The value that items `[N]` rank by: the highest of the guarded categories, in log-odds if possible."""
        assert self.judged is not None  # labels have no unsafe score
        guarded = [place for place, limit in enumerate(self.judged.limits) if limit < float("inf")]
        heights: NDArray[np.float64] = self.judged.heights(logits.double())[:, guarded].amax(dim=1).numpy()
        return heights

    def _threshold_at(self, height: float) -> float:
        """The unsafe score of a height, on the scale of the policy's thresholds; rounded up, never down."""
        if self.judged is None or not self.judged.odds:
            return height
        score = 1 / (1 + math.exp(-height))
        while score < 1 and math.log(score) - math.log1p(-score) < height:  # the sigmoid rounds
            score = math.nextafter(score, 1.0)
        return score


def threshold_height(heights: NDArray[np.float64], fpr: float) -> float:
    """The lowest height that at most a share `fpr` of safe items `[N]` lies above.

    Raises BadInputError for a rate outside (0, 1), or for too few safe items: at 5 %, none of 10 items may be flagged,
    and the threshold would be the highest of them for any lower rate too.
    """
    if not 0 < fpr < 1:
        raise BadArgumentError(f"`fpr` is a share in (0, 1), got {fpr}")
    if not len(heights):
        raise BadDataError("no safe item to find the threshold on: `fpr` needs rows that are not unsafe")
    allowed = math.floor(fpr * len(heights) + 1e-9)
    if not allowed:
        raise BadDataError(
            f"{len(heights)} safe items are too few for a false positive rate of {fpr:g}: at least "
            f"{math.ceil(1 / fpr)} are needed; give more data, a higher `fpr`, or `points` policy"
        )
    return float(np.sort(heights)[::-1][allowed])
