"""Run a release or a bundle over a labelled manifest and gather the figures."""

from __future__ import annotations

import re
import shlex
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from zoo.contract.card import Measurement, ModelCard
from zoo.contract.panel import AnyPolicy
from zoo.contract.verdict import Verdict
from zoo.data.manifest import Row, read_manifest, read_records
from zoo.errors import BadInputError
from zoo.metrics import FLAGGED, auroc, rates, recall_at_k
from zoo.release.load import load_release, load_scorer
from zoo.release.store import CARD, write_card


@dataclass(frozen=True)
class Labelling:
    """What makes an item unsafe: one of its labels is `positive_label`, or a text of it has one of `words`.

    An item without labels is not known, unless the manifest says that the label was looked for (`judged`), or
    `lists` them: an empty list names none.
    """

    positive_label: str = "1"
    words: tuple[str, ...] = ()
    lists: bool = False

    def label(self, rows: list[Row]) -> int | None:
        """1 unsafe, 0 safe, None not known, for the rows of one item."""
        if self.words:
            pattern = re.compile(rf"\b({'|'.join(map(re.escape, self.words))})\b", re.IGNORECASE)
            return int(any(pattern.search(row.text or "") for row in rows))
        labels = [label for row in rows for label in row.labels]
        judged = [row.judged for row in rows if row.judged is not None]
        known = any(self.positive_label in names for names in judged) if judged else labels or self.lists
        return 1 if self.positive_label in labels else 0 if known else None


@dataclass
class Result:
    """Verdicts of the items with their labels and scores, and the figures that follow."""

    model: str
    data: str
    policy: str
    threshold: float | None
    verdicts: list[Verdict]
    labels: list[int | None]
    scores: list[float | None]
    images: list[Path | None]
    texts: list[str | None]
    figures: dict[str, float | int] = field(default_factory=dict)

    def report(self, folder: Path) -> Path:
        """Write report.html and report.png into a folder; returns the path of the former."""
        from zoo.evaluation.report import write_report

        return write_report(
            folder,
            title=f"{self.verdicts[0].model if self.verdicts else self.model} on {self.data}",
            verdicts=self.verdicts,
            labels=self.labels,
            scores=self.scores,
            images=self.images,
            texts=self.texts,
            threshold=self.threshold,
            notes={"model": self.model, "policy": self.policy, "data": self.data, "command": command_line()},
        )

    def update_card(self, folder: Path) -> ModelCard:
        """Put the figures into the card of the release; those of the same data and policy are replaced."""
        data = f"{self.data}, policy {self.policy}"
        count = len(self.verdicts)
        new = [Measurement(k, float(v), data, count, command_line()) for k, v in self.figures.items()]
        card = ModelCard.read(folder / CARD).measured(new)
        write_card(card, folder)
        return card


def lists_labels(data: Path, columns: dict[str, str]) -> bool:
    """Whether a manifest has a column of label lists, where an empty entry says that there are none."""
    return columns.get("labels", "labels") in read_records(data)[0]


def read_rows(data: Path, image_root: Path | None, columns: dict[str, str], split: str | None) -> list[Row]:
    """The rows of a manifest that belong to a split; all of them for None. Raises as `read_manifest`."""
    rows = read_manifest(data, image_root, columns)
    if split is None:
        return rows
    if any(row.split is None for row in rows):
        raise BadInputError(
            f"{data}: some rows name no split, so the training's own assignment would be needed; add a column split"
        )
    chosen = [row for row in rows if row.split == split]
    if not chosen:
        raise BadInputError(f'{data}: no rows of the split "{split}"')
    return chosen


def evaluate(
    model: str, rows: list[Row], labelling: Labelling, *, policy: AnyPolicy | None = None, data: str = ""
) -> Result:
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
    result = Result(
        model, data, judge.policy_id, judge.threshold,
        verdicts, labels, scores, list(images), [item[0].text for item in items],
    )  # fmt: skip
    result.figures = _figures(result)
    return result


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


def items_of(rows: list[Row], *, by_image: bool) -> list[list[Row]]:
    """Rows that show the same image are one item for a model that reads images alone."""
    if not by_image:
        return [[row] for row in rows]
    groups: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.image or row.line].append(row)
    return list(groups.values())


def _figures(result: Result) -> dict[str, float | int]:
    counted = rates(result.verdicts, result.labels)
    flagged = sum(v.decision in FLAGGED for v in result.verdicts)
    judged = sum(v.status == "ok" for v in result.verdicts)
    figures: dict[str, float | int] = {"items": len(result.verdicts), "unjudged": len(result.verdicts) - judged}
    if judged:
        figures["flagged_share"] = flagged / judged
    if counted.positives + counted.negatives:
        figures |= {"positives": counted.positives, "negatives": counted.negatives}
    split = [verdict.disagreement for verdict in result.verdicts if verdict.disagreement is not None]
    if split:  # a panel's heads
        figures["mean_disagreement"] = sum(split) / len(split)
    named = {"auroc": auroc(result.scores, result.labels), "tpr": counted.tpr, "fpr": counted.fpr}
    return figures | {name: value for name, value in named.items() if value is not None}


def command_line() -> str:
    """The command that gives these figures again."""
    return shlex.join(["zoo", *sys.argv[1:]])
