"""Attack a release on labelled items, at the policy's operating point and at a fixed false positive rate."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from zoo.adversary.threat import ATTACKS, ImagePart, Threat
from zoo.data.manifest import Row, read_manifest
from zoo.errors import BadArgumentError, BadDataError, close_match
from zoo.evaluation.labelling import Labelling, rows_of_split, with_splits
from zoo.evaluation.report import versions
from zoo.evaluation.robustness.campaign import Attempt, Campaign, check_threat, open_to, synonyms_for
from zoo.evaluation.robustness.figures import point_figures
from zoo.evaluation.robustness.items import Items, Selection, read_items
from zoo.evaluation.robustness.report import Curve, CurvePoint, RobustnessReport
from zoo.evaluation.robustness.victim import AttackedPoint, Victim, threshold_height
from zoo.files import sha256
from zoo.metrics import Draws
from zoo.release.store import WEIGHTS

#: A curve excludes these attacks by default: they cost many times what the others do.
SLOW = ("fab-t", "square")


@dataclass(frozen=True)
class RobustnessOptions:
    """How a release is attacked. `split` None takes all rows; `limit` draws that many items by `seed`.

    The fixed operating point holds the false positive rate `fpr` on the safe rows of `threshold_split`. `eps` asks for
    a curve over these budgets, by `eps_attacks` (default: the threat's attacks except FAB-T and Square). `keep` keeps
    the examples that succeed, and `say` gets a line for each step.
    """

    labelling: Labelling = field(default_factory=Labelling)
    split: str | None = "test"
    threshold_split: str = "val"
    fpr: float = 0.05
    points: Literal["policy", "fpr", "both"] = "both"
    direction: Literal["evade", "both"] = "evade"
    eps: tuple[float, ...] = ()
    eps_attacks: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0
    batch_size: int = 64
    keep: bool = False
    progress: bool = False
    command: str = ""
    synonyms: Path | None = None
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Outcome:
    """A report with its sources: the items, and the attacks at each operating point."""

    report: RobustnessReport
    items: Items
    points: tuple[AttackedPoint, ...]
    attempts: tuple[list[Attempt], ...]


def evaluate_robustness(
    victim: Victim, source: str, selection: Selection, threat: Threat, threat_name: str, options: RobustnessOptions
) -> Outcome:
    """Measure how a model holds against a threat model; see `RobustnessReport`.

    Raises BadInputError if the model does not read what the threat changes, if no item is unsafe, if no safe item can
    set the threshold, and as `read_items`.
    """
    begin = time.perf_counter()
    check_threat(victim, threat)
    _check_curve(threat, options.eps, options.eps_attacks)
    if options.direction == "both" and threat.text:
        raise BadArgumentError(
            "`direction` both goes with a threat on images: texts are only attacked to be judged safe"
        )
    run = _Run(victim, selection, threat, options)
    points = run.points()
    synonyms = synonyms_for(victim, threat, options.synonyms)
    figures, attempts, curves = [], [], []
    for point in points:
        options.say(f"attacking at the operating point {point.name}")
        campaign = Campaign(
            victim, run.items, point, run.clean, synonyms, options.batch_size, options.keep, options.progress
        )
        attempts.append(campaign.run(threat, run.wanted))
        figures.append(point_figures(campaign, attempts[-1], run.draws))
        if options.eps and threat.image:
            curves.append(run.curve(campaign, threat.image))
    counts = run.counts()
    lines = ",".join(str(item.row.line) for item in run.items.items)
    report = RobustnessReport(
        model=victim.card.name,
        source=source,
        task=victim.card.task,
        weights_sha256=victim.card.files.get(WEIGHTS, ""),
        policy="" if victim.by_label else victim.policy.id,
        data=selection.data.name,
        split=run.split,
        items_sha256=hashlib.sha256(f"{sha256(selection.data)} {lines}".encode()).hexdigest(),
        target="labels" if victim.by_label else "policy",
        direction=options.direction if not victim.by_label else "both",
        threat_name=threat_name,
        threat_kind=threat.kind,
        threat=threat,
        counts=counts,
        lost=run.items.details,
        points=tuple(figures),
        curves=tuple(curves),
        seed=options.seed,
        limit=options.limit,
        device=str(victim.device),
        seconds=round(time.perf_counter() - begin, 3),
        versions=versions(),
        command=options.command,
        notes=run.notes(counts["not_attackable"], [point.name for point in points]),
    )
    return Outcome(report, run.items, tuple(points), tuple(attempts))


def _check_curve(threat: Threat, eps: Sequence[float], attacks: Sequence[str]) -> None:
    """Raise BadArgumentError for a curve of a threat without such a budget, or for an unknown attack."""
    if (eps or attacks) and threat.kind != "image":
        raise BadArgumentError("`eps` is a budget on pixels, so it goes with a threat on images")
    for attack in attacks:
        if attack not in ATTACKS:
            raise BadArgumentError(f'`eps_attacks`: no attack is called "{attack}"' + close_match(attack, ATTACKS))
    largest = max(eps, default=0)
    if threat.image and threat.image.norm == "Linf" and largest > 1:
        raise BadArgumentError(f"`eps` is on pixels in [0, 1], got {largest:g}; for grey levels write {largest:g}/255")


class _Run:
    """The target of one evaluation: the items of the split with the model's logits `clean` `[N, K]`.

    `wanted` `[N]` are the items to attack, `draws` the bootstrap over them that all figures share.
    """

    def __init__(self, victim: Victim, selection: Selection, threat: Threat, options: RobustnessOptions) -> None:
        self.victim, self.selection, self.threat, self.options = victim, selection, threat, options
        self.labelling = None if victim.by_label else options.labelling
        rows = read_manifest(selection.data, selection.image_root, selection.columns)
        if self.labelling is not None:
            self.labelling.check(rows, selection.data)
        self.rows = rows if options.split is None else with_splits(rows, [victim.card], selection.data, options.say)
        self.split, rows = self._split()
        self.items, self.clean = self._judged(self._items(rows, limit=options.limit))
        unsafe = self.items.labels == 1
        if self.labelling is not None and not bool(unsafe.any()):
            raise BadDataError(
                f"{selection.data}, {self.split}: no item is unsafe by {self.labelling.text}: nothing to attack"
            )
        everything = self.labelling is None or options.direction == "both"
        self.wanted = torch.ones_like(unsafe) if everything else unsafe
        self.draws = Draws([item.group for item in self.items.items], seed=options.seed)

    def _split(self) -> tuple[str, list[Row]]:
        """The name and the rows of the split; all rows of a manifest without splits."""
        split, data = self.options.split, self.selection.data
        if split is not None and any(row.split is not None for row in self.rows):
            return split, rows_of_split(self.rows, split, data)
        if split is not None:
            self.options.say(f"{data} names no splits: all rows are attacked")
        return "all rows", self.rows

    def _items(self, rows: Sequence[Row], limit: int | None = None) -> Items:
        return read_items(rows, self.victim.card, self.selection, self.labelling, limit=limit, seed=self.options.seed)

    def _judged(self, items: Items) -> tuple[Items, Tensor]:
        """The items with finite logits, and these `[N, K]`; the others are counted as `invalid_scores`."""
        clean = self.victim.logits(items, self.options.batch_size, progress=self.options.progress)
        good = clean.isfinite().all(dim=1)
        if not good.any():
            raise BadDataError(f"{self.victim.card.name}: the logits of all {len(items)} items are NaN or infinite")
        lost = {**items.lost, "invalid_scores": int((~good).sum())}
        kept = items.take(good.nonzero()[:, 0])
        return dataclasses.replace(kept, lost=lost, details=items.details), clean[good]

    def points(self) -> list[AttackedPoint]:
        """The operating points that the options ask for; of labels their own alone."""
        which = "policy" if self.victim.by_label else self.options.points
        own = [] if which == "fpr" else [self.victim.own_point()]
        return own if which == "policy" else [*own, self._fixed_point()]

    def _fixed_point(self) -> AttackedPoint:
        """The threshold at the fixed rate, on the safe rows of the calibration split, else of the attacked rows."""
        split, fpr = self.options.threshold_split, self.options.fpr
        rows = [row for row in self.rows if row.split == split and split != self.split]
        others = self._items(rows) if rows else None
        if others is not None and bool((others.labels == 0).any()):
            where = f"split {split}"
            _, logits = self._judged(others.take((others.labels == 0).nonzero()[:, 0]))
        else:
            where = f"the attacked rows themselves ({self.split})"
            logits = self.clean[self.items.labels == 0]
            self.options.say(
                f"the split {split} has no safe rows besides the attacked ones: "
                f"the threshold at FPR {fpr:g} is found on {where}"
            )
        height = threshold_height(self.victim.heights(logits), fpr)
        point = self.victim.point_at("fpr", self.victim.threshold_at(height))
        measured = float(point.answers(logits).double().mean())
        return dataclasses.replace(
            point, fpr_target=fpr, fpr_measured=measured, calibrated_on=where, negatives=len(logits)
        )

    def curve(self, campaign: Campaign, image: ImagePart) -> Curve:
        """The shares that hold at each budget. An item that broke at a smaller one counts as broken at a larger one."""
        names = self.options.eps_attacks or tuple(one for one in image.attacks if one not in SLOW) or image.attacks
        labels = self.items.labels
        correct = (campaign.point.answers(self.clean) == labels).numpy()
        attacked = campaign.attackable(Threat(image), self.wanted).numpy()
        tells = not self.victim.by_label
        unsafe = (labels == 1).numpy() if tells else correct | True
        broken = torch.zeros(len(labels), dtype=torch.bool)
        points = []
        for value in sorted(self.options.eps):
            if value > 0:
                own = dataclasses.replace(image, eps=value, attacks=names)
                broken |= campaign.sequence(own, self.wanted & ~broken)
            hit = broken.numpy()
            points.append(
                CurvePoint(
                    value,
                    self.draws.share(correct & ~hit),
                    self.draws.share(correct & ~hit, unsafe) if tells else None,
                    self.draws.share(hit, attacked & unsafe),
                )
            )
        return Curve(campaign.point.name, image.norm, names, tuple(points))

    def counts(self) -> dict[str, int]:
        """How many items there are of each kind, and how many were left out by reason."""
        unsafe = 0 if self.victim.by_label else int((self.items.labels == 1).sum())
        return {
            "items": len(self.items),
            "unsafe": unsafe,
            "safe": 0 if self.victim.by_label else len(self.items) - unsafe,
            "not_attackable": int((~open_to(self.items, self.threat)).sum()),
            **self.items.lost,
        }

    def notes(self, not_attackable: int, points: Sequence[str]) -> tuple[str, ...]:
        """Notes that a reader of the figures needs."""
        notes = []
        card = self.victim.card
        if not_attackable:
            notes.append(
                f"{not_attackable} items lack the input that the threat changes: they were not attacked, and "
                "count as they are in every figure but the success rates."
            )
        if not self.threat.text and card.reads_text:
            notes.append("The texts beside the images were not changed.")
        if not self.threat.image and card.image is not None:
            notes.append("The images beside the texts were not changed.")
        if self.options.direction == "evade" and not self.victim.by_label:
            notes.append("Only unsafe items were attacked; safe ones count in robust accuracy as they are.")
        if self.options.keep and len(points) > 1:
            notes.append(f"The examples kept are those of the operating point {points[0]}, not of {points[1]}.")
        return tuple(notes)
