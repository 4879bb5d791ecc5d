"""The base of all evaluation reports: a JSON file that can be read back, and measurements in the model's card."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from importlib.metadata import version
from pathlib import Path

from pydantic.dataclasses import dataclass
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import zoo
from zoo.contract import schema
from zoo.contract.card import Measurement, ModelCard
from zoo.errors import BadCardError
from zoo.files.writing import CARD
from zoo.inputs.image import resizer
from zoo.metrics import Estimate
from zoo.release.store import write_card


def versions() -> dict[str, str]:
    """What figures depend on: this package, torch, transformers, what shrinks pictures, Python, the kind of machine."""
    return {
        "safety_zoo": zoo.__version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "resizer": resizer(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


@dataclass(frozen=True, kw_only=True, config=schema.STRICT)
class EvaluationReport(schema.PlainData):
    """The measured model and the software that measured it. Subclasses add the figures.

    `model` is the name in the report. `command` gives the figures again: the caller hands it in, and it is empty if no
    command started the evaluation. `versions` are of the software, by name, by default of what runs.
    `weights_sha256` is the hash of the weights file, empty without one.
    """

    model: str
    command: str = ""
    versions: dict[str, str] = field(default_factory=versions)
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

    def lines(self, figures: Mapping[str, Estimate | None], data: str, threat: str = "") -> list[Measurement]:
        """The figures that are defined as lines of a model card, measured on `data` under a `threat`."""
        return [
            Measurement(name, figure.value, data, figure.count, self.command, threat)
            for name, figure in figures.items()
            if figure is not None and figure.value is not None
        ]

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


def shown(
    figure: Estimate | None, *, scale: float = 100, places: int = 1, ends: int | None = 0, dash: str = "-"
) -> str:
    """A figure times `scale`, and its interval to `ends` places (none for None): `31.2 (25-38)`; `-` if undefined."""
    if figure is None or figure.value is None:
        return "-"
    text, interval = f"{scale * figure.value:.{places}f}", figure.interval
    if ends is None or interval is None:
        return text
    return f"{text} ({scale * interval.low:.{ends}f}{dash}{scale * interval.high:.{ends}f})"


def plain_console() -> Console:
    """The terminal without colours for numbers, and without markup: names may hold brackets."""
    return Console(highlight=False, markup=False)


def plain_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, wrap: bool = False) -> Table:
    """A table for the terminal: the first column holds names, the others figures; `wrap` breaks long cells."""
    table = Table(title=title, title_justify="left", title_style="", box=SIMPLE, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=not wrap)
    for row in rows:
        table.add_row(*row)
    return table
