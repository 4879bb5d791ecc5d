"""TensorRT engines of a bundle (see `export.runtime.choice`). No torch."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from export.bundle import Bundle, Device, Engine
from export.bundle.command import rebuild
from export.runtime.engine import RunningEngine
from export.runtime.plan import LoadedPlan, Mend, check_machine, read_report
from zoo.errors import IncompatibleBundleError, MissingDependencyError
from zoo.judging.scorer import Feeds


class TensorRTEngine(RunningEngine):
    """A plan on a GPU. Other text banks are uploaded or refitted before its next batch."""

    def __init__(self, plan: LoadedPlan, spec: Engine, device: Device = "cuda") -> None:
        super().__init__(spec, device)
        self.plan, self.provider = plan, f"{plan.provider} ({plan.gpu.name})"

    def run(self, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and scores `[B, N]` of one batch; one that is smaller than the plan takes is filled up."""
        rows = len(next(iter(feeds.values())))
        logits, scores = self.plan.run(filled(feeds, self.spec.batch[0]), self.text_banks)
        return logits[:rows], scores[:rows]


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
