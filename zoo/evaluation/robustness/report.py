"""The report about one model under one threat: one JSON file that can be read back, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass
from rich.table import Table

from zoo.adversary.threat import TextPart, Threat
from zoo.contract import schema
from zoo.contract.card import Measurement
from zoo.errors import BadDataError, quoted
from zoo.evaluation.report import EvaluationReport, plain_console, plain_table, shown
from zoo.metrics import Estimate


@dataclass(frozen=True, config=schema.STRICT)
class CleanFigures:
    """Without attack. `recall` (TPR) and `fpr` of the decisions; `auroc` and `auprc` of the unsafe score.

    All but `accuracy` are None if classes are judged instead of safe and unsafe.
    """

    accuracy: Estimate
    recall: Estimate | None
    fpr: Estimate | None
    auroc: Estimate | None
    auprc: Estimate | None


@dataclass(frozen=True, config=schema.STRICT)
class AttackFigures:
    """Under one attack, or under the worst of all for each item.

    `success_rate` is the share of broken items among the attacked ones, which are the unsafe ones that are flagged
    when clean (of classes: those with the right answer). `false_alarm_rate` is the share of safe items that an attack
    gets flagged, None if no safe item was attacked. `robust_*` are over all items (of a kind): right when clean and
    under attack.
    `auroc` is of the unsafe scores under attack: an upper bound, because an attack may stop where it succeeds.
    `blind` counts items without a gradient, `refuted` successes that a second look did not confirm (they count as
    none), `queries` what the model judged, `gradients` what it was differentiated for.
    """

    attack: str
    attacked: int
    broken: int
    success_rate: Estimate
    false_alarm_rate: Estimate | None
    robust_accuracy: Estimate
    robust_recall: Estimate | None
    robust_fpr: Estimate | None
    auroc: Estimate | None
    blind: int
    why_blind: str
    randomised: bool
    refuted: int
    queries: int
    gradients: int
    seconds: float


@dataclass(frozen=True, config=schema.STRICT)
class GroupFigures:
    """Items of one kind: those with the label, or the entry `value` in a `column` of the manifest; the worst case."""

    column: str
    value: str
    items: int
    unsafe: int
    accuracy: Estimate
    robust_accuracy: Estimate
    recall: Estimate | None
    robust_recall: Estimate | None
    success_rate: Estimate


@dataclass(frozen=True, config=schema.STRICT)
class DecisionPoint:
    """Where a model decides: `policy` (its own thresholds), `fpr` (one threshold) or `labels` (the highest class).

    `threshold` on the unsafe score was found on `calibrated_on`, at a rate of `fpr_target`, and flags the share
    `fpr_measured` of the `negatives` there.
    """

    point: str
    threshold: float | None = None
    fpr_target: float | None = None
    fpr_measured: float | None = None
    calibrated_on: str = ""
    negatives: int = 0


@dataclass(frozen=True, kw_only=True, config=schema.STRICT)
class PointFigures(DecisionPoint):
    """The figures at one operating point."""

    clean: CleanFigures
    attacks: tuple[AttackFigures, ...]
    worst: AttackFigures
    groups: tuple[GroupFigures, ...]


@dataclass(frozen=True, config=schema.STRICT)
class CurvePoint:
    """At one budget `eps`, under all attacks of the curve up to it."""

    eps: float
    robust_accuracy: Estimate
    robust_recall: Estimate | None
    success_rate: Estimate | None


@dataclass(frozen=True, config=schema.STRICT)
class Curve:
    """Robustness against the budget of an image threat at one operating point, by these `attacks` alone."""

    point: str
    norm: str
    attacks: tuple[str, ...]
    points: tuple[CurvePoint, ...]


def _read_threat(data: object) -> object:
    """A threat of any version that is read."""
    return Threat.from_dict(data) if isinstance(data, Mapping) else data


@dataclass(frozen=True, config=schema.STRICT)
class RobustnessReport(EvaluationReport):
    """One model under one threat model on one set of items.

    `model` is the card's name (or the one given), `weights_sha256` that of its weights file, empty without one.
    `items_sha256` is of the manifest and of which rows of it were attacked: reports of the same items can be compared.
    `threat` is the threat model as its file has it, `threat_kind` what it changes. `direction` `evade` attacks unsafe
    items only. `counts`: `items` (judged and labelled), `unsafe`, `safe`, `not_attackable` (without the input that the
    threat changes; they count as they are in every figure but the success rates), and what was left out by reason.
    All intervals are 95 %: bootstrap over images, Wilson's where a share is 0 or 1.
    """

    _where, _reads = "robustness report", (1,)

    source: str
    task: str
    policy: str
    data: str
    split: str
    items_sha256: str
    target: Literal["policy", "labels"]
    direction: Literal["evade", "both"]
    threat_name: str
    threat_kind: Literal["image", "text", "joint"]
    threat: Annotated[Threat, BeforeValidator(_read_threat)]
    counts: dict[str, int]
    lost: dict[str, str]
    points: tuple[PointFigures, ...]
    curves: tuple[Curve, ...]
    seed: int
    limit: int | None
    device: str
    seconds: float
    report: Literal["robustness"] = "robustness"
    schema_version: schema.VersionTwo = 2
    notes: tuple[str, ...] = field(default=())

    @property
    def budget(self) -> str:
        """The threat in a few words: `linf4: Linf 0.01569, apgd-ce, apgd-t`."""
        return f"{self.threat_name}: {describe(self.threat)}"

    @property
    def file_stem(self) -> str:
        """`MODEL__THREAT`."""
        return f"{super().file_stem}__{self.threat_name}"

    @classmethod
    def read(cls, path: Path) -> RobustnessReport:
        """Read a report. Raises BadInputError (missing, no JSON, another kind of file) or BadCardError."""
        data = schema.read_json(path)
        kind = data.get("report") if isinstance(data, dict) else None
        if kind != "robustness":
            raise BadDataError(
                f"{path}: not a robustness report (made by `zoo evaluate robustness`), but {quoted(kind)}"
            )
        return cls.from_dict(data, str(path))

    def measurements(self) -> list[Measurement]:
        """The worst case of each operating point as lines of a model card."""
        data = f"{self.data}, split {self.split}" + (f", policy {self.policy}" if self.policy else "")
        lines = []
        for point in self.points:
            at = "" if point.fpr_target is None else f" at FPR {point.fpr_target:g}"
            figures = {
                f"robust_accuracy{at}": point.worst.robust_accuracy,
                f"robust_recall{at}": point.worst.robust_recall,
                f"attack_success_rate{at}": point.worst.success_rate,
                f"robust_auroc{at}": point.worst.auroc,
            }
            lines += self.lines(figures, data, self.budget)
        return lines


def describe(threat: Threat) -> str:
    """A threat's budgets and attacks in a few words."""
    image = threat.image
    texts = " or ".join(map(_describe_text, threat.text))
    if image is None:
        return texts
    pixels = f"{image.norm} {eps_text(image.eps)} ({', '.join(image.attacks)})"
    return f"{pixels}; texts by {texts}" if texts else pixels


