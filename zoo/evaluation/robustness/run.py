"""Attack a release on labelled items, at the policy's operating point and at a fixed false positive rate."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from zoo.adversary.text.edits import Variants
from zoo.adversary.text.model import input_embedding
from zoo.adversary.text.synonyms import Synonyms
from zoo.adversary.threat import ATTACKS, ImagePart, Threat
from zoo.data.manifest import Row
from zoo.errors import BadArgumentError, BadDataError, close_match
from zoo.evaluation.labelling import Labelling
from zoo.evaluation.report import versions
from zoo.evaluation.robustness.attacks import Attempt, Campaign, check_threat, open_to
from zoo.evaluation.robustness.figures import Counter
from zoo.evaluation.robustness.items import Items, Selection, read_items, rows_by_split
from zoo.evaluation.robustness.report import Curve, CurvePoint, PointFigures, RobustnessReport
from zoo.evaluation.robustness.victim import OperatingPoint, Victim, threshold_height
from zoo.files import sha256
from zoo.metrics import Draws
from zoo.release.store import WEIGHTS

#: Left out of a curve unless asked for: they cost many times what the others do.
SLOW = ("fab-t", "square")


def read_eps(text: str) -> tuple[float, ...]:
    """The budgets of `0,1/255,2/255`, sorted. Raises BadInputError for what is no number of at least 0."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            value = float(Fraction(part))
        except (ValueError, ZeroDivisionError):
            raise BadArgumentError(
                f'--eps: expected numbers or fractions such as 0,1/255,4/255, got "{part}"'
            ) from None
        if not (math.isfinite(value) and value >= 0):
            raise BadArgumentError(f"--eps: a budget is at least 0, got {part}")
        found.append(value)
    if not found:
        raise BadArgumentError("--eps names no budget; expected numbers or fractions such as 0,1/255,4/255")
    return tuple(sorted(set(found)))


def check_eps(threat: Threat, eps: Sequence[float], attacks: Sequence[str]) -> None:
    """Raises BadInputError for a curve of a threat that has no such budget, or for an unknown attack."""
    if (eps or attacks) and threat.kind != "image":
        raise BadArgumentError("--eps draws the budget on pixels, so it goes with a threat on images")
    for attack in attacks:
        if attack not in ATTACKS:
            raise BadArgumentError(f'--eps-attacks: no attack is called "{attack}"' + close_match(attack, ATTACKS))
    if threat.image and threat.image.norm == "Linf" and max(eps, default=0) > 1:
        raise BadArgumentError(
            f"--eps is on pixels in [0, 1], got {max(eps):g}; for grey levels write {max(eps):g}/255"
        )


def robustness_curve(
    campaign: Campaign, image: ImagePart, wanted: Tensor, draws: Draws, eps: Sequence[float], attacks: Sequence[str]
) -> Curve:
    """What holds at each budget. What broke at a smaller one is broken at a larger one, which holds it too."""
    names = tuple(attacks) or tuple(one for one in image.attacks if one not in SLOW) or image.attacks
    labels = campaign.items.labels
    correct = (campaign.point.answers(campaign.clean) == labels).numpy()
    attacked = campaign.attackable(Threat(image), wanted).numpy()
    tells = not campaign.victim.by_label
    unsafe = (labels == 1).numpy() if tells else correct | True
    broken = torch.zeros(len(labels), dtype=torch.bool)
    points = []
    for value in sorted(eps):
        if value > 0:
            own = dataclasses.replace(image, eps=value, attacks=names)
            broken |= campaign.sequence(own, wanted & ~broken)
        hit = broken.numpy()
        points.append(
            CurvePoint(
                value,
                draws.share(correct & ~hit),
                draws.share(correct & ~hit, unsafe) if tells else None,
                draws.share(hit, attacked & unsafe),
            )
        )
    return Curve(campaign.point.name, image.norm, names, tuple(points))


@dataclass(frozen=True)
class Options:
    """How a release is attacked. `limit` draws that many items by `seed`; `split` None takes all rows.

    The fixed point holds the false positive rate `fpr` on the safe rows of the split `calibrate`. `eps` asks for a
    curve, by `curve_attacks` (by default those of the threat but the slow FAB-T and Square).
    """

    labelling: Labelling = field(default_factory=Labelling)
    split: str | None = "test"
    calibrate: str = "val"
    fpr: float = 0.05
    points: Literal["policy", "fpr", "both"] = "both"
    by_label: bool = False
    direction: Literal["evade", "both"] = "evade"
    eps: tuple[float, ...] = ()
    curve_attacks: tuple[str, ...] = ()
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
    """A report with what it was made of: the items, and for each operating point its attacks."""

    report: RobustnessReport
    items: Items
    points: tuple[OperatingPoint, ...]
    attempts: tuple[list[Attempt], ...]


@dataclass(frozen=True)
class _Fixed:
    """How the threshold of a fixed false positive rate came about."""

    point: OperatingPoint
    calibrated_on: str
    measured: float
    negatives: int


