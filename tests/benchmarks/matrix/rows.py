"""The rows of the matrix: registered models, those that differ in weights alone together, and releases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.matrix.cell import Depth
from zoo.contract.card import ModelCard
from zoo.contract.policy import AnyPolicy
from zoo.registry import create_model, default_policy, list_models, model_entry

#: The models of the tests stand in no matrix unless they are asked for.
SHIPPED = "[!t]*"
#: Parameters up to which a model is taken how far, unless a depth is asked for: minutes on one core, then a minute.
#: Larger ones take ten minutes each, even to be read.
SIZES: tuple[tuple[int, Depth], ...] = ((50_000_000, "verify"), (200_000_000, "parse"))


@dataclass(frozen=True)
class Row:
    """Models that share a graph. `name` is the row's folder, `names` the registered names, `source` what is loaded.

    `graph` identifies the architecture, its policy and, of a release, the weights; `untrained` is None for a release.
    """

    name: str
    names: tuple[str, ...]
    source: str
    graph: str
    untrained: dict[str, Any] | None = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Markdown: `architecture.tag`, and of the others with that architecture only the tags."""
        if self.untrained is None:
            return f"`{self.names[0]}`, trained ({self.name.partition('@')[2]})"
        architecture = self.names[0].partition(".")[0]
        return ", ".join([f"`{self.names[0]}`", *(f"`{name.removeprefix(architecture)}`" for name in self.names[1:])])


def registered_rows(pattern: str = "*") -> list[Row]:
    """The rows of all registered models of which one matches the pattern. No torch."""
    found: dict[str, list[str]] = {}
    for name in list_models():
        entry = model_entry(name)
        # Of a function, its name: what it prints as has an address in it, another one in each process.
        made_by = entry.builder if isinstance(entry.builder, str) else getattr(entry.builder, "__qualname__", name)
        found.setdefault(graph_of(entry.card, default_policy(entry), made_by), []).append(name)
    wanted = set(list_models(pattern))
    rows = [Row(names[0], tuple(names), names[0], graph) for graph, names in found.items()]
    return [row for row in rows if wanted.intersection(row.names)]


def release_row(source: str) -> Row:
    """The row of a release: a directory or a Hub name, as `--model` takes it. Raises what `load_release` raises."""
    from export.source import load, weights_hash

    release = load(source)
    weights = weights_hash(release.model)
    path = str(Path(source).resolve()) if Path(source).is_dir() else source
    graph = graph_of(release.card, release.policy, weights)
    return Row(f"{release.card.name}@{weights[:8]}", (release.card.name,), path, graph, None)


def graph_of(card: ModelCard, policy: AnyPolicy, made_by: str) -> str:
    """A hash of what decides a graph and its verdicts: inputs, outputs, hyperparameters, policy, and `made_by`."""
    data = card.to_dict()
    parts = {key: data[key] for key in ("task", "score", "image", "labels", "requires", "hparams")}
    parts["context"] = card.text and card.text.context_length
    text = "\n".join([json.dumps(parts, sort_keys=True), policy.id, made_by])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def usual_depth(row: Row) -> Depth | None:
    """How far a row is taken where nothing is said: by its size; None for not at all, `verify` for a release."""
    if row.untrained is None:
        return "verify"
    try:
        size = parameters(row.source)
    except Exception:  # a model that cannot be built: its cells will say why
        return "parse"
    return next((depth for most, depth in SIZES if size <= most), None)


def parameters(name: str) -> int:
    """The number of weights of a registered model, counted without making them."""
    import torch

    with torch.device("meta"):
        return sum(weight.numel() for weight in create_model(name).parameters())


def all_rows(cells: Sequence[str]) -> list[Row]:
    """Every row of a table: the shipped models, and whatever else has cells. Releases stand below their model."""
    rows = {row.name: row for row in registered_rows()}
    shown = {row.name for row in registered_rows(SHIPPED)} | set(cells)
    found = [row for name, row in rows.items() if name in shown]
    found += [Row(name, (name.partition("@")[0],), name, "", None) for name in shown if "@" in name]
    return sorted(found, key=lambda row: row.name)
