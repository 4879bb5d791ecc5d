"""Adversarial examples as files (8-bit PNGs, a manifest that training reads), judged again by any model or bundle."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic.dataclasses import dataclass
from rich.console import Console
from torch import Tensor

from zoo.contract import schema
from zoo.contract.policy import AnyPolicy
from zoo.contract.verdict import Verdict
from zoo.data.manifest import read_manifest
from zoo.errors import BadDataError
from zoo.evaluation.report import EvaluationReport, plain_table, versions
from zoo.evaluation.robustness.campaign import AdversarialExample
from zoo.evaluation.robustness.items import Item, Selection
from zoo.evaluation.robustness.report import percent
from zoo.evaluation.robustness.run import Outcome
from zoo.evaluation.robustness.victim import AttackedPoint, Victim
from zoo.evaluation.run import judged
from zoo.files import new_directory, new_file, write_file
from zoo.inputs.image import load
from zoo.metrics import FLAGGED, Draws, Estimate
from zoo.release.store import load_scorer, model_scorer

MANIFEST, ABOUT = "manifest.csv", "examples.json"


@dataclass(frozen=True, config=schema.STRICT)
class StoredExamples(schema.PlainData):
    """Where a folder of examples comes from: the threat, the attacked model, the operating point.

    `examples` succeeded as numbers. `survived` of them still succeed against that model as the files that were written.
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
    example: AdversarialExample
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
        rows = []
        for attempt in attempts:
            for place, example in sorted(attempt.examples.items()):
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


def _write_image(folder: Path, outcome: Outcome, place: int, attack: str, example: AdversarialExample) -> str:
    """Write the image of an example, the clean one where only its text changed; its name, empty without an image."""
    items = outcome.items
    if items.pixels is None or not bool(items.with_image[place]):
        return ""
    pixels: Tensor = items.pixels[place] if example.pixels is None else example.pixels
    name = f"images/{items.items[place].row.line:06}_{attack}.png"
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream := io.BytesIO(), "PNG")
    write_file(folder / name, stream.getvalue())
    return name


def _survivors(victim: Victim, point: AttackedPoint, rows: list[_Stored], folder: Path) -> list[bool]:
    """Which examples still succeed as the files that were written."""
    if not rows:
        return []
    images = [folder / row.image if row.image else None for row in rows]
    if victim.by_label:
        spec = victim.card.image
        assert spec is not None  # checked by Victim
        survived = []
        for row, image in zip(rows, images, strict=True):
            assert image is not None  # a threat on images breaks no item without one
            pixels = torch.from_numpy(load(image, spec)).permute(2, 0, 1)[None]
            with torch.no_grad():
                logits = point.module(victim.floats(pixels))
            survived.append(int(logits.argmax()) != row.item.label)
        return survived
    texts = [row.item.text if row.example.text is None else row.example.text for row in rows]
    with model_scorer(victim.model, victim.policy) as scorer:
        verdicts = scorer.verdicts(
            images if victim.card.image is not None else None, texts if victim.card.reads_text else None
        )
        judge = scorer.judge
    labels = [row.item.label for row in rows]
    if point.threshold is None:
        return [passes(verdict, label) for verdict, label in zip(verdicts, labels, strict=True)]
    pairs = zip(map(judge.rank, verdicts), labels, strict=True)
    return [score is not None and (score <= point.threshold) == (label == 1) for score, label in pairs]


def _write_manifest(
    path: Path, rows: list[_Stored], survived: list[bool], outcome: Outcome, selection: Selection
) -> None:
    names = ["image", "text", "labels", "split", "kind", "attack", "source_line", "source_image", "survived", "unsafe"]
    judged = bool(rows) and all(row.item.row.judged is not None for row in rows)
    kinds = outcome.items.columns.get("kind")
    root = selection.image_root or selection.data.parent
    with new_file(path, newline="") as stream:
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


@dataclass(frozen=True, config=schema.STRICT)
class ReplayedAttack:
    """The examples of one attack. `passed` are those that turn this model's verdict, too; `unjudged` turn none.

    `stored` of them survived being written as files, against the model that they were made on.
    """

    attack: str
    examples: int
    stored: int
    passed: int
    unjudged: int
    share: Estimate