def _describe_text(part: TextPart) -> str:
    budget = part.budget
    size = f"{budget.count}" if budget.count is not None else f"{100 * budget.share:g} % of the"
    return f"{size} {budget.unit} ({', '.join(part.attacks)})"


def eps_text(eps: float) -> str:
    """A budget as people write it: `4/255`, or a number for a part of a grey level."""
    levels = round(eps * 255)
    return f"{levels}/255" if levels and abs(eps * 255 - levels) < 1e-6 and eps <= 64 / 255 else f"{eps:g}"


def print_report(report: RobustnessReport) -> None:
    """Print everything: what was attacked, a table for each operating point, what has to be known of it."""
    console = plain_console()
    console.print(f"{report.model} on {report.data}, {report.split}, policy {report.policy or '- (its own labels)'}")
    console.print(f"threat {report.budget}; all figures in %, in brackets 95 % intervals")
    console.print(", ".join(f"{count:,} {name}" for name, count in report.counts.items() if count))
    for point in report.points:
        console.print(_point(point))
        if point.groups:
            console.print(_groups(point))
    for curve in report.curves:
        console.print(_curve(curve))
    for note in [*report.notes, *warnings(report)]:
        console.print(note)
    for reason, detail in report.lost.items():
        console.print(f"left out, {reason}: {report.counts.get(reason, 0)}; the first: {detail}")


