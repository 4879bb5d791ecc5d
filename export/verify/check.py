"""What an engine is verified with, and by which budget. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.bundle import Given
from export.bundle.budget import Budget, budget_of
from export.bundle.command import given
from export.precision.names import Precision
from zoo.errors import BadArgumentError

#: Fewer inputs prove nothing about flips.
MINIMUM = 256


@dataclass(frozen=True)
class Check:
    """Inputs beside the drawn ones, all optional: a folder of `images`, a file of `texts` (one a line), a folder of
    stored `adversarial` examples (a manifest.csv with its images), and labelled `data` (a manifest, whose label
    `positive_label` means unsafe). `count` inputs are photos and drawn ones together.

    `budget` is a file, None for the shipped one of the engine's precision. Raises BadInputError for a count below 256.
    """

    images: Path | None = None
    texts: Path | None = None
    adversarial: Path | None = None
    data: Path | None = None
    positive_label: str = "1"
    count: int = MINIMUM
    budget: Path | None = None

    def __post_init__(self) -> None:
        if self.count < MINIMUM:
            raise BadArgumentError(
                f"count must be at least {MINIMUM}, got {self.count}: fewer inputs prove nothing about flips"
            )

    def budget_of(self, precision: Precision) -> Budget:
        """The budget that an engine is held against. Raises BadInputError or BadCardError for a file that is none."""
        return Budget.read(self.budget) if self.budget else budget_of(precision)

    @property
    def options(self) -> Given:
        """What was asked for beside the defaults, as options of `zoo verify`."""
        return given(
            images=self.images,
            texts=self.texts,
            adversarial=self.adversarial,
            data=self.data,
            positive_label=self.positive_label if self.positive_label != "1" else None,
            count=self.count if self.count != MINIMUM else None,
            budget=self.budget,
        )

    @property
    def source(self) -> str:
        """Where the inputs come from, in words."""
        paths = (self.images, self.texts, self.adversarial, self.data)
        return ", ".join(["drawn", *(str(path) for path in paths if path is not None)])