@dataclass(frozen=True, config=schema.STRICT)
class ReplayReport(EvaluationReport):
    """Examples made on one model, judged by another or by its exported form. `share` is over all examples.

    `changed` counts the examples with another verdict than by the model that they were made on: 0 is expected for a
    bundle of that model.
    """

    _where = "replay report"

    source: str
    policy: str
    examples_of: StoredExamples
    folder: str
    attacks: tuple[ReplayedAttack, ...]
    all: ReplayedAttack
    changed: int
    report: Literal["replay"] = "replay"
    schema_version: Literal[1] = 1

    @property
    def file_stem(self) -> str:
        """`MODEL__replay-FOLDER`."""
        return f"{super().file_stem}__replay-{self.folder}"


def replay(
    model: str, folder: Path, *, policy: AnyPolicy | None = None, device: str = "cpu", seed: int = 0, command: str = ""
) -> ReplayReport:
    """Judge the examples in a folder that `save_examples` wrote; an unreadable example counts as a failure.

    Raises BadInputError for a folder without examples, for examples that turn labels, and as `load_scorer`.
    """
    if not (folder / ABOUT).is_file():
        raise BadDataError(f"{folder}: holds no {ABOUT}, so `zoo evaluate robustness --save` did not write it")
    about = StoredExamples.from_dict(schema.read_json(folder / ABOUT), str(folder / ABOUT))
    if about.target == "labels":
        raise BadDataError(f"{folder}: its examples turn labels, and a replay judges by a policy")
    if not about.examples:
        raise BadDataError(f"{folder}: holds no examples, as no attack succeeded")
    rows = read_manifest(folder / MANIFEST)
    records = [row.record for row in rows]
    labels = [int(record["unsafe"]) for record in records]
    with load_scorer(model, policy, device=device) as scorer:
        verdicts, name, policy_id = judged(scorer, rows), scorer.card.name, scorer.judge.policy_id
    hits = np.array([passes(verdict, label) for verdict, label in zip(verdicts, labels, strict=True)])
    stored = np.array([record["survived"] == "1" for record in records])
    lost = np.array([verdict.status != "ok" for verdict in verdicts])
    if lost.all():
        raise BadDataError(f"{folder}: none of {len(rows)} examples could be judged; the first: {verdicts[0].detail}")
    draws = Draws([record["source_line"] for record in records], seed=seed)
    names = np.array([record["attack"] for record in records])

    def counted(attack: str, chosen: NDArray[np.bool_]) -> ReplayedAttack:
        held, passed, unjudged = (int((part & chosen).sum()) for part in (stored, hits, lost))
        return ReplayedAttack(attack, int(chosen.sum()), held, passed, unjudged, draws.share(hits, chosen))

    return ReplayReport(
        model=name,
        source=model,
        policy=policy_id,
        examples_of=about,
        folder=folder.resolve().name,
        attacks=tuple(counted(one, names == one) for one in dict.fromkeys(names.tolist())),
        all=counted("all", np.ones(len(names), dtype=np.bool_)),
        changed=int((hits != stored).sum()),
        command=command,
        versions=versions(),
    )


def print_replay(report: ReplayReport, console: Console | None = None) -> None:
    """Print how many examples of each attack still succeed."""
    console = console or Console()
    about = report.examples_of
    console.print(f"{report.source} ({report.policy}) on the examples in {report.folder}", highlight=False)
    console.print(f"made on {about.model}, {about.data}, {about.split}, at {about.point}: {about.threat}", markup=False)
    names = ("attack", "examples", "on their\nown model", "here", "% (95 %)", "unjudged")
    table = plain_table("how many succeed", *names, wrap=True)
    for attack in [*report.attacks, *([report.all] if len(report.attacks) > 1 else [])]:
        counts = (attack.examples, attack.stored, attack.passed)
        table.add_row(attack.attack, *map(str, counts), percent(attack.share), str(attack.unjudged))
    console.print(table)
    console.print(f"{report.changed} of {about.examples} get another verdict than by the model that they were made on")
