"""Run a release or a bundle over a labelled manifest and gather the figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic.dataclasses import dataclass
from rich.progress import track

from zoo.contract.card import Measurement
from zoo.contract.policy import AnyPolicy
from zoo.contract.verdict import Verdict
from zoo.data.manifest import Row
from zoo.errors import BadArgumentError, BadDataError
from zoo.evaluation.labelling import Labelling, items_of
from zoo.evaluation.page import NOT_JUDGED, Card, Gallery, Line, Page, Tile, histogram_chart, roc_charts
from zoo.evaluation.report import EvaluationReport
from zoo.judging.scorer import Scorer
from zoo.keys import refuse_unsigned
from zoo.metrics import FLAGGED, auroc, rates, recall_at_k
from zoo.release.store import load_release, load_scorer

#: How many items each gallery shows.
SHOWN = 18


@dataclass(frozen=True, config={"extra": "forbid"})
class Evaluation(EvaluationReport):
    """Verdicts of N items and the figures by name.

    `model` is what was given to be loaded. Item i is `verdicts[i]` with its label (1 unsafe, 0 safe, None unknown),
    unsafe score in [0, 1] (None when not judged), image and text (None without one). `threshold`, in [0, 1], is the
    policy's, where it has a single one.
    """

    data: str
    policy: str
    threshold: float | None
    verdicts: list[Verdict]
    labels: list[int | None]
    scores: list[float | None]
    images: list[Path | None]
    texts: list[str | None]
    figures: dict[str, float | int]

    def write_page(self, folder: Path) -> Path:
        """Write `report.html`, complete in itself, and `report.png` into a folder; return the path of the HTML.

        Images that were not judged safe, or are labelled unsafe, are blurred until pointed at. Raises BadInputError
        for lists of different length, another label, or a NaN score.
        """
        columns = (self.verdicts, self.labels, self.scores, self.images, self.texts)
        lengths = {len(column) for column in columns}
        if len(lengths) != 1:
            raise BadArgumentError(
                f"verdicts, labels, scores, images and texts must be of one length, got {sorted(lengths)}"
            )
        area = auroc(self.scores, self.labels)  # refuses what nothing can be computed from, before anything is written
        charts = roc_charts("ROC curve", self.verdicts, self.labels, self.scores)
        charts.append(histogram_chart("Scores by label", self.labels, self.scores, self.threshold))
        title = f"{self.verdicts[0].model if self.verdicts else self.model} on {self.data}"
        notes = {"model": self.model, "policy": self.policy, "data": self.data, "command": self.command}
        items = [_Judged(*row) for row in zip(*columns, strict=True)]
        return Page(title, notes, self._tiles(area), charts, _galleries(items)).write(folder)

    def measurements(self) -> list[Measurement]:
        """All figures, of this data under this policy."""
        data = f"{self.data}, policy {self.policy}"
        return [Measurement(k, float(v), data, len(self.verdicts), self.command) for k, v in self.figures.items()]

    def _tiles(self, area: float | None) -> list[Tile]:
        decisions = Counter(verdict.decision for verdict in self.verdicts)
        decided = [f"{decisions[one]:,} {one}" for one in ("unsafe", "review", "safe") if decisions[one]]
        reasons = Counter(verdict.status for verdict in self.verdicts if verdict.decision == "unknown")
        others = ", ".join(f"{count} {one}" for one, count in sorted(reasons.items()) if one != "unreadable")
        point = rates(self.verdicts, self.labels)
        classes = f"{point.positives:,} positives (unsafe), {point.negatives:,} negatives (safe)"
        value, note = "–", "no item has both a label and a score"
        if area is not None:
            value, note = f"{area:.4f}", classes
        elif point.positives or point.negatives:
            value, note = "undefined", f"needs both classes, but there are {classes}"
        tiles = [
            Tile("items", f"{len(self.verdicts):,}", f"judged: {', '.join(decided)}" if decided else NOT_JUDGED),
            Tile("unreadable", f"{reasons['unreadable']:,}", f"also not judged: {others}" if others else ""),
            Tile("AUROC", value, note),
        ]
        if point.tpr is not None:
            note = f"{point.true_positives:,} of {point.positives:,} unsafe flagged"
            tiles.append(Tile("TPR", f"{point.tpr:.3f}", note))
        if point.fpr is not None:
            note = f"{point.false_positives:,} of {point.negatives:,} safe flagged"
            tiles.append(Tile("FPR", f"{point.fpr:.3f}", note))
        return tiles


def evaluate(
    model: str,
    rows: list[Row],
    labelling: Labelling,
    *,
    policy: AnyPolicy | None = None,
    data: str = "",
    command: str = "",
) -> Evaluation:
    """Judge each item once (an image with several captions is one item) and compare with its label.

    Figures: `auroc` of the policy's unsafe score, `tpr` and `fpr` of its decisions, counts; `unseen_share` is of the
    judged items, for review because of what is unseen alone, which count as flagged. Raises as `load_scorer`;
    unreadable items are counted, never left out silently.
    """
    with load_scorer(model, policy) as scorer:
        items = items_of(rows, by_image=not scorer.card.reads_text)
        verdicts = judged(scorer, [item[0] for item in items], f"{data or 'the data'}: none of {len(items)} items")
        judge, reads_image = scorer.judge, scorer.card.image is not None
    labels = [labelling.label(item) for item in items]
    scores = [judge.rank(verdict) for verdict in verdicts]
    return Evaluation(
        model=model,
        command=command,
        data=data,
        policy=judge.policy_id,
        threshold=judge.threshold,
        verdicts=verdicts,
        labels=labels,
        scores=scores,
        images=[item[0].image if reads_image else None for item in items],
        texts=[item[0].text for item in items],
        figures=_figures(verdicts, labels, scores),
    )


def judged(scorer: Scorer, rows: Sequence[Row], none: str) -> list[Verdict]:
    """The verdict of each row, in order, by what the scorer's model reads of it; shows progress.

    Raises BadDataError, whose message begins with `none`, if no row could be judged.
    """
    images = [row.image for row in rows] if scorer.card.image is not None else None
    texts = [row.text for row in rows] if scorer.card.reads_text else None
    batches = track(
        scorer.stream(images, texts), "Judging", total=math.ceil(len(rows) / scorer.batch_size), transient=True
    )
    verdicts = [verdict for batch in batches for verdict in batch]
    if verdicts and all(verdict.status != "ok" for verdict in verdicts):
        first = verdicts[0]
        raise BadDataError(f"{none} could be judged; the first: {first.source}: {first.status}: {first.detail}")
    return verdicts


def retrieval(model: str, rows: list[Row]) -> dict[str, float]:
    """Recall at 1, 5 and 10 between the images and all their texts.

    Raises BadInputError for a classifier, an image that cannot be read, and rows none of which has image and text.
    """
    import torch

    from zoo.inputs.image import load
    from zoo.models.clip import DualEncoder

    refuse_unsigned(model)
    encoder = load_release(model).model
    if not isinstance(encoder, DualEncoder) or encoder.card.image is None:
        raise BadArgumentError(f"{model} has no text tower: retrieval is for zero-shot models")
    items = items_of([row for row in rows if row.image and row.text], by_image=True)
    if not items:
        raise BadDataError(f"none of {len(rows)} rows has an image and a text: no retrieval can be measured")
    image, text, owner = [], [], []
    with torch.inference_mode():
        for number, item in enumerate(items):
            assert item[0].image is not None  # filtered above
            pixels = torch.from_numpy(load(item[0].image, encoder.card.image)).permute(2, 0, 1)[None] / 255
            image.append(encoder.encode_image(pixels))
            text.append(encoder.embed_phrases(tuple(row.text for row in item if row.text)))
            owner += [number] * len(item)
    return recall_at_k(torch.cat(text) @ torch.cat(image).T, owner)


def _figures(verdicts: list[Verdict], labels: list[int | None], scores: list[float | None]) -> dict[str, float | int]:
    counted = rates(verdicts, labels)
    flagged = sum(v.decision in FLAGGED for v in verdicts)
    judged = sum(v.status == "ok" for v in verdicts)
    figures: dict[str, float | int] = {"items": len(verdicts), "unjudged": len(verdicts) - judged}
    if judged:
        figures["flagged_share"] = flagged / judged
    if unseen := sum(v.decision == "review" and v.category is None for v in verdicts):
        figures["unseen_share"] = unseen / judged
    if counted.positives + counted.negatives:
        figures |= {"positives": counted.positives, "negatives": counted.negatives}
    split = [verdict.disagreement for verdict in verdicts if verdict.disagreement is not None]
    if split:  # a panel's heads
        figures["mean_disagreement"] = sum(split) / len(split)
    named = {"auroc": auroc(scores, labels), "tpr": counted.tpr, "fpr": counted.fpr}
    return figures | {name: value for name, value in named.items() if value is not None}


class _Judged(NamedTuple):
    """One item with its verdict; an item that was not judged has no score."""

    verdict: Verdict
    label: int | None
    score: float | None
    image: Path | None
    text: str | None

    def card(self) -> Card:
        """The item on the page: blurred, unless it was judged safe and is not labelled unsafe."""
        name = Path(self.verdict.source or (str(self.image) if self.image else "")).name
        lines = {
            "category": self.verdict.category or "",
            "label": {None: "", 0: "labelled safe", 1: "labelled unsafe"}[self.label],
            "text": self.text or "",
            "detail": self.verdict.detail,
            "file": name,
        }
        shown = [Line(kind, text) for kind, text in lines.items()]
        hidden = not self.verdict.is_safe or self.label == 1
        return Card(name, self.verdict.decision, self.score, shown, self.image, hidden)


def _galleries(items: Sequence[_Judged]) -> list[Gallery]:
    ranked = sorted(items, key=lambda item: -(item.score or 0.0))
    unsafe = [item for item in ranked if item.verdict.decision == "unsafe"]
    alarms = [item for item in ranked if item.verdict.decision in FLAGGED and item.label == 0]
    missed = [item for item in reversed(ranked) if item.verdict.is_safe and item.label == 1]
    unjudged = [item for item in items if item.verdict.decision == "unknown"]
    parts = [("Most confident unsafe", "Highest score first.", unsafe)]
    if any(item.label is not None for item in items):
        parts.append(("False positives", "Labelled safe, but flagged; highest score first.", alarms))
        parts.append(("False negatives", "Labelled unsafe, but judged safe; lowest score first.", missed))
    parts.append(("Not judged", "Never called safe: each item gives the reason.", unjudged))
    return [Gallery(heading, note, [item.card() for item in own], SHOWN) for heading, note, own in parts]