def evaluate_robustness(
    victim: Victim, source: str, selection: Selection, threat: Threat, threat_name: str, options: Options
) -> Outcome:
    """Measure how a model holds against a threat model; see `RobustnessReport`.

    Raises BadInputError where the model does not read what the threat changes, where there is no unsafe item or no safe
    one to find a threshold on, and as `read_items`.
    """
    begin = time.perf_counter()
    check_threat(victim, threat)
    check_eps(threat, options.eps, options.curve_attacks)
    if options.direction == "both" and threat.text:
        raise BadArgumentError("--direction both goes with a threat on images: texts are only attacked to pass as safe")
    labelling = None if victim.by_label else options.labelling
    by_split = rows_by_split(selection)
    split, rows = _rows_of(by_split, options.split, selection.data, options.say)
    items = read_items(rows, victim.card, selection, labelling, limit=options.limit, seed=options.seed)
    items, clean = _judged(victim, items, options)
    if labelling is not None and not bool((items.labels == 1).any()):
        raise BadDataError(f"{selection.data}, {split}: no item is unsafe by {_wanted(labelling)}: nothing to attack")
    fixed = None
    if not victim.by_label and options.points != "policy":
        fixed = _fixed(victim, by_split, selection, items, clean, split, options)
    points = [] if options.points == "fpr" and fixed else [victim.own_point()]
    points += [fixed.point] if fixed else []
    draws = Draws([item.group for item in items.items], seed=options.seed)
    wanted = torch.ones(len(items), dtype=torch.bool)
    if labelling is not None and options.direction == "evade":
        wanted = items.labels == 1
    synonyms = _synonyms(victim, threat, options.synonyms)
    figures, attempts, curves = [], [], []
    for point in points:
        options.say(f"attacking at the operating point {point.name}")
        campaign = Campaign(victim, items, point, clean, synonyms, options.batch_size, options.keep, options.progress)
        found = campaign.run(threat, wanted)
        attempts.append(found)
        figures.append(_figures(victim, campaign, found, draws, fixed, options))
        if options.eps and threat.image:
            curves.append(robustness_curve(campaign, threat.image, wanted, draws, options.eps, options.curve_attacks))
    report = _report(victim, source, selection, threat, threat_name, options, split, items, figures, curves, begin)
    return Outcome(report, items, tuple(points), tuple(attempts))


def _rows_of(
    by_split: dict[str | None, list[Row]], split: str | None, data: Path, say: Callable[[str], None]
) -> tuple[str, list[Row]]:
    """The rows of a split and what it is called; of a manifest without splits all rows."""
    every = sorted((row for rows in by_split.values() for row in rows), key=lambda row: row.line)
    if split is None:
        return "all rows", every
    if set(by_split) == {None}:
        say(f"{data} names no splits: all rows are attacked")
        return "all rows", every
    if None in by_split:
        raise BadDataError(f"{data}: line {by_split[None][0].line} names no split, others do: fill the column")
    if split not in by_split:
        raise BadDataError(f'{data}: no rows of the split "{split}"; it has {sorted(map(str, by_split))}')
    return split, by_split[split]


def _judged(victim: Victim, items: Items, options: Options) -> tuple[Items, Tensor]:
    """The items whose logits are numbers, with these `[N, K]`; the others are counted as `invalid_scores`."""
    clean = victim.logits(items, options.batch_size, progress=options.progress)
    good = clean.isfinite().all(dim=1)
    lost = {**items.lost, "invalid_scores": int((~good).sum())}
    if not good.any():
        raise BadDataError(f"{victim.card.name}: the logits of all {len(items)} items are NaN or infinite")
    kept = items.take(good.nonzero()[:, 0])
    return dataclasses.replace(kept, lost=lost, details=items.details), clean[good]


def _fixed(
    victim: Victim,
    by_split: dict[str | None, list[Row]],
    selection: Selection,
    items: Items,
    clean: Tensor,
    split: str,
    options: Options,
) -> _Fixed:
    """The threshold at the fixed rate: on the safe rows of the calibration split, else on the attacked rows' own."""
    where = f"split {options.calibrate}"
    safe = items
    logits = clean
    found: Items | None = None
    if options.calibrate in by_split and options.calibrate != split:
        found = read_items(by_split[options.calibrate], victim.card, selection, options.labelling)
    if found is not None and bool((found.labels == 0).any()):
        safe, logits = _judged(victim, found.take((found.labels == 0).nonzero()[:, 0]), options)
    else:
        where = f"the attacked rows themselves ({split})"
        options.say(
            f"no safe rows in a split {options.calibrate} apart from the attacked ones: "
            f"the threshold at FPR {options.fpr:g} is found on {where}"
        )
    heights = victim.heights(logits[safe.labels == 0])
    name = "fpr"
    point = victim.point_at(name, victim.threshold_at(threshold_height(heights, options.fpr)))
    measured = float(point.answers(logits[safe.labels == 0]).double().mean())
    return _Fixed(point, where, measured, len(heights))


