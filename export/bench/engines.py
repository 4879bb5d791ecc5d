"""The bundle's own sides: each of its engines that this machine can run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from export.bench.report import About
from export.bench.side import Run, Side, Task
from export.bundle import Bundle, Engine
from export.runtime import BundleScorer, load
from export.runtime.choice import obstacle
from zoo.errors import IncompatibleBundleError


def engine_sides(
    bundle: Bundle, wanted: Sequence[str], task: Task, stack: ExitStack
) -> tuple[list[Side], dict[str, str]]:
    """A side for each wanted engine, or for all that run here when none is named; and why the others do not.

    They are closed with the `stack`. Raises BadInputError for an unknown name, IncompatibleBundleError for a named
    engine that cannot run, and when none can.
    """
    specs = [bundle.manifest.engine(name) for name in dict.fromkeys(wanted)] or list(bundle.manifest.engines)
    sides: list[Side] = []
    left_out: dict[str, str] = {}
    for spec in specs:
        reason = None if wanted else obstacle(bundle, spec, task.device)
        if reason is None:
            sides.append(_side(bundle, spec, task, stack))
        else:
            left_out[spec.name] = reason
    if not sides:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise IncompatibleBundleError(f"{bundle.folder}: no engine can run on {task.device} ({reasons})")
    return sides, left_out


def _side(bundle: Bundle, spec: Engine, task: Task, stack: ExitStack) -> Side:
    scorer = stack.enter_context(
        load(bundle.folder, engine=spec.name, device=task.device, threads=task.threads, batch_size=len(task.jpegs))
    )
    found = spec.verification
    about = About(
        spec.name,
        f"{scorer.engine.provider} on {scorer.engine.device}",
        spec.precision,
        peer=False,
        verified=None if found is None else found.passed,
        flips=None if found is None else f"{found.flips} of {found.inputs}",
    )
    return Side(about, _from_jpegs(scorer, task) if task.input == "jpeg" else _from_pixels(scorer, task))


def _from_jpegs(scorer: BundleScorer, task: Task) -> Callable[[int], Run]:
    def at(batch: int) -> Run:
        return lambda: scorer.verdicts(task.jpegs[:batch])

    return at


def _from_pixels(scorer: BundleScorer, task: Task) -> Callable[[int], Run]:
    feeds = scorer.feeds([scorer.prepare(data) for data in task.jpegs])

    def at(batch: int) -> Run:
        part = {name: value[:batch] for name, value in feeds.items()}
        return lambda: scorer.engine(part)

    return at
