"""Figures of a guarded and an unguarded run: rates with intervals, the detector alone, agreement, overhead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.errors import BadArgumentError
from zoo.evaluation.guard.run import GuardOutcome, Overhead, Reply, ratios
from zoo.evaluation.report import EvaluationReport
from zoo.metrics import Draws, Interval, wilson


@dataclass(frozen=True)
class Agreement:
    """How two raters agree on n items: share in [0, 1], and Cohen's kappa, None where chance alone agrees fully."""

    items: int
    share: float
    kappa: float | None


@dataclass(frozen=True)
class Rate:
    """A share of trials in [0, 1] (None without any), its Wilson interval, and one by bootstrap over images."""

    successes: int
    trials: int
    value: float | None
    wilson: Interval | None
    by_image: Interval | None


@dataclass(frozen=True)
class Compared:
    """One rate without and with the guard on the same queries; `difference` on - off, `interval` by image."""

    off: Rate
    on: Rate
    difference: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Refusals:
    """Refusals as one rater counts them: of unsafe images (`dsr`) and of neutral ones (`fpr`), always both."""

    rater: str
    dsr: Compared
    fpr: Compared


@dataclass(frozen=True)
class DetectorFigures:
    """The detector's verdicts on each image once. `auroc` in [0, 1], None if a class is missing."""

    tpr: Rate
    fpr: Rate
    auroc: float | None
    auroc_interval: Interval | None


@dataclass(frozen=True)
class GuardFigures:
    """All figures of a report.

    `counts` are of queries and images (`silent`: the answer has no words; `unseen`: for review because of what the
    vision tower was not given alone); `refusals` by the rules and, if asked, a judge. `unchanged` counts the unflagged
    queries whose two answers are the same to the letter, of `unflagged` ones: the guard promises that all are.
    `overhead` is on neutral images that were not flagged, where both sides do the same work.
    """

    counts: dict[str, int]
    refusals: list[Refusals]
    agreement: Agreement | None
    detector: DetectorFigures
    overhead: list[Overhead]
    unflagged: int
    unchanged: int


@dataclass(frozen=True, config=schema.STRICT)
class GuardReport(EvaluationReport):
    """The figures, the setting they were measured in, and every outcome that they count."""

    setting: dict[str, Any]
    figures: GuardFigures
    outcomes: list[GuardOutcome]

    @property
    def about(self) -> dict[str, str]:
        """The command and the setting as people read them, without what was not set."""
        setting = {"command": self.command, **self.setting}
        return {key: str(value) for key, value in setting.items() if value not in (None, "")}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "schema_version": 1,
            "setting": {"command": self.command, **self.setting},
            "versions": self.versions,
            "figures": asdict(self.figures),
            "rows": [_row(outcome) for outcome in self.outcomes],
        }


def figures(outcomes: Sequence[GuardOutcome], *, seed: int = 0) -> GuardFigures:
    """All figures of a run; `seed` is the bootstrap's. A query without a label counts in `counts` alone."""
    answered = [outcome for outcome in outcomes if outcome.status == "ok"]
    raters: dict[str, Callable[[Reply], bool]] = {"rules": lambda side: side.refused}
    sides = [side for outcome in answered for side in _sides(outcome)]
    judged = bool(sides) and all(side.judged is not None for side in sides)
    if judged:
        raters["judge"] = lambda side: (side.judged or 0.0) > 0
    quiet = [outcome for outcome in answered if not outcome.flagged]
    pairs = [
        (outcome.off.latency, outcome.on.latency)
        for outcome in quiet
        if outcome.query.label == 0 and outcome.off and outcome.on and outcome.off.latency and outcome.on.latency
    ]
    return GuardFigures(
        _counts(outcomes),
        [_refusals(name, answered, refused, seed) for name, refused in raters.items()],
        agreement(*[[refused(side) for side in sides] for refused in raters.values()]) if judged else None,
        _detector(answered, seed),
        ratios(pairs),
        len(quiet),
        sum(len({side.text for side in _sides(outcome)}) == 1 for outcome in quiet),
    )