def _figures(
    victim: Victim, campaign: Campaign, attempts: list[Attempt], draws: Draws, fixed: _Fixed | None, options: Options
) -> PointFigures:
    point, items = campaign.point, campaign.items
    own = fixed if fixed is not None and fixed.point is point else None
    scores, after = None, []
    if not victim.by_label:
        scores = victim.heights(campaign.clean)
        after = [victim.heights(attempt.logits) for attempt in attempts if attempt.logits is not None]
    counter = Counter(items.labels.numpy(), point.answers(campaign.clean).numpy(), scores, draws)
    attacks = [counter.attacked(attempt, after[place] if after else None) for place, attempt in enumerate(attempts)]
    return PointFigures(
        point=point.name,
        threshold=point.threshold,
        fpr_target=options.fpr if own else None,
        fpr_measured=own.measured if own else None,
        calibrated_on=own.calibrated_on if own else "",
        negatives=own.negatives if own else 0,
        clean=counter.clean(),
        attacks=tuple(attacks),
        worst=counter.worst(attempts, after),
        groups=tuple(counter.groups(attempts, _columns(items))),
    )


def _columns(items: Items) -> dict[str, Sequence[Sequence[str]]]:
    """What tells items apart: the columns that were read, and their labels where these say more than unsafe or not."""
    found: dict[str, Sequence[Sequence[str]]] = {
        name: [(value,) if value else () for value in values] for name, values in items.columns.items()
    }
    labels = [item.labels for item in items.items]
    if len({name for own in labels for name in own}) > 2:
        found = {"labels": labels, **found}
    return found


def _synonyms(victim: Victim, threat: Threat, folder: Path | None) -> Variants | None:
    """Neighbours of words where the threat asks for them: of a model in a folder, else the victim's own."""
    if not any("synonyms" in part.attacks for part in threat.text):
        return None
    if folder is not None:
        return Synonyms.from_directory(folder)
    codec, embedding = victim.model.codec(), input_embedding(victim.model)
    return Synonyms.from_embedding(codec.json, embedding.weight.detach().cpu())


def _report(
    victim: Victim,
    source: str,
    selection: Selection,
    threat: Threat,
    threat_name: str,
    options: Options,
    split: str,
    items: Items,
    figures: list[PointFigures],
    curves: list[Curve],
    begin: float,
) -> RobustnessReport:
    unsafe = 0 if victim.by_label else int((items.labels == 1).sum())
    open_items = open_to(items, threat)
    counts = {
        "items": len(items),
        "unsafe": unsafe,
        "safe": 0 if victim.by_label else len(items) - unsafe,
        "not_attackable": int((~open_items).sum()),
        **items.lost,
    }
    lines = ",".join(str(item.row.line) for item in items.items)
    return RobustnessReport(
        model=victim.card.name,
        source=source,
        task=victim.card.task,
        weights_sha256=victim.card.files.get(WEIGHTS, ""),
        policy="" if victim.by_label else victim.policy.id,
        data=selection.data.name,
        split=split,
        items_sha256=hashlib.sha256(f"{sha256(selection.data)} {lines}".encode()).hexdigest(),
        target="labels" if victim.by_label else "policy",
        direction=options.direction if not victim.by_label else "both",
        threat_name=threat_name,
        threat_kind=threat.kind,
        threat=threat,
        counts=counts,
        lost=items.details,
        points=tuple(figures),
        curves=tuple(curves),
        seed=options.seed,
        limit=options.limit,
        device=str(victim.device),
        seconds=round(time.perf_counter() - begin, 3),
        versions=versions(),
        command=options.command,
        notes=_notes(victim, threat, options, counts, [point.point for point in figures]),
    )


def _wanted(labelling: Labelling) -> str:
    return f"the words {list(labelling.words)}" if labelling.words else f'the label "{labelling.positive_label}"'


def _notes(
    victim: Victim, threat: Threat, options: Options, counts: dict[str, int], points: Sequence[str]
) -> tuple[str, ...]:
    """What a reader of the figures has to know."""
    notes = []
    if counts["not_attackable"]:
        notes.append(
            f"{counts['not_attackable']} items lack the input that the threat changes: they were not attacked, and "
            "count as they are in every figure but the success rates."
        )
    if not threat.text and victim.card.reads_text:
        notes.append("The texts beside the images stand still.")
    if not threat.image and victim.card.image is not None:
        notes.append("The images beside the texts stand still.")
    if options.direction == "evade" and not victim.by_label:
        notes.append("Only unsafe items were attacked; safe ones count in robust accuracy as they are.")
    if options.keep and len(points) > 1:
        notes.append(f"The examples kept are those of the operating point {points[0]}, not of {points[1]}.")
    return tuple(notes)
