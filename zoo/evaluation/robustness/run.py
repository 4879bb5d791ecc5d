"""Attack a release on labelled items, at the policy's operating point and at a fixed false positive rate."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.adversary.threat import ATTACKS, ImagePart, Threat
from zoo.data.manifest import Row, read_manifest
from zoo.errors import BadArgumentError, BadDataError, close_match
from zoo.evaluation.labelling import rows_of_split, with_splits
from zoo.evaluation.robustness.campaign import Attempt, Campaign, RobustnessOptions, open_to, synonyms_for
from zoo.evaluation.robustness.report import (
    AttackFigures,
    CleanFigures,
    Curve,
    CurvePoint,
    GroupFigures,
    PointFigures,
    RobustnessReport,
)
from zoo.evaluation.robustness.victim import AttackedPoint, Items, Selection, Victim, read_items
from zoo.files.held import sha256
from zoo.files.writing import WEIGHTS
from zoo.metrics import Draws, Estimate

#: A curve excludes these attacks by default: they cost many times what the others do.
SLOW = ("fab-t", "square")


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
    _check(victim, threat, options)
    run = _Run(victim, selection, threat, options)
    points = run.points()
    synonyms = synonyms_for(victim, threat, options.synonyms)
    figures, attempts, curves = [], [], []
    for point in points:
        options.say(f"attacking at the operating point {point.at.point}")
        campaign = Campaign(victim, run.items, point, run.clean, options, synonyms)
        attempts.append(campaign.run(threat, run.wanted))
        counter = _Counter(campaign, run.draws)
        figures.append(counter.point_figures(attempts[-1]))
        if options.eps and threat.image:
            curves.append(counter.curve(threat.image, run.wanted))
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
        command=options.command,
        notes=run.notes(counts["not_attackable"], [point.at.point for point in points]),
    )
    return Outcome(report, run.items, tuple(points), tuple(attempts))


def _check(victim: Victim, threat: Threat, options: RobustnessOptions) -> None:
    """Raise BadArgumentError if the model does not read what the threat changes, or the options do not fit it."""
    card, eps = victim.card, options.eps
    if threat.image and card.image is None:
        raise BadArgumentError(f"{card.name} reads no image, which this threat changes: give a threat on texts")
    if threat.text and not card.reads_text:
        raise BadArgumentError(f"{card.name} judges no text, which this threat changes: give a threat on images")
    if options.direction == "both" and threat.text:
        raise BadArgumentError(
            "`direction` both goes with a threat on images: texts are only attacked to be judged safe"
        )
    if (eps or options.eps_attacks) and threat.kind != "image":
        raise BadArgumentError("`eps` is a budget on pixels, so it goes with a threat on images")
    for attack in options.eps_attacks:
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
            return split, rows_of_split(self.rows, split, data, self.labelling)
        if split is not None:
            self.options.say(f"{data} names no splits: all rows are attacked")
        return "all rows", self.rows

    def _items(self, rows: Sequence[Row], limit: int | None = None) -> Items:
        return read_items(rows, self.victim, self.selection, self.labelling, limit=limit, seed=self.options.seed)

    def _judged(self, items: Items) -> tuple[Items, Tensor]:
        """The items with finite logits, and these `[N, K]`; the others are counted as `invalid_scores`."""
        clean = self.victim.logits(items, self.options.batch_size, progress=self.options.progress)
        good = clean.isfinite().all(dim=1)
        if not good.any():
            raise BadDataError(f"{self.victim.card.name}: the logits of all {len(items)} items are NaN or infinite")
        lost = {**items.lost, "invalid_scores": int((~good).sum())}
        return dataclasses.replace(items.take(good.nonzero()[:, 0]), lost=lost), clean[good]

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
        return self.victim.point_at(fpr, logits, where)

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
        card, threat, options = self.victim.card, self.threat, self.options
        unsafe_only = options.direction == "evade" and not self.victim.by_label
        notes = {
            f"{not_attackable} items lack the input that the threat changes: they were not attacked, and "
            "count as they are in every figure but the success rates.": not_attackable > 0,
            "The texts beside the images were not changed.": not threat.text and card.reads_text,
            "The images beside the texts were not changed.": not threat.image and card.image is not None,
            "Only unsafe items were attacked; safe ones count in robust accuracy as they are.": unsafe_only,
            f"The examples kept are those of the operating point {points[0]}, not of {points[-1]}.": (
                options.keep and len(points) > 1
            ),
        }
        return tuple(note for note, holds in notes.items() if holds)


class _Counter:
    """Counts the figures of N items at the operating point of a campaign.

    `correct` `[N]` are those answered right when clean, `unsafe` `[N]` the unsafe ones, all of them if classes are
    judged. `tells` is whether safe and unsafe are judged, so that there are scores to rank by.
    """

    def __init__(self, campaign: Campaign, draws: Draws) -> None:
        self.campaign, self.draws, self.tells = campaign, draws, not campaign.victim.by_label
        self.labels = campaign.items.labels.numpy()
        self.correct = campaign.point.answers(campaign.clean).numpy() == self.labels
        self.unsafe = (self.labels == 1) | (not self.tells)

    def point_figures(self, attempts: Sequence[Attempt]) -> PointFigures:
        """The figures, clean and under these attacks."""
        scores = [self._scores(attempt.logits) for attempt in attempts]
        union, lowest = Attempt.union(attempts), None
        if self.tells:  # an unsafe item gets its lowest score, a safe one its highest
            table = np.array(scores)
            lowest = np.where(self.labels == 1, table.min(axis=0), table.max(axis=0))
        return PointFigures(
            **vars(self.campaign.point.at),
            clean=self._clean(self._scores(self.campaign.clean)),
            attacks=tuple(self._attacked(*pair) for pair in zip(attempts, scores, strict=True)),
            worst=self._attacked(union, lowest),
            groups=tuple(self._groups(union)),
        )

    def curve(self, image: ImagePart, wanted: Tensor) -> Curve:
        """The shares that hold at each budget. An item that broke at a smaller one counts as broken at a larger one."""
        options = self.campaign.options
        names = options.eps_attacks or tuple(one for one in image.attacks if one not in SLOW) or image.attacks
        attacked = self.campaign.attackable(Threat(image), wanted).numpy()
        broken = torch.zeros_like(wanted)
        points = []
        for value in sorted(options.eps):
            if value > 0:
                own = dataclasses.replace(image, eps=value, attacks=names)
                broken |= self.campaign.sequence(own, wanted & ~broken)
            right = self.correct & ~broken.numpy()
            success = self.draws.share(broken.numpy(), attacked & self.unsafe)
            points.append(CurvePoint(value, self.draws.share(right), self._told(right, self.unsafe), success))
        return Curve(self.campaign.point.at.point, image.norm, names, tuple(points))

    def _scores(self, logits: Tensor) -> NDArray[np.float64] | None:
        """What items `[N]` rank by."""
        return self.campaign.victim.heights(logits) if self.tells else None

    def _told(self, hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> Estimate | None:
        """A share that means nothing if classes are judged."""
        return self.draws.share(hits, among) if self.tells else None

    def _clean(self, scores: NDArray[np.float64] | None) -> CleanFigures:
        return CleanFigures(
            accuracy=self.draws.share(self.correct),
            recall=self._told(self.correct, self.unsafe),
            fpr=self._told(~self.correct, ~self.unsafe),
            auroc=None if scores is None else self.draws.auroc(scores, self.labels),
            auprc=None if scores is None else self.draws.average_precision(scores, self.labels),
        )

    def _attacked(self, attempt: Attempt, scores: NDArray[np.float64] | None) -> AttackFigures:
        broken, tried = attempt.broken.numpy(), attempt.attempted.numpy()
        right, alarms = self.correct & ~broken, tried & ~self.unsafe
        return AttackFigures(
            attack=attempt.attack,
            attacked=int(tried.sum()),
            broken=int(broken.sum()),
            success_rate=self.draws.share(broken, tried & self.unsafe),
            false_alarm_rate=self.draws.share(broken, alarms) if alarms.any() else None,
            robust_accuracy=self.draws.share(right),
            robust_recall=self._told(right, self.unsafe),
            robust_fpr=self._told(~right, ~self.unsafe),
            auroc=None if scores is None else self.draws.auroc(scores, self.labels),
            blind=int((attempt.blind & attempt.attempted).sum()),
            why_blind=attempt.why_blind,
            randomised=attempt.randomised,
            refuted=attempt.cost["refuted"],
            queries=attempt.cost["queries"],
            gradients=attempt.cost["gradients"],
            seconds=round(attempt.seconds, 3),
        )

    def _groups(self, worst: Attempt) -> Iterator[GroupFigures]:
        """The worst case by label, where there are more than unsafe and safe, and by each entry of each column."""
        items = self.campaign.items
        entries: dict[str, list[tuple[str, ...]]] = {"labels": [item.labels for item in items.items]}
        if len({name for own in entries["labels"] for name in own}) <= 2:
            del entries["labels"]
        entries |= {name: [(item.row.record[name],) for item in items.items] for name in items.columns}
        broken = worst.broken.numpy()
        right, tried = self.correct & ~broken, worst.attempted.numpy() & self.unsafe
        for column, named in entries.items():
            for value in sorted({value for own in named for value in own if value}):
                chosen = np.array([value in own for own in named])
                unsafe = chosen & self.unsafe
                yield GroupFigures(
                    column=column,
                    value=value,
                    items=int(chosen.sum()),
                    unsafe=int(unsafe.sum()) if self.tells else 0,
                    accuracy=self.draws.share(self.correct, chosen),
                    robust_accuracy=self.draws.share(right, chosen),
                    recall=self._told(self.correct, unsafe),
                    robust_recall=self._told(right, unsafe),
                    success_rate=self.draws.share(broken, tried & chosen),
                )
