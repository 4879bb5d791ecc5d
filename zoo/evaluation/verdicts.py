"""Run a release or a bundle over a labelled manifest and gather the figures."""

from __future__ import annotations

from pathlib import Path

from pydantic.dataclasses import dataclass
from rich.progress import Progress

from zoo.contract import schema
from zoo.contract.card import Measurement
from zoo.contract.panel import AnyPolicy
from zoo.contract.verdict import Verdict
from zoo.data.manifest import Row
from zoo.errors import BadInputError
from zoo.evaluation.labelling import Labelling, items_of
from zoo.evaluation.page import write_report
from zoo.evaluation.report import Report, versions
from zoo.metrics import FLAGGED, auroc, rates, recall_at_k
from zoo.release.load import load_release, load_scorer


@dataclass(frozen=True, config=schema.STRICT)
class Evaluation(Report):
    """Verdicts of N items with their labels, unsafe scores in [0, 1], images and texts, and the figures by name.

    `model` is what was given to be loaded. `threshold` is the policy's, where it has a single one.
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
        """Write report.html and report.png into a folder; returns the path of the former."""
        return write_report(
            folder,
            title=f"{self.verdicts[0].model if self.verdicts else self.model} on {self.data}",
            verdicts=self.verdicts,
            labels=self.labels,
            scores=self.scores,
            images=self.images,
            texts=self.texts,
            threshold=self.threshold,
            notes={"model": self.model, "policy": self.policy, "data": self.data, "command": self.command},
        )

    def measurements(self) -> list[Measurement]:
        """All figures, of this data under this policy."""
        data = f"{self.data}, policy {self.policy}"
        return [Measurement(k, float(v), data, len(self.verdicts), self.command) for k, v in self.figures.items()]


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
        images = [item[0].image if scorer.card.image else None for item in items]
        texts = [item[0].text if scorer.card.reads_text else None for item in items]
        verdicts: list[Verdict] = []
        with Progress(transient=True) as progress:
            task = progress.add_task("Judging", total=len(items))
            for batch in scorer.stream(images, texts if scorer.card.reads_text else None):
                verdicts += batch
                progress.advance(task, len(batch))
        judge = scorer.judge
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
        images=list(images),
        texts=[item[0].text for item in items],
        figures=_figures(verdicts, labels, scores),
    )


def retrieval(model: str, rows: list[Row]) -> dict[str, float]:
    """Recall at 1, 5 and 10 between the images and all their texts. Raises BadInputError for a classifier."""
    import torch

    from zoo.inputs.image import load
    from zoo.models.dual_encoder import DualEncoder

    encoder = load_release(model).model
    if not isinstance(encoder, DualEncoder) or encoder.card.image is None:
        raise BadInputError(f"{model} has no text tower: retrieval is for zero-shot models")
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
