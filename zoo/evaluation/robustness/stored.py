"""Adversarial examples as files: 8-bit PNGs at the model's input size and a manifest that training reads, too."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor

from zoo.contract import schema
from zoo.contract.verdict import Verdict
from zoo.evaluation.robustness.attempt import Example
from zoo.evaluation.robustness.items import Item, Selection
from zoo.evaluation.robustness.run import Outcome
from zoo.evaluation.robustness.victim import OperatingPoint, Victim
from zoo.files import new_directory
from zoo.inputs.image import load
from zoo.judging.judge import Judge
from zoo.metrics import FLAGGED
from zoo.release.load import model_scorer

MANIFEST, ABOUT = "manifest.csv", "examples.json"


@dataclass(frozen=True, config=schema.STRICT)
class StoredExamples(schema.PlainData):
    """What a folder of examples was made of: by which threat against which model, at which operating point.

    `examples` succeeded as numbers; `survived` of them still do as the files that were written, by the model itself.
    """

    _where = "stored examples"

    model: str
    source: str
    weights_sha256: str
    policy: str
    data: str
    split: str
    threat: str
    point: str
    threshold: float | None
    target: Literal["policy", "labels"]
    examples: int
    survived: int
    command: str
    schema_version: Literal[1] = 1


class _Stored(NamedTuple):
    """One row of the manifest of examples."""

    item: Item
    place: int
    attack: str
    example: Example
    image: str


def save_examples(victim: Victim, outcome: Outcome, selection: Selection, out: Path) -> StoredExamples:
    """Write every success of every attack at the first operating point: `images/*.png` and `manifest.csv`.

    An image is rounded to grey levels towards the clean one, so that it stays within the budget, and judged again from
    its file; the column `survived` says whether it still turns the verdict. The other columns are image, text, labels,
    split, kind, attack, source_line and source_image of the manifest that was attacked, and `judged` where that has it.
    Raises BadInputError when `out` is taken.
    """
    point, attempts, items = outcome.points[0], outcome.attempts[0], outcome.items
    with new_directory(out) as folder:
        (folder / "images").mkdir()
        rows = []
        for attempt in attempts:
            for place, example in sorted(attempt.found.items()):
                name = _write_image(folder, outcome, place, attempt.attack, example)
                rows.append(_Stored(items.items[place], place, attempt.attack, example, name))
        survived = _survivors(victim, point, rows, folder)
        _write_manifest(folder / MANIFEST, rows, survived, outcome, selection)
        report = outcome.report
        about = StoredExamples(
            model=report.model,
            source=report.source,
            weights_sha256=report.weights_sha256,
            policy=report.policy,
            data=report.data,
            split=report.split,
            threat=report.budget,
            point=point.name,
            threshold=point.threshold,
            target=report.target,
            examples=len(rows),
            survived=sum(survived),
            command=report.command,
        )
        about.write_json(folder / ABOUT)
    return about


def passes(verdict: Verdict, label: int) -> bool:
    """Whether a verdict is what the attacker wants: an unsafe item (label 1) judged safe, or a safe one flagged."""
    return verdict.is_safe if label == 1 else verdict.decision in FLAGGED


def _write_image(folder: Path, outcome: Outcome, place: int, attack: str, example: Example) -> str:
    """Write the image of an example, the clean one where only its text changed; its name, empty without an image."""
    items = outcome.items
    if items.pixels is None or not bool(items.with_image[place]):
        return ""
    pixels: Tensor = items.pixels[place] if example.pixels is None else example.pixels
    name = f"images/{items.items[place].row.line:06}_{attack}.png"
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name)
    return name


def _survivors(victim: Victim, point: OperatingPoint, rows: list[_Stored], folder: Path) -> list[bool]:
    """Which examples still succeed as the files that were written."""
    if not rows:
        return []
    images = [folder / row.image if row.image else None for row in rows]
    if victim.by_label:
        spec = victim.card.image
        assert spec is not None  # checked by Victim
        found = []
        for row, image in zip(rows, images, strict=True):
            assert image is not None  # a threat on images breaks no item without one
            pixels = torch.from_numpy(load(image, spec)).permute(2, 0, 1)[None]
            with torch.no_grad():
                logits = point.module(victim.floats(pixels))
            found.append(int(logits.argmax()) != row.item.label)
        return found
    texts = [row.item.text if row.example.text is None else row.example.text for row in rows]
    with model_scorer(victim.model, victim.policy) as scorer:
        verdicts = scorer.verdicts(
            images if victim.card.image is not None else None, texts if victim.card.reads_text else None
        )
        judge = scorer.judge
    labels = [row.item.label for row in rows]
    if point.threshold is None:
        return [passes(verdict, label) for verdict, label in zip(verdicts, labels, strict=True)]
    assert isinstance(judge, Judge)  # a panel is no victim
    pairs = zip(map(judge.rank, verdicts), labels, strict=True)
    return [score is not None and (score <= point.threshold) == (label == 1) for score, label in pairs]


def _write_manifest(
    path: Path, rows: list[_Stored], survived: list[bool], outcome: Outcome, selection: Selection
) -> None:
    names = ["image", "text", "labels", "split", "kind", "attack", "source_line", "source_image", "survived", "unsafe"]
    judged = bool(rows) and all(row.item.row.judged is not None for row in rows)
    kinds = outcome.items.columns.get("kind")
    root = selection.image_root or selection.data.parent
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*names, *(["judged"] if judged else [])])
        writer.writeheader()
        for row, holds in zip(rows, survived, strict=True):
            source = row.item.row
            image = source.image if row.image else None
            inside = image is not None and image.is_relative_to(root)
            record = {
                "image": row.image,
                "text": row.example.text if row.example.text is not None else (source.text or ""),
                "labels": "|".join(row.item.labels),
                "split": source.split or "",
                "kind": kinds[row.place] if kinds else "",
                "attack": row.attack,
                "source_line": source.line,
                "source_image": (image.relative_to(root) if inside else image.name) if image is not None else "",
                "survived": int(holds),
                "unsafe": "" if outcome.report.target == "labels" else row.item.label,
            }
            writer.writerow(record | ({"judged": "|".join(source.judged or ())} if judged else {}))
