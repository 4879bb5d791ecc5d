"""The base of all evaluation reports: a JSON file that can be read back, and measurements in the model's card."""

from __future__ import annotations

import platform
from dataclasses import field
from importlib.metadata import version
from pathlib import Path

from pydantic.dataclasses import dataclass
from rich.box import SIMPLE
from rich.table import Table

import zoo
from zoo.contract import schema
from zoo.contract.card import Measurement, ModelCard
from zoo.errors import BadCardError
from zoo.release.store import CARD, write_card


@dataclass(frozen=True, kw_only=True, config=schema.STRICT)
class EvaluationReport(schema.PlainData):
    """The measured model and the software that measured it. Subclasses add the figures.

    `model` is the name in the report. `command` gives the figures again: the caller hands it in, and it is empty if no
    command started the evaluation. `versions` are of the software, by name. `weights_sha256` is the hash of the weights
    file, empty without one.
    """

    model: str
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    weights_sha256: str = ""

    @property
    def file_stem(self) -> str:
        """The name of the report's files, without an ending."""
        return self.model.replace("/", "_")

    def write(self, folder: Path) -> Path:
        """Write the JSON file into a folder and return its path."""
        path = folder / f"{self.file_stem}.json"
        self.write_json(path)
        return path

    def measurements(self) -> list[Measurement]:
        """The figures that a model card shows."""
        return []

    def update_card(self, folder: Path) -> ModelCard:
        """Put the measurements into the card of a release; those of the same metric, data and threat are replaced.

        Raises BadCardError if the weights in the folder are not those that were measured.
        """
        card = ModelCard.read(folder / CARD)
        if self.weights_sha256 and self.weights_sha256 not in card.files.values():
            raise BadCardError(f"{folder}: holds other weights than those that were measured")
        card = card.measured(self.measurements())
        write_card(card, folder)
        return card


def versions() -> dict[str, str]:
    """The versions that figures depend on: this package, torch, transformers, Python, and the kind of machine."""
    return {
        "safety_zoo": zoo.__version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def plain_table(title: str, *columns: str, wrap: bool = False) -> Table:
    """A table for the terminal: the first column holds names, the others figures; `wrap` breaks long cells."""
    table = Table(title=title, title_justify="left", title_style="", box=SIMPLE, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=not wrap)
    return table
