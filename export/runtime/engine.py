"""A loaded engine, and the choice of the engine of a bundle that runs on this machine. No torch.

A module of `MODULES` knows how to run the engines of one kind. It has `obstacle(bundle, spec, device) -> str | None`
(why such an engine cannot run here, or None; MissingDependencyError without its library) and
`open_engine(bundle, spec, device, threads) -> RunningEngine`.
"""

from __future__ import annotations

import copy
import importlib
import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
from numpy.typing import NDArray

from export.bundle.manifest import COUNTED_AS, Device, Engine, Kind
from export.bundle.rebuild import rebuild, runs_anywhere
from export.bundle.store import Bundle
from zoo.errors import BadArgumentError, IncompatibleBundleError, MissingDependencyError, close_match
from zoo.judging.scorer import Feeds


class RunningEngine(ABC):
    """An engine that is loaded: the arrays of `card.input_names` in, logits and scores `[B, N]` out. Thread-safe.

    `spec` is its entry in the manifest, `device` where it runs, `provider` by what, `why` the reason for the choice.
    `text_banks` replace the model's own: each float32 `[P, D]`, unit norm over temperature.

    >>> engine = runtime.load("my_bundle").engine
    >>> isinstance(engine, runtime.RunningEngine), engine.spec.kind
    (True, 'onnx')
    """

    provider: str

    def __init__(self, spec: Engine, device: str) -> None:
        self.spec, self.device, self.why = spec, device, ""
        self.text_banks: dict[str, NDArray[np.float32]] = {}

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:
        """Scores `[B, N]` of one batch."""
        return self.run(feeds)[1]

    @property
    def name(self) -> str:
        """Which engine it is and where it runs, as verdicts say it."""
        return f"{self.spec.name} on {self.device}"

    @abstractmethod
    def run(self, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and scores `[B, N]` of one batch."""

    def with_banks(self, text_banks: dict[str, NDArray[np.float32]]) -> Self:
        """The same loaded engine with other text banks; this one keeps its own."""
        other = copy.copy(self)
        other.text_banks = text_banks
        return other


#: x86 instructions that sum products of 8 bits in 32 bits. Older ones sum in 16 bits and clamp larger values.
_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}


CPUINFO = Path("/proc/cpuinfo")


def told(key: str, cpuinfo: Path = CPUINFO) -> str | None:
    """What Linux tells about the first core: its `model name`, its `flags`; None if it tells nothing."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def clamps_int8(cpuinfo: Path = CPUINFO) -> bool:
    """Whether sums of 8-bit products may be clamped on this CPU, so that a verification made elsewhere says little.

    An x86 without VNNI does so (onnxruntime's documentation, "Quantize ONNX models"). False where Linux does not tell.
    """
    flags = told("flags", cpuinfo)
    return flags is not None and not _EXACT.intersection(flags.split())


log = logging.getLogger("export.runtime.engine")

MODULES = {kind: f"export.runtime.{kind}" for kind in get_args(Kind)}

#: What runs first, where it can and may. An int8 engine is for the kind of device that it was made for.
PREFERENCE: dict[Device, tuple[tuple[str, str], ...]] = {
    "cuda": (
        ("tensorrt", "fp16"), ("tensorrt", "bf16"), ("tensorrt", "int8_qdq"), ("tensorrt", "fp32"),
        ("onnx", "fp16"), ("onnx", "bf16"), ("onnx", "fp32"),
    ),
    "cpu": (("openvino", "int8_qdq"), ("onnx", "int8"), ("openvino", "fp32"), ("onnx", "fp32")),
}  # fmt: skip


def open_best(bundle: Bundle, *, device: str = "auto", engine: str | None = None, threads: int | None) -> RunningEngine:
    """Load the engine of that name, or else the first of `PREFERENCE` that this machine can run and that was verified.

    `device` is `auto` (CUDA where it is, else the CPU), `cpu` or `cuda`: what was asked for is what runs. An engine of
    fewer bits is taken by itself only when its verification passed on that kind of device (never where a CPU without
    VNNI may clamp its sums), an fp32 one unless it failed there. Raises IncompatibleBundleError with the reason for
    each engine when none is left, and the command that adds one, or MissingDependencyError where all that they lack are
    packages.
    """
    devices = devices_of(device)
    wanted = bundle.manifest.engine(engine) if engine is not None else None
    passed_over: dict[str, str] = {}
    for spec, place in _candidates(bundle, devices, wanted, passed_over):
        try:
            chosen: RunningEngine = module_of(spec).open_engine(bundle, spec, place, threads)
        except IncompatibleBundleError as problem:
            if wanted is not None or device != "auto":
                raise
            log.warning("%s does not start on %s: %s", spec.name, place, problem)
            passed_over[f"{spec.name} on {place}"] = str(problem)
            continue
        chosen.why = _why(chosen, bundle.judge.policy_id, wanted is not None, passed_over)
        return chosen
    reasons = "; ".join(f"{name}: {why}" for name, why in passed_over.items())
    if _lacks_package(bundle, wanted or _plain(bundle), devices):
        raise MissingDependencyError(f"{bundle.folder}: no engine can run here ({reasons})")
    mend = "" if device == "cuda" else _mend(bundle)
    raise IncompatibleBundleError(f"{bundle.folder}: no engine can run here ({reasons}){mend}")


def devices_of(device: str) -> tuple[Device, ...]:
    """The devices that `auto`, `cpu` or `cuda` stands for, the first choice first. Raises BadArgumentError."""
    devices: dict[str, tuple[Device, ...]] = {"auto": ("cuda", "cpu"), "cpu": ("cpu",), "cuda": ("cuda",)}
    if device not in devices:
        raise BadArgumentError(f'device must be "auto", "cpu" or "cuda", got "{device}"' + close_match(device, devices))
    return devices[device]


def obstacle(bundle: Bundle, spec: Engine, device: Device) -> str | None:
    """Why an engine cannot run on a device of this machine; None when it can."""
    if device not in spec.runs_on:
        return f"made for {' and '.join(spec.runs_on)}"
    try:
        reason: str | None = module_of(spec).obstacle(bundle, spec, device)
    except MissingDependencyError as problem:  # an engine of another kind may do without it
        return str(problem)
    return reason


def module_of(spec: Engine) -> Any:
    """The module that runs engines of this kind."""
    return importlib.import_module(MODULES[spec.kind])


def _candidates(
    bundle: Bundle, devices: tuple[Device, ...], wanted: Engine | None, passed_over: dict[str, str]
) -> list[tuple[Engine, Device]]:
    """The engines that can run here, each with its device, best first; the reasons of the others in `passed_over`."""
    candidates = []
    for device in devices:
        by_profile = sorted(bundle.manifest.engines, key=lambda spec: spec.profile)
        specs = [spec for pair in PREFERENCE[device] for spec in by_profile if (spec.kind, spec.precision) == pair]
        for spec in [wanted] if wanted is not None else specs:
            reason = obstacle(bundle, spec, device) or (None if wanted else _distrust(spec, device))
            if reason is None:
                candidates.append((spec, device))
            else:
                passed_over[f"{spec.name} on {device}"] = reason
    if not candidates and wanted is None:
        for spec in bundle.manifest.engines:
            if not any(key.startswith(f"{spec.name} on ") for key in passed_over):
                passed_over[spec.name] = f"chosen only by name: engine={spec.name}"
    return candidates


def _plain(bundle: Bundle) -> Engine | None:
    """The bundle's engine that runs on every machine with onnxruntime; None if it has no such engine."""
    return next((spec for spec in bundle.manifest.engines if (spec.kind, spec.precision) == ("onnx", "fp32")), None)


def _lacks_package(bundle: Bundle, spec: Engine | None, devices: tuple[Device, ...]) -> bool:
    """Whether a package is all that an engine lacks to run here."""
    try:
        for device in devices:
            if spec is not None and device in spec.runs_on:
                module_of(spec).obstacle(bundle, spec, device)
    except MissingDependencyError:
        return True
    return False


def _mend(bundle: Bundle) -> str:
    """The command that adds an engine for every machine, if the bundle has none or its own did not start."""
    plain = _plain(bundle)
    if plain is not None:
        return f"; take {plain.name}, or export it again: {rebuild(bundle.manifest, plain, bundle.folder)}"
    return f"; export one that can: {runs_anywhere(bundle.manifest, bundle.folder)}"


def _distrust(spec: Engine, device: Device) -> str | None:
    if device == "cpu" and COUNTED_AS[spec.precision] == "int8" and not spec.unclamped and clamps_int8():
        return f"this CPU has no VNNI, and may clamp its sums: verify it on one, and name it: engine={spec.name}"
    verification = spec.verified_on(device)
    if verification is not None:
        return None if verification.passed else "its verification failed"
    return None if spec.precision == "fp32" else f"{_unverified(spec, device)}, and it has fewer bits: run `zoo verify`"


def _unverified(spec: Engine, device: str) -> str:
    others = " and ".join(one.kind for one in spec.verifications)
    return f"verified on {others} only, not on {device}" if others else "not verified"


def _why(engine: RunningEngine, policy: str, named: bool, passed_over: dict[str, str]) -> str:
    spec = engine.spec
    verification = spec.verified_on(engine.device)
    if verification is None:
        proof = _unverified(spec, engine.device) if spec.verifications else "not verified yet"
    else:
        proof = "verified" if verification.passed else "FAILED"
        if verification.policy not in ("", policy):
            proof += f" by the policy {verification.policy}, not by {policy}"
    reason = "asked for by name" if named else "the first choice of those that can run here"
    text = f"{spec.name} on {engine.device} by {engine.provider}, {proof}: {reason}"
    return text + "".join(f"; not {name}: {why}" for name, why in passed_over.items())
