"""The figures of one operating point, clean and attacked, as plain data, and how they are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.evaluation.robustness.campaign import Attempt, Campaign, broken_by_any
from zoo.evaluation.robustness.report import AttackFigures, CleanFigures, GroupFigures, PointFigures
from zoo.metrics import Draws

#: The name of the union of all attacks, in which an item is robust only when none of them broke it.
WORST = "worst case"


def point_figures(campaign: Campaign, attempts: Sequence[Attempt], draws: Draws) -> PointFigures:
    """The figures at the operating point of a campaign, clean and under its attacks."""
    victim, point, items = campaign.victim, campaign.point, campaign.items
    scores, after = None, []
    if not victim.by_label:
        scores = victim.heights(campaign.clean)
        after = [victim.heights(attempt.logits) for attempt in attempts if attempt.logits is not None]
    counter = Counter(items.labels.numpy(), point.answers(campaign.clean).numpy(), scores, draws)
    attacks = [counter.attacked(attempt, after[place] if after else None) for place, attempt in enumerate(attempts)]
    columns: dict[str, Sequence[Sequence[str]]] = {
        name: [(value,) if value else () for value in values] for name, values in items.columns.items()
    }
    labels = [item.labels for item in items.items]
    if len({name for own in labels for name in own}) > 2:  # more than the two labels unsafe and safe
        columns = {"labels": labels, **columns}
    return PointFigures(
        point=point.name,
        threshold=point.threshold,
        fpr_target=point.fpr_target,
        fpr_measured=point.fpr_measured,
        calibrated_on=point.calibrated_on,
        negatives=point.negatives,
        clean=counter.clean(),
        attacks=tuple(attacks),
        worst=counter.worst(attempts, after),
        groups=tuple(counter.groups(attempts, columns)),
    )


class Counter:
    """Counts figures of N items at one operating point. `labels` `[N]`, `answers` `[N]` when clean, all of classes.

    `scores` `[N]` are what clean items rank by; None if classes are judged.
    """

    def __init__(
        self, labels: NDArray[np.int64], answers: NDArray[np.int64], scores: NDArray[np.float64] | None, draws: Draws
    ) -> None:
        self.labels, self.scores, self.draws = labels, scores, draws
        self.correct = answers == labels
        self.unsafe = labels == 1 if scores is not None else np.ones(len(labels), dtype=bool)

    def clean(self) -> CleanFigures:
        """The figures without attack."""
        accuracy = self.draws.share(self.correct)
        if self.scores is None:
            return CleanFigures(accuracy, None, None, None, None)
        recall = self.draws.share(self.correct, self.unsafe)
        fpr = self.draws.share(~self.correct, ~self.unsafe)
        area = self.draws.auroc(self.scores, self.labels)
        return CleanFigures(accuracy, recall, fpr, area, self.draws.average_precision(self.scores, self.labels))

    def attacked(self, attempt: Attempt, scores: NDArray[np.float64] | None) -> AttackFigures:
        """The figures under one attack, with the scores `[N]` of the attacked items."""
        broken, tried = attempt.broken.numpy(), attempt.attempted.numpy()
        right = self.correct & ~broken
        tells = self.scores is not None
        alarms = tried & ~self.unsafe
        return AttackFigures(
            attack=attempt.attack,
            attacked=int(tried.sum()),
            broken=int(broken.sum()),
            success_rate=self.draws.share(broken, tried & self.unsafe),
            false_alarm_rate=self.draws.share(broken, alarms) if tells and alarms.any() else None,
            robust_accuracy=self.draws.share(right),
            robust_recall=self.draws.share(right, self.unsafe) if tells else None,
            robust_fpr=self.draws.share(~right, ~self.unsafe) if tells else None,
            auroc=self.draws.auroc(scores, self.labels) if scores is not None else None,
            blind=int((attempt.blind & attempt.attempted).sum()),
            why_blind=attempt.why_blind,
            randomised=attempt.randomised,
            refuted=attempt.refuted,
            queries=attempt.forwards,
            gradients=attempt.backwards,
            seconds=round(attempt.seconds, 3),
        )

    def worst(self, attempts: Sequence[Attempt], scores: Sequence[NDArray[np.float64]]) -> AttackFigures:
        """The figures of the union: an item counts as broken by whichever attack broke it."""
        union = Attempt.start(WORST, attempts[0].attempted)
        union.broken = broken_by_any(attempts)
        for attempt in attempts:
            union.blind |= attempt.blind
            union.why_blind = union.why_blind or attempt.why_blind
            union.randomised |= attempt.randomised
            union.refuted += attempt.refuted
            union.forwards += attempt.forwards
            union.backwards += attempt.backwards
            union.seconds += attempt.seconds
        lowest = None
        if scores:  # an unsafe item gets its lowest score, a safe one its highest
            table = np.stack(list(scores))
            lowest = np.where(self.labels == 1, table.min(axis=0), table.max(axis=0))
        return self.attacked(union, lowest)

    def groups(self, attempts: Sequence[Attempt], columns: Mapping[str, Sequence[Sequence[str]]]) -> list[GroupFigures]:
        """The worst case by each entry of each column; `columns` hold one or more entries of each item `[N]`."""
        broken = broken_by_any(attempts).numpy()
        tried = attempts[0].attempted.numpy() & self.unsafe
        right = self.correct & ~broken
        groups = []
        for column, entries in columns.items():
            for value in sorted({value for own in entries for value in own}):
                chosen = np.array([value in own for own in entries])
                unsafe = chosen & self.unsafe
                tells = self.scores is not None
                groups.append(
                    GroupFigures(
                        column,
                        value,
                        int(chosen.sum()),
                        int(unsafe.sum()) if tells else 0,
                        self.draws.share(self.correct, chosen),
                        self.draws.share(right, chosen),
                        self.draws.share(self.correct, unsafe) if tells else None,
                        self.draws.share(right, unsafe) if tells else None,
                        self.draws.share(broken, tried & chosen),
                    )
                )
        return groups