def warnings(report: RobustnessReport) -> list[str]:
    """Reasons to trust the figures less: no gradients, chance, refuted successes."""
    lines = []
    for point in report.points:
        for attack in point.attacks:
            where = f"{attack.attack} at {point.point}"
            if attack.blind:
                why = f" ({attack.why_blind})" if attack.why_blind else ""
                lines.append(
                    f"{where}: no gradient on {attack.blind} of {attack.attacked} items{why}; the attack went on "
                    "without one, so the robustness there may be an illusion"
                )
            if attack.randomised:
                lines.append(f"{where}: two passes of the model differ, so that successes are partly luck")
            if attack.refuted:
                lines.append(f"{where}: {attack.refuted} successes did not hold on a second look and count as none")
    return lines


def title(point: PointFigures) -> str:
    """An operating point in words."""
    if point.fpr_target is not None and point.threshold is not None:
        measured = "" if point.fpr_measured is None else f", {100 * point.fpr_measured:.1f} % measured"
        basis = f"{point.negatives} safe items of {point.calibrated_on}{measured}"
        return f"at a false positive rate of {100 * point.fpr_target:g} % (threshold {point.threshold:.6g}, by {basis})"
    return "at the policy's own operating point" if point.point == "policy" else "by the highest label"


def _point(point: PointFigures) -> Table:
    """The clean figures as the title, then a row for each attack; columns without any figure are left out."""
    rows = [*point.attacks, *([point.worst] if len(point.attacks) > 1 else [])]
    columns = {
        "attack": [one.attack for one in rows],
        "robust\naccuracy": [shown(one.robust_accuracy) for one in rows],
        "robust\nrecall": [shown(one.robust_recall) for one in rows],
        "attack\nsuccess": [shown(one.success_rate) for one in rows],
        "of": [str(one.success_rate.count) for one in rows],
        "FPR": [shown(one.robust_fpr if one.false_alarm_rate else None) for one in rows],
        "false\nalarms": [shown(one.false_alarm_rate) for one in rows],
        "AUROC": [shown(one.auroc, ends=None) for one in rows],
        "queries": [f"{one.queries:,}" for one in rows],
    }
    columns = {name: cells for name, cells in columns.items() if set(cells) != {"-"}}
    return plain_table(f"{title(point)}\n{_clean(point)}", list(columns), zip(*columns.values(), strict=True))


def _clean(point: PointFigures) -> str:
    clean = point.clean
    named = {"accuracy": clean.accuracy, "recall": clean.recall, "FPR": clean.fpr, "AUROC": clean.auroc}
    named["AUPRC"] = clean.auprc
    return "clean: " + ", ".join(f"{name} {shown(figure)}" for name, figure in named.items() if figure)


def _groups(point: PointFigures) -> Table:
    names = ("", "items", "accuracy", "robust accuracy", "recall", "robust recall", "attack success")
    rows = []
    for group in point.groups:
        figures = (group.accuracy, group.robust_accuracy, group.recall, group.robust_recall, group.success_rate)
        rows.append((f"{group.column} = {group.value}", str(group.items), *map(shown, figures)))
    return plain_table("worst case by kind of item", names, rows, wrap=True)


def _curve(curve: Curve) -> Table:
    names = (f"{curve.norm} eps", "robust accuracy", "robust recall", "attack success")
    rows = []
    for at in curve.points:
        figures = (at.robust_accuracy, at.robust_recall, at.success_rate)
        rows.append(("0" if not at.eps else eps_text(at.eps), *map(shown, figures)))
    return plain_table(f"against the budget, {curve.point}, by {', '.join(curve.attacks)}", names, rows, wrap=True)
