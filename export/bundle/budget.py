"""How far an engine may answer otherwise than the trained model: budgets, as in `configs/export/*.yaml`. No torch."""

from __future__ import annotations

from typing import get_args

from pydantic.dataclasses import dataclass

from export.precision.names import Precision
from zoo.assets import find_asset
from zoo.contract import schema
from zoo.errors import BadArgumentError, close_match


@dataclass(frozen=True, config=schema.STRICT)
class Budget(schema.YamlData):
    """The largest differences with which an engine passes.

    `max_logit_difference` is absolute, None for no limit. `max_flips` is the share of inputs, in [0, 1], whose verdict
    may change. `max_auroc_loss` counts where labelled data were given. `at_threshold` says whether inputs that were
    placed at a threshold on purpose count too: float32 keeps their verdicts, fewer bits cannot.
    """

    _where = "budget"

    name: str
    summary: str
    max_logit_difference: float | None
    max_flips: float
    max_auroc_loss: float | None
    at_threshold: bool
    schema_version: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.max_flips <= 1:
            raise ValueError(f"max_flips is a share in [0, 1], got {self.max_flips}")
        for name in ("max_logit_difference", "max_auroc_loss"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be below 0, got {value}")


def budget_of(precision: Precision) -> Budget:
    """The shipped budget of a precision; both kinds of int8 share one. Raises BadInputError for an unknown one."""
    if precision not in get_args(Precision):
        raise BadArgumentError(f'no precision is named "{precision}"' + close_match(precision, get_args(Precision)))
    return Budget.read(find_asset(f"configs/export/{precision.removesuffix('_qdq')}.yaml"))
