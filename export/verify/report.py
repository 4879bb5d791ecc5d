"""The inputs and the budget of a verification, and its result. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.bundle.manifest import (
    Budget,
    Difference,
    Engine,
    Given,
    Manifest,
    Precision,
    Verification,
    budget_of,
    given,
)
from zoo.contract import schema
from zoo.errors import BadArgumentError, IncompatibleBundleError, ParityError
from zoo.files.writing import MANIFEST

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
        """The budget that an engine must meet. Raises BadInputError or BadCardError for a file that is not a budget."""
        return Budget.read(self.budget) if self.budget else budget_of(precision)

    @property
    def options(self) -> Given:
        """The values that differ from the defaults, as options of `zoo verify`."""
        fields = dataclasses.fields(self)
        return given(**{one.name: value for one in fields if (value := getattr(self, one.name)) != one.default})

    @property
    def source(self) -> str:
        """Where the inputs come from, in words."""
        paths = (self.images, self.texts, self.adversarial, self.data)
        return ", ".join(["drawn", *(str(path) for path in paths if path is not None)])


#: How many flipped inputs are named.
NAMED = 20
#: With at least this number of inputs, half a percent is ten of them, and not one or two.
ENOUGH = 2000


@dataclass
class ParityReport:
    """Differences between an engine and the trained model; `problems` is empty when it passed.

    `flips` are the names of the inputs whose verdict changed, `ties` those among them nearer to a threshold than the
    rounding of float32. `flagged` is the share of inputs that the trained model flags: near 0 or 1, flips mean little.
    `at_shapes` are the largest differences of the logits in batches and for images of some sizes, by name. `company` is
    how far a score lies from that of the same input alone in its batch, None for an engine of one row. `check` says
    what was compared, `policy` is the id of that by which verdicts are counted.
    """

    bundle: Path
    model: str
    engine: Engine
    budget: Budget
    device: str
    check: Check
    policy: str = ""
    inputs: int = 0
    flagged: float = 0.0
    flips: list[str] = field(default_factory=list)
    ties: int = 0
    at_threshold: int = 0
    flips_at_threshold: list[str] = field(default_factory=list)
    how_placed: str = ""
    nearest: float = 0.0
    differences: dict[str, Difference] = field(default_factory=dict)
    at_shapes: dict[str, float] = field(default_factory=dict)
    company: float | None = None
    auroc: float | None = None
    auroc_loss: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def counted(self) -> int:
        """The number of inputs that the budget counts, with those at a threshold if it says so."""
        return self.inputs + (self.at_threshold if self.budget.at_threshold else 0)

    @property
    def counted_flips(self) -> list[str]:
        """The names of the counted inputs whose verdict changed."""
        return [*self.flips, *(self.flips_at_threshold if self.budget.at_threshold else [])]

    @property
    def flip_share(self) -> float:
        """The share of the counted inputs whose verdict changed, in [0, 1]."""
        return len(self.counted_flips) / max(self.counted, 1)

    def text(self) -> str:
        """A summary for people."""
        lines = [
            f"{self.bundle}, {self.engine.name} on {self.device}: {'FAILED' if self.problems else 'PASSED'} against "
            f"eager {self.model}, budget {self.budget.name}",
            f"  inputs       {self.inputs} ({self.check.source}), {self.flagged:.1%} of them flagged",
        ]
        if self.inputs and self.flagged in (0.0, 1.0):
            lines.append(
                "  note         all of them are judged alike, so few flips prove little: verify on your own data"
            )
        for name, figure in self.differences.items():
            lines.append(
                f"  {name:<12} max difference {_number(figure.max)}, mean {_number(figure.mean)}, 99 % below "
                f"{_number(figure.p99)}, least cosine {'None' if figure.cosine is None else f'{figure.cosine:.6f}'}"
            )
        lines += [
            "  by shape     " + ", ".join(f"{name} {value:.1e}" for name, value in self.at_shapes.items()),
            f"  verdicts     {len(self.flips)} of {self.inputs} flip ({len(self.flips) / max(self.inputs, 1):.2%}, at "
            f"most {self.budget.max_flips:.2%}); nearest to a threshold is {self.nearest:.0e} off, {self.ties} ties",
            f"  at threshold {len(self.flips_at_threshold)} of {self.at_threshold} flip "
            f"({'counted' if self.budget.at_threshold else 'not counted'}): {self.how_placed}",
        ]
        if self.company is not None:
            allowed = self.budget.max_company_difference
            most = "" if allowed is None else f" (at most {allowed:.0e})"
            lines.append(f"  in company   scores within {self.company:.1e} of those of the same input alone{most}")
        if self.auroc is not None:
            lines.append(f"  AUROC        {self.auroc:.4f}, {self.auroc_loss:.4f} lost")
        lines += [f"  flipped      {name}" for name in self.flips[:NAMED]]
        return "\n".join(lines + [f"  problem      {problem}" for problem in self.problems])

    def raise_if_failed(self) -> None:
        """Raise ParityError with the problems, when there are any."""
        if self.problems:
            raise ParityError(
                f"{self.bundle}: {self.engine.name} does not answer what {self.model} answers: "
                + "; ".join(self.problems)
            )

    def judge(self) -> None:
        """Compare the figures with the budget; each miss is added to `problems`."""
        limit = self.budget.max_logit_difference
        figures: dict[str, float] = {}
        if "logits" in self.differences:  # not where the engine failed
            logits = self.differences["logits"].max
            figures[""] = float("nan") if logits is None else logits
        figures |= {f" at {name}": difference for name, difference in self.at_shapes.items()}
        broken = [where for where, difference in figures.items() if not np.isfinite(difference)]
        where = max(figures, key=lambda name: figures[name], default="")
        if broken:
            self.problems.append(f"logits differ by nan{broken[0]}")
        elif limit is not None and figures and figures[where] > limit:
            self.problems.append(f"logits differ by {figures[where]:.2e}{where}, tolerance {limit:.0e}")
        if self.flip_share > self.budget.max_flips:
            named, most = ", ".join(self.counted_flips[:8]), f"at most {self.budget.max_flips:.2%} may"
            few = self.budget.max_flips > 0 and self.counted < ENOUGH
            hint = f"; those are {self.counted} inputs, and {ENOUGH} would leave less to luck" if few else ""
            self.problems.append(f"{self.flip_share:.2%} of verdicts flip, {most}: {named}{hint}")
        loss, allowed = self.auroc_loss, self.budget.max_auroc_loss
        if loss is not None and allowed is not None and not loss <= allowed:
            self.problems.append(f"AUROC falls by {loss:.4f} to {self.auroc:.4f}, at most {allowed} may be lost")

        company, allowed = self.company, self.budget.max_company_difference
        if company is not None and allowed is not None and not company <= allowed:
            self.problems.append(
                f"scores differ by {company:.2e} from those of the same input alone, at most {allowed:.0e} may be due "
                "to the others in its batch"
            )

    def note(self, manifest: Manifest, folder: Path) -> Manifest:
        """Write the manifest of a bundle with this verification in its engine; returns it.

        Raises IncompatibleBundleError if the bundle no longer has this manifest.
        """
        path = folder / MANIFEST
        if schema.parse(Manifest, schema.read_json(path), str(path)) != manifest:
            raise IncompatibleBundleError(f"{folder}: was changed while it was verified; verify it again")
        same = ("inputs", "at_threshold", "device", "auroc", "auroc_loss", "policy")
        verification = Verification(
            **{name: getattr(self, name) for name in same},
            image_source=self.check.source,
            options=self.check.options,
            passed=not self.problems,
            problems=tuple(self.problems),
            flips=len(self.flips),
            flips_at_threshold=len(self.flips_at_threshold),
            flipped=tuple(self.flips[:NAMED]),
            outputs=self.differences,
            at_shapes={name: _finite(value) for name, value in self.at_shapes.items()},
            company=None if self.company is None else _finite(self.company),
        )
        engine = manifest.engine(self.engine.name)
        elsewhere = tuple(one for one in engine.verifications if one.kind != verification.kind)
        engine = dataclasses.replace(engine, budget=self.budget, verification=verification, elsewhere=elsewhere)
        engines = {one.name: one for one in (*manifest.engines, engine)}
        manifest = dataclasses.replace(manifest, engines=tuple(engines.values()))
        manifest.write(folder)
        return manifest


def difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> Difference:
    """Compare two outputs `[B, N]`: absolute differences, and the least cosine of two rows."""
    apart = np.abs(ours.astype(np.float64) - theirs)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    # Two rows of zeros point the same way.
    cosines = np.where(norms > 0, (ours * theirs).sum(axis=1) / np.where(norms > 0, norms, 1), 1.0)
    figures = (apart.max(), apart.mean(), np.quantile(apart, 0.99), cosines.min())
    return Difference(*map(_finite, figures))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.2e}"
