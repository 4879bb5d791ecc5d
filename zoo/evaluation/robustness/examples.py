"""Adversarial examples as files (8-bit PNGs, a manifest that training reads), judged again by any model or bundle."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.contract.policy import AnyPolicy
from zoo.contract.verdict import Verdict
from zoo.data.manifest import read_manifest
from zoo.errors import BadDataError
from zoo.evaluation.report import EvaluationReport, plain_console, plain_table, shown
from zoo.evaluation.robustness.run import Outcome
from zoo.evaluation.robustness.victim import AdversarialExample, Item, Items, Selection, Victim
from zoo.evaluation.run import judged
from zoo.files.writing import new_directory, new_file
from zoo.inputs.image import load
from zoo.metrics import FLAGGED, Draws, Estimate
from zoo.release.store import load_scorer, model_scorer

MANIFEST, ABOUT = "manifest.csv", "examples.json"
#: What stored examples say as the report about the attack does.
SAME = ("model", "source", "weights_sha256", "policy", "data", "split", "target", "command")


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
    """One row of the manifest of examples: the item, the attack, the changed text, and the file of the image."""

    item: Item
    attack: str
    text: str | None
    image: Path | None


def save_examples(victim: Victim, outcome: Outcome, selection: Selection, out: Path) -> StoredExamples:
    """Write every success of every attack at the first operating point: `images/*.png` and `manifest.csv`.

    An image is rounded to grey levels towards the clean one, so that it stays within the budget, and judged again from
    its file; the column `survived` says whether it still turns the verdict. The other columns are image, text, labels,
    split, kind, attack, source_line and source_image of the manifest that was attacked, and `judged` where that has it.
    Raises BadInputError when `out` is taken.
    """
    point, report, items = outcome.points[0].at, outcome.report, outcome.items
    with new_directory(out) as folder:
        rows = []
        for attempt in outcome.attempts[0]:
            for place, example in sorted(attempt.examples.items()):
                image = _write_image(folder, items, place, attempt.attack, example)
                rows.append(_Stored(items.items[place], attempt.attack, example.text, image))
        survived = _survivors(victim, outcome, rows)
        _write_manifest(folder, rows, survived, selection, by_label=victim.by_label)
        about = StoredExamples(
            **{name: getattr(report, name) for name in SAME},
            threat=report.budget,
            point=point.point,
            threshold=point.threshold,
            examples=len(rows),
            survived=sum(survived),
        )
        about.write_json(folder / ABOUT)
    return about


def passes(verdict: Verdict, label: int) -> bool:
    """Whether a verdict is what the attacker wants: an unsafe item (label 1) judged safe, or a safe one flagged."""
    return verdict.is_safe if label == 1 else verdict.decision in FLAGGED


def _write_image(folder: Path, items: Items, place: int, attack: str, example: AdversarialExample) -> Path | None:
    """Write the image of an example, the clean one where only its text changed; None without an image."""
    item = items.items[place]
    if items.pixels is None or item.image is None:
        return None
    pixels = items.pixels[place] if example.pixels is None else example.pixels
    path = folder / "images" / f"{item.row.line:06}_{attack}.png"
    with new_file(path, "wb") as stream:
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "PNG")
    return path


def _survivors(victim: Victim, outcome: Outcome, rows: list[_Stored]) -> list[bool]:
    """Which examples still succeed as the files that were written."""
    point, labels = outcome.points[0], [row.item.label for row in rows]
    if not rows:
        return []
    if victim.by_label:
        assert victim.card.image is not None  # checked by Victim
        images = [load(row.image, victim.card.image) for row in rows if row.image]  # no other item can be broken
        items = Items([row.item for row in rows], torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
        answers = point.answers(victim.logits(items, batch_size=64)).tolist()
        return [answer != label for answer, label in zip(answers, labels, strict=True)]
    changed = [
        dataclasses.replace(row.item.row, image=row.image, text=row.item.text if row.text is None else row.text)
        for row in rows
    ]
    with model_scorer(victim.model, victim.policy) as scorer:
        verdicts, judge = judged(scorer, changed, "none of the examples"), scorer.judge
    threshold = point.at.threshold
    if threshold is None:
        return [passes(verdict, label) for verdict, label in zip(verdicts, labels, strict=True)]
    pairs = zip(map(judge.rank, verdicts), labels, strict=True)
    return [score is not None and (score <= threshold) == (label == 1) for score, label in pairs]


def _write_manifest(
    folder: Path, rows: list[_Stored], survived: list[bool], selection: Selection, *, by_label: bool
) -> None:
    columns = ["image", "text", "labels", "split", "kind", "attack"]
    columns += ["source_line", "source_image", "survived", "unsafe"]
    if rows and all(row.item.row.judged is not None for row in rows):
        columns.append("judged")
    root = selection.image_root or selection.data.parent
    with new_file(folder / MANIFEST, newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        for row, holds in zip(rows, survived, strict=True):
            source, image = row.item.row, row.item.image
            if image is not None:
                image = image.relative_to(root) if image.is_relative_to(root) else Path(image.name)
            record = {
                "image": row.image.relative_to(folder).as_posix() if row.image else "",
                "text": row.text if row.text is not None else (source.text or ""),
                "labels": "|".join(row.item.labels),
                "split": source.split or "",
                "kind": source.record.get("kind", ""),
                "attack": row.attack,
                "source_line": source.line,
                "source_image": image or "",
                "survived": int(holds),
                "unsafe": "" if by_label else row.item.label,
                "judged": "|".join(source.judged or ()),
            }
            writer.writerow(record)


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
    model: str, folder: Path, *, policy: AnyPolicy | None = None, device: str = "cpu", command: str = ""
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
        verdicts = judged(scorer, rows, f"{folder}: none of {len(rows)} examples")
        name, policy_id = scorer.card.name, scorer.judge.policy_id
    hits = np.array([passes(verdict, label) for verdict, label in zip(verdicts, labels, strict=True)])
    stored = np.array([record["survived"] == "1" for record in records])
    lost = np.array([verdict.status != "ok" for verdict in verdicts])
    draws = Draws([record["source_line"] for record in records], seed=0)
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
    )


def print_replay(report: ReplayReport) -> None:
    """Print how many examples of each attack still succeed."""
    console = plain_console()
    about = report.examples_of
    console.print(f"{report.source} ({report.policy}) on the examples in {report.folder}")
    console.print(f"made on {about.model}, {about.data}, {about.split}, at {about.point}: {about.threat}")
    names = ("attack", "examples", "on their\nown model", "here", "% (95 %)", "unjudged")
    rows = [
        (one.attack, str(one.examples), str(one.stored), str(one.passed), shown(one.share), str(one.unjudged))
        for one in [*report.attacks, *([report.all] if len(report.attacks) > 1 else [])]
    ]
    console.print(plain_table("how many succeed", names, rows, wrap=True))
    console.print(f"{report.changed} of {about.examples} get another verdict than by the model that they were made on")
