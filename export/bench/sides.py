"""The sides of a benchmark: what each is given, and those of the bundle's own engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from export.bench.report import About
from export.bundle.manifest import Device, Engine
from export.bundle.store import Bundle
from export.runtime import load
from export.runtime.engine import obstacle
from export.verify.inputs import drawn_images, encoded
from zoo.errors import IncompatibleBundleError
from zoo.judging.scorer import feeds

#: `jpeg` is the whole road from the bytes of a file to a verdict, `pixels` the network alone.
Input = Literal["jpeg", "pixels"]
Run = Callable[[], object]


@dataclass(frozen=True)
class Task:
    """The same for all sides: JPEG files (as many as the largest batch), where they enter, device and threads."""

    jpegs: list[bytes]
    input: Input
    device: Device
    threads: int


@dataclass(frozen=True)
class Side:
    """One candidate of the benchmark; `at(batch)` prepares that many inputs and returns the run on them."""

    about: About
    at: Callable[[int], Run]


def drawn_jpegs(count: int, size: tuple[int, int]) -> list[bytes]:
    """Drawn pictures of `size` (width, height), a third with photo-like noise, whose JPEGs are as large as photos'."""
    pictures = (Image.fromarray(pixels[: size[1], : size[0]]) for pixels in drawn_images(count, max(size)))
    return [encoded(picture, "JPEG", quality=90) for picture in pictures]


def engine_sides(
    bundle: Bundle, wanted: Sequence[str], task: Task, stack: ExitStack
) -> tuple[list[Side], dict[str, str]]:
    """A side for each wanted engine, or for all that run here when none is named; and why the others do not.

    They are closed with the `stack`. Raises BadInputError for an unknown name, IncompatibleBundleError for a named
    engine that cannot run, and when none can.
    """
    specs = [bundle.manifest.engine(name) for name in dict.fromkeys(wanted)] or list(bundle.manifest.engines)
    left_out = {} if wanted else {spec.name: why for spec in specs if (why := obstacle(bundle, spec, task.device))}
    sides = [_side(bundle, spec, task, stack) for spec in specs if spec.name not in left_out]
    if not sides:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise IncompatibleBundleError(f"{bundle.folder}: no engine can run on {task.device} ({reasons})")
    return sides, left_out


def _side(bundle: Bundle, spec: Engine, task: Task, stack: ExitStack) -> Side:
    scorer = stack.enter_context(
        load(bundle.folder, engine=spec.name, device=task.device, threads=task.threads, batch_size=len(task.jpegs))
    )
    verification = spec.verified_on(task.device)
    passed = flips = None
    if verification is not None:
        passed, flips = verification.passed, f"{verification.flips} of {verification.inputs}"
    about = About(
        spec.name, f"{scorer.engine.provider} on {scorer.engine.device}", spec.precision, False, passed, flips
    )
    if task.input == "jpeg":
        return Side(about, lambda batch: lambda: scorer.verdicts(task.jpegs[:batch]))
    arrays = feeds(scorer.card, [scorer.prepare(data) for data in task.jpegs])

    def at(batch: int) -> Run:
        part = {name: value[:batch] for name, value in arrays.items()}
        return lambda: scorer.engine(part)

    return Side(about, at)
