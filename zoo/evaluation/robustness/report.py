"""Everything that was measured of one model under one threat model, as one JSON that reads itself back."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.contract.card import Measurement
from zoo.errors import BadDataError
from zoo.evaluation.report import EvaluationReport
from zoo.evaluation.robustness.figures import PointFigures
from zoo.metrics import Estimate


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


@dataclass(frozen=True, config=schema.STRICT)
class RobustnessReport(EvaluationReport):
    """One model under one threat model on one set of items.

    `model` is the card's name (or the one given), `weights_sha256` that of its weights file, empty where there is none.
    `items_sha256` is of the manifest and of which rows of it were attacked: reports of the same items can be compared.
    `threat` is the threat model as its file has it, `threat_kind` what it changes. `direction` `evade` attacks unsafe
    items only. `counts`: `items` (judged and labelled), `unsafe`, `safe`, `not_attackable` (without the input that the
    threat changes; they count as they are in every figure but the success rates), and what was left out by reason.
    All intervals are 95 %: bootstrap over images, Wilson's where a share is 0 or 1.
    """

    _where = "robustness report"

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
    threat: dict[str, Any]
    counts: dict[str, int]
    lost: dict[str, str]
    points: tuple[PointFigures, ...]
    curves: tuple[Curve, ...]
    seed: int
    limit: int | None
    device: str
    seconds: float
    report: Literal["robustness"] = "robustness"
    schema_version: Literal[1] = 1
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
            raise BadDataError(f"{path}: is no robustness report (made by `zoo evaluate robustness`), but {kind!r}")
        return cls.from_dict(data, str(path))

    def measurements(self) -> list[Measurement]:
        """The worst case of each operating point as lines of a model card."""
        found = []
        for point in self.points:
            data = f"{self.data}, split {self.split}" + (f", policy {self.policy}" if self.policy else "")
            at = "" if point.fpr_target is None else f" at FPR {point.fpr_target:g}"
            named = {
                "robust_accuracy": point.worst.robust_accuracy,
                "robust_recall": point.worst.robust_recall,
                "attack_success_rate": point.worst.success_rate,
                "robust_auroc": point.worst.auroc,
            }
            for name, estimate in named.items():
                if estimate is not None and estimate.value is not None:
                    count = estimate.count
                    found.append(Measurement(name + at, estimate.value, data, count, self.command, self.budget))
        return found


def describe(threat: dict[str, Any]) -> str:
    """A threat model's budget and attacks in a few words."""
    if "image" in threat and "text" in threat:
        texts = " or ".join(describe(text) for text in threat["text"])
        return f"{describe(threat['image'])}; texts by {texts}"
    attacks = ", ".join(threat["attacks"])
    if "eps" in threat:
        return f"{threat['norm']} {eps_text(threat['eps'])} ({attacks})"
    budget = threat["budget"]
    size = f"{budget['count']}" if budget.get("count") is not None else f"{100 * budget['share']:g} % of the"
    return f"{size} {budget['unit']} ({attacks})"


def eps_text(eps: float) -> str:
    """A budget as people write it: `4/255`, or a number where it is no whole grey level."""
    levels = round(eps * 255)
    return f"{levels}/255" if levels and abs(eps * 255 - levels) < 1e-6 and eps <= 64 / 255 else f"{eps:g}"