def agreement(first: Sequence[bool], second: Sequence[bool]) -> Agreement | None:
    """How far two raters of the same items agree, with Cohen's kappa (1960); None without items.

    Raises BadInputError for lists of different length.
    """
    if len(first) != len(second):
        raise BadArgumentError(f"{len(first)} and {len(second)} ratings: rating i of both lists belongs to item i")
    count = len(first)
    if not count:
        return None
    same = sum(a == b for a, b in zip(first, second, strict=True)) / count
    share_first, share_second = sum(first) / count, sum(second) / count
    chance = share_first * share_second + (1 - share_first) * (1 - share_second)
    return Agreement(count, same, None if chance == 1 else (same - chance) / (1 - chance))


def _refusals(name: str, answered: Sequence[GuardOutcome], refused: Callable[[Reply], bool], seed: int) -> Refusals:
    def compared(label: int) -> Compared:
        chosen = [outcome for outcome in answered if outcome.query.label == label]
        images = [str(outcome.query.image) for outcome in chosen]
        off = [outcome.off is not None and refused(outcome.off) for outcome in chosen]
        on = [outcome.blocked or (outcome.on is not None and refused(outcome.on)) for outcome in chosen]
        draws = Draws(images, seed=seed)
        change = draws.mean(np.array(on, dtype=np.float64) - np.array(off, dtype=np.float64))
        return Compared(_rate(off, draws), _rate(on, draws), change.value, change.interval)

    return Refusals(name, compared(1), compared(0))


def _rate(hits: Sequence[bool], draws: Draws) -> Rate:
    share = draws.mean(hits)
    return Rate(sum(hits), len(hits), share.value, wilson(sum(hits), len(hits)), share.interval)


def _detector(answered: Sequence[GuardOutcome], seed: int) -> DetectorFigures:
    images = {str(o.query.image): o for o in answered if o.query.label is not None and o.score is not None}
    scores = np.array([outcome.score for outcome in images.values()], dtype=np.float64)
    labels = np.array([outcome.query.label for outcome in images.values()], dtype=np.int64)
    area = Draws(list(images), seed=seed).auroc(scores, labels)
    flags = {label: [o.flagged for o in images.values() if o.query.label == label] for label in (0, 1)}
    tpr, fpr = (_rate(flags[label], Draws(range(len(flags[label])), seed=seed)) for label in (1, 0))
    return DetectorFigures(tpr, fpr, area.value, area.interval)


def _counts(outcomes: Sequence[GuardOutcome]) -> dict[str, int]:
    answered = [outcome for outcome in outcomes if outcome.status == "ok"]
    statuses, labels = Counter(outcome.status for outcome in outcomes), Counter(o.query.label for o in answered)
    return {
        "queries": len(outcomes),
        "answered": len(answered),
        "unreadable": statuses["unreadable"],
        "guard_failed": statuses["guard_failed"],
        "images": len({outcome.query.image for outcome in answered}),
        "unsafe": labels[1],
        "neutral": labels[0],
        "unlabelled": labels[None],
        "flagged": sum(outcome.flagged for outcome in answered),
        "unseen": sum(not (o.flagged or o.verdict is None or o.verdict.is_safe) for o in answered),
        "corrected": sum(outcome.corrected for outcome in answered),
        "blocked": sum(outcome.blocked for outcome in answered),
        "silent_off": sum(outcome.off is not None and not outcome.off.text for outcome in answered),
        "silent_on": sum(outcome.on is not None and not outcome.on.text for outcome in answered),
    }


def _row(outcome: GuardOutcome) -> dict[str, Any]:
    plain = asdict(outcome)
    plain.update(plain.pop("query"))
    plain["image"] = str(outcome.query.image) if outcome.query.image else None
    plain["verdict"] = outcome.verdict.to_dict() if outcome.verdict else None
    return plain


def _sides(outcome: GuardOutcome) -> list[Reply]:
    """The answers that the language model gave."""
    return [side for side in (outcome.off, None if outcome.blocked else outcome.on) if side is not None]
