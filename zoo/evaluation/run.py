"""Run a release or a bundle over a labelled manifest and gather the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic.dataclasses import dataclass
from rich.progress import Progress

from zoo.contract.card import Measurement
from zoo.contract.policy import AnyPolicy
from zoo.contract.verdict import Verdict
from zoo.data.manifest import Row
from zoo.errors import BadArgumentError, BadDataError
from zoo.evaluation.labelling import Labelling, items_of
from zoo.evaluation.page import (
    PLAIN_COLOUR,
    SAFE_COLOUR,
    UNSAFE_COLOUR,
    Card,
    Chart,
    Gallery,
    Line,
    Page,
    Tile,
    draw_roc,
)
from zoo.evaluation.report import EvaluationReport, versions
from zoo.judging.scorer import Scorer
from zoo.metrics import FLAGGED, auroc, rates, recall_at_k, scored_pairs
from zoo.release.store import load_release, load_scorer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        charts = [Chart("Scores by label", self._draw_histogram)]
        if area is not None:
            charts.insert(
                0, Chart("ROC curve", lambda axes: draw_roc(axes, self.verdicts, self.labels, self.scores, area))
            )
        title = f"{self.verdicts[0].model if self.verdicts else self.model} on {self.data}"
        notes = {"model": self.model, "policy": self.policy, "data": self.data, "command": self.command}
        items = [_Judged(*row) for row in zip(*columns, strict=True)]
        return Page(title, notes, self._tiles(area), charts, _galleries(items)).write(folder)

    def measurements(self) -> list[Measurement]:
        """All figures, of this data under this policy."""
        data = f"{self.data}, policy {self.policy}"
        return [Measurement(k, float(v), data, len(self.verdicts), self.command) for k, v in self.figures.items()]

    def _tiles(self, area: float | None) -> list[Tile]:
        unknown = [verdict.status for verdict in self.verdicts if verdict.decision == "unknown"]
        others = ", ".join(f"{unknown.count(one)} {one}" for one in sorted(set(unknown)) if one != "unreadable")
        counts = {
            decision: sum(v.decision == decision for v in self.verdicts) for decision in ("unsafe", "review", "safe")
        }
        decided = [f"{count:,} {decision}" for decision, count in counts.items() if count]
        judged = f"judged: {', '.join(decided)}" if decided else "no item was judged"
        tiles = [
            Tile("items", f"{len(self.verdicts):,}", judged),
            Tile("unreadable", f"{unknown.count('unreadable'):,}", f"also not judged: {others}" if others else ""),
        ]
        kept = [label for _, label in scored_pairs(self.scores, self.labels)]
        positives, negatives = kept.count(1), kept.count(0)
        classes = f"{positives:,} positives (unsafe), {negatives:,} negatives (safe)"
        if area is not None:
            tiles.append(Tile("AUROC", f"{area:.4f}", classes))
        elif kept:
            tiles.append(Tile("AUROC", "undefined", f"needs both classes, but there are {classes}"))
        else:
            tiles.append(Tile("AUROC", "–", "no item has both a label and a score"))
        point = rates(self.verdicts, self.labels)
        if point.tpr is not None:
            tiles.append(
                Tile("TPR", f"{point.tpr:.3f}", f"{point.true_positives:,} of {point.positives:,} unsafe flagged")
            )
        if point.fpr is not None:
            tiles.append(
                Tile("FPR", f"{point.fpr:.3f}", f"{point.false_positives:,} of {point.negatives:,} safe flagged")
            )
        return tiles

    def _draw_histogram(self, axes: Axes) -> None:
        kinds = ((0, "labelled safe", SAFE_COLOUR, "//"), (1, "labelled unsafe", UNSAFE_COLOUR, "\\\\"))
        drawn = False
        for label, name, colour, hatch in (*kinds, (None, "no label", PLAIN_COLOUR, "..")):
            values = [
                score for score, own in zip(self.scores, self.labels, strict=True) if score is not None and own == label
            ]
            if values:
                counts, edges = np.histogram(np.clip(values, 0.0, 1.0), bins=40, range=(0.0, 1.0))
                legend = f"{name} ({len(values):,})"
                axes.stairs(counts, edges, fill=True, fc=(colour, 0.35))
                # Drawn apart: an SVG fills the pattern of a hatch with the colour behind it.
                axes.stairs(counts, edges, fill=True, fc="none", ec=colour, hatch=hatch, label=legend)
                drawn = True
        if self.threshold is not None and drawn:
            legend = f"threshold {self.threshold:.3g}"
            axes.axvline(self.threshold, color="black", linestyle="--", linewidth=1.8, label=legend)
        if drawn:
            axes.set_yscale("symlog", linthresh=10)  # a few mistakes stay visible beside thousands of right answers
            axes.yaxis.set_major_formatter("{x:,.0f}")
        else:
            axes.text(0.5, 0.5, "no item was judged", ha="center", va="center", transform=axes.transAxes, fontsize=14)
            axes.set_yticks([])
        axes.set(xlim=(-0.01, 1.01), title="Scores", xlabel="unsafe score (0 to 1)")
        axes.set(ylabel="items per bin (linear to 10, then logarithmic)")
        if drawn:
            axes.legend(loc="upper center")


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

    Figures: `auroc` of the policy's unsafe score, `tpr` and `fpr` of its decisions, counts. Raises as
    `load_scorer`; unreadable items are counted, never left out silently.
    """
    with load_scorer(model, policy) as scorer:
        items = items_of(rows, by_image=not scorer.card.reads_text)
        verdicts = judged(scorer, [item[0] for item in items])
        judge, reads_image = scorer.judge, scorer.card.image is not None
    if verdicts and all(verdict.status != "ok" for verdict in verdicts):
        first = verdicts[0]
        raise BadDataError(
            f"{data or 'the data'}: none of {len(verdicts)} items could be judged; the first: {first.source}: "
            f"{first.status}: {first.detail}"
        )
    labels = [labelling.label(item) for item in items]
    scores = [judge.rank(verdict) for verdict in verdicts]
    return Evaluation(
        model=model,
        command=command,
        versions=versions(),
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


def judged(scorer: Scorer, rows: Sequence[Row]) -> list[Verdict]:
    """The verdict of each row, in order, by what the scorer's model reads of it; shows progress."""
    images = [row.image for row in rows] if scorer.card.image is not None else None
    texts = [row.text for row in rows] if scorer.card.reads_text else None
    verdicts: list[Verdict] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("Judging", total=len(rows))
        for batch in scorer.stream(images, texts):
            verdicts += batch
            progress.advance(task, len(batch))
    return verdicts


def retrieval(model: str, rows: list[Row]) -> dict[str, float]:
    """Recall at 1, 5 and 10 between the images and all their texts. Raises BadInputError for a classifier."""
    import torch

    from zoo.inputs.image import load
    from zoo.models.clip import DualEncoder

    encoder = load_release(model).model
    if not isinstance(encoder, DualEncoder) or encoder.card.image is None:
        raise BadArgumentError(f"{model} has no text tower: retrieval is for zero-shot models")
    items = items_of([row for row in rows if row.image and row.text], by_image=True)
    image, text, owner = [], [], []
    codec = encoder.codec()
    with torch.inference_mode():
        for number, item in enumerate(items):
            assert item[0].image is not None  # filtered above
            pixels = torch.from_numpy(load(item[0].image, encoder.card.image)).permute(2, 0, 1)[None] / 255
            image.append(encoder.encode_image(pixels))
            tokens = codec.encode([row.text for row in item if row.text])
            text.append(encoder.encode_text(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)))
            owner += [number] * len(tokens.ids)
    return recall_at_k(torch.cat(text) @ torch.cat(image).T, owner)


def _figures(verdicts: list[Verdict], labels: list[int | None], scores: list[float | None]) -> dict[str, float | int]:
    counted = rates(verdicts, labels)
    flagged = sum(v.decision in FLAGGED for v in verdicts)
    judged = sum(v.status == "ok" for v in verdicts)
    figures: dict[str, float | int] = {"items": len(verdicts), "unjudged": len(verdicts) - judged}
    if judged:
        figures["flagged_share"] = flagged / judged
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
