"""TensorRT engines of a bundle (see `export.runtime.choice`). No torch."""

from __future__ import annotations

import copy
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from export.bundle import Bundle, Device, Engine
from export.bundle.command import rebuild
from export.runtime.plan import LoadedPlan, Mend, check_machine, read_report
from zoo.errors import IncompatibleBundleError, MissingDependencyError
from zoo.scorer import Feeds


class TensorRTEngine:
    """A plan on a GPU. Thread-safe (see `RunningEngine`)."""

    def __init__(self, plan: LoadedPlan, spec: Engine, device: Device = "cuda") -> None:
        self.plan, self.spec, self.device, self.why = plan, spec, device, ""
        self.provider = f"{plan.provider} ({plan.gpu.name})"
        self.text_banks: dict[str, NDArray[np.float32]] = {}

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:
        """Scores `[B, N]` of one batch; the feeds are those of `card.input_names`."""
        return self.run(feeds)[1]

    def run(self, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and scores `[B, N]` of one batch; one that is smaller than the plan takes is filled up."""
        rows = len(next(iter(feeds.values())))
        logits, scores = self.plan.run(filled(feeds, self.spec.batch[0]), self.text_banks)
        return logits[:rows], scores[:rows]

    def with_banks(self, text_banks: dict[str, NDArray[np.float32]]) -> Self:
        """The same loaded plan with other text banks, which are uploaded or refitted before its next batch."""
        other = copy.copy(self)
        other.text_banks = text_banks
        return other


def obstacle(bundle: Bundle, spec: Engine, device: Device) -> str | None:
    """Why a plan cannot run on this machine, as far as can be said without loading it; None when it can."""
    try:
        check_machine(read_report(bundle.path(spec)), _mend(bundle, spec))
    except (IncompatibleBundleError, MissingDependencyError) as problem:
        return str(problem)
    return None


def open_engine(bundle: Bundle, spec: Engine, device: Device, threads: int | None) -> TensorRTEngine:
    """Load a plan of a bundle. Raises IncompatibleBundleError when this machine cannot run it."""
    return TensorRTEngine(LoadedPlan(bundle.path(spec), _mend(bundle, spec)), spec, device)


def filled(feeds: Feeds, least: int) -> Feeds:
    """A batch of at least so many rows: the last one stands in for those that are not there."""
    missing = least - len(next(iter(feeds.values())))
    if missing <= 0:
        return feeds
    return {name: np.concatenate([value, np.repeat(value[-1:], missing, axis=0)]) for name, value in feeds.items()}


def _mend(bundle: Bundle, spec: Engine) -> Mend:
    return partial(rebuild, bundle.manifest, spec, bundle.folder)
