"""Stored adversarial examples judged again, by any model or exported bundle: what still passes as safe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from zoo.contract import schema
from zoo.contract.panel import AnyPolicy
from zoo.contract.verdict import Verdict
from zoo.data.manifest import Row, read_manifest
from zoo.errors import BadDataError
from zoo.evaluation.report import EvaluationReport, versions
from zoo.evaluation.robustness.stored import ABOUT, MANIFEST, StoredExamples, passes
from zoo.evaluation.robustness.table import percent
from zoo.metrics import Draws, Estimate
from zoo.release.load import load_scorer


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

    `changed` counts the examples that are judged otherwise than by the model that they were made on: for a bundle of
    that same model it should be 0.
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
    """Judge the examples in a folder that `zoo evaluate robustness --save` wrote; an example that breaks is no success.

    Raises BadInputError for a folder without examples or whose examples are of labels, and as `load_scorer`.
    """
    if not (folder / ABOUT).is_file():
        raise BadDataError(f"{folder}: holds no {ABOUT}, so no examples (`zoo evaluate robustness --save DIR`)")
    about = StoredExamples.from_dict(schema.read_json(folder / ABOUT), str(folder / ABOUT))
    if about.target == "labels":
        raise BadDataError(f"{folder}: its examples turn labels, and a replay judges by a policy")
    if not about.examples:
        raise BadDataError(f"{folder}: holds no examples, as no attack succeeded")
    rows = read_manifest(folder / MANIFEST)
    records = [row.record for row in rows]
    labels = [int(record["unsafe"]) for record in records]
    verdicts, name, policy_id = _judge(model, rows, policy, device)
    hits = np.array([passes(verdict, label) for verdict, label in zip(verdicts, labels, strict=True)])
    stored = np.array([record["survived"] == "1" for record in records])
    lost = np.array([verdict.status != "ok" for verdict in verdicts])
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


def _judge(model: str, rows: Sequence[Row], policy: AnyPolicy | None, device: str) -> tuple[list[Verdict], str, str]:
    """The verdict of each example, in order, with the names of model and policy."""
    verdicts: list[Verdict] = []
    with load_scorer(model, policy, device=device) as scorer, Progress(transient=True) as progress:
        images = [row.image for row in rows] if scorer.card.image is not None else None
        texts = [row.text for row in rows] if scorer.card.reads_text else None
        task = progress.add_task("Judging", total=len(rows))
        for batch in scorer.stream(images, texts):
            verdicts += batch
            progress.advance(task, len(batch))
        return verdicts, scorer.card.name, scorer.judge.policy_id


def print_replay(report: ReplayReport, console: Console | None = None) -> None:
    """Print how many examples of each attack still succeed."""
    console = console or Console()
    about = report.examples_of
    console.print(f"{report.source} ({report.policy}) on the examples in {report.folder}", highlight=False)
    console.print(f"made on {about.model}, {about.data}, {about.split}, at {about.point}: {about.threat}", markup=False)
    table = Table(title="how many succeed", box=SIMPLE, title_justify="left")
    for name in ("attack", "examples", "on their\nown model", "here", "% (95 %)", "unjudged"):
        table.add_column(name, justify="left" if name == "attack" else "right")
    for attack in [*report.attacks, *([report.all] if len(report.attacks) > 1 else [])]:
        counts = (attack.examples, attack.stored, attack.passed)
        table.add_row(attack.attack, *map(str, counts), percent(attack.share), str(attack.unjudged))
    console.print(table)
    console.print(f"{report.changed} of {about.examples} are judged otherwise than by the model that they were made on")
