"""The threat model as plain data: what an attacker may change, by how much, and with what effort."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from zoo.contract import schema
from zoo.errors import close_match

#: Every attack on images, from the cheapest to the dearest.
ATTACKS = ("fgsm", "pgd", "apgd-ce", "apgd-t", "fab-t", "square")
#: The attacks of AutoAttack's standard version, in its order (Croce & Hein 2020, arXiv 2003.01690, section 6).
AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")


def _fraction(value: object) -> object:
    """Read `4/255` as the number that it stands for; anything else is left to the field's own check."""
    if not isinstance(value, str):
        return value
    over, slash, under = value.partition("/")
    try:
        return float(over) / float(under) if slash else float(over)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f'expected a number or a fraction such as "4/255", got "{value}"') from None


@dataclass(frozen=True, config=schema.STRICT)
class Threat(schema.YamlData):
    """An attacker on images: perturbations of norm at most `eps` on pixels in [0, 1], and the attacks to try.

    `steps` are those of each gradient attack (FGSM takes one), `restarts` the runs of each attack from another start
    (FGSM has none), `queries` the forward passes per image and restart of Square, `targets` the classes that the
    targeted attacks try, the likeliest first. `step_size` is PGD's alone, in the unit of `eps`; by default
    2.5 eps / steps (Madry et al. 2018, arXiv 1706.06083). Equal seeds give equal perturbations. In a file, `eps` may
    be a fraction: `eps: 4/255`. The defaults are AutoAttack's standard version.
    """

    _where = "threat"

    norm: Literal["Linf", "L2"]
    eps: Annotated[float, BeforeValidator(_fraction)]
    attacks: tuple[str, ...] = AUTOATTACK
    steps: int = 100
    restarts: int = 1
    queries: int = 5000
    targets: int = 9
    step_size: Annotated[float | None, BeforeValidator(_fraction)] = None
    seed: int = 0
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"eps must be above 0, got {self.eps}")
        if self.norm == "Linf" and self.eps > 1:
            raise ValueError(f"eps is on pixels in [0, 1], got {self.eps}; for grey levels write {self.eps:g}/255")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size must be above 0, got {self.step_size}")
        for name in ("steps", "restarts", "queries", "targets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        for attack in self.attacks:
            if attack not in ATTACKS:
                raise ValueError(f'no attack is called "{attack}"' + close_match(attack, ATTACKS))
        if not self.attacks or len(set(self.attacks)) < len(self.attacks):
            raise ValueError(f"attacks must name at least one attack, and none twice, got {list(self.attacks)}")

    @property
    def pgd_step(self) -> float:
        """How far PGD goes in one step, in the unit of `eps`."""
        return self.step_size if self.step_size is not None else 2.5 * self.eps / self.steps
