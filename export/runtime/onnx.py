"""ONNX engines on onnxruntime, on the device that was asked for or not at all. No torch."""

from __future__ import annotations

import copy
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from export.bundle import Bundle, Device, Engine
from zoo.errors import IncompatibleBundleError, MissingDependencyError
from zoo.scorer import Feeds

PROVIDERS: dict[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxEngine:
    """One onnxruntime session on a graph. Thread-safe, as onnxruntime's sessions are (see `RunningEngine`)."""

    def __init__(self, path: Path, spec: Engine, device: Device = "cpu", threads: int | None = None) -> None:
        self.session = session(path, device, threads)
        self.spec, self.why = spec, ""
        self.device: str = device
        self.provider: str = self.session.get_providers()[0]
        self.text_banks: dict[str, NDArray[np.float32]] = {}

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:
        """Scores `[B, N]` of one batch; the feeds are those of `card.input_names`."""
        return self.run(feeds)[1]

    def run(self, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and scores `[B, N]` of one batch."""
        logits, scores = self.session.run(["logits", "scores"], {**feeds, **self.text_banks})
        return logits, scores

    def with_banks(self, text_banks: dict[str, NDArray[np.float32]]) -> Self:
        """The same session with other text banks."""
        other = copy.copy(self)
        other.text_banks = text_banks
        return other


def obstacle(bundle: Bundle, spec: Engine, device: Device) -> str | None:
    """Why an ONNX engine cannot run on a device of this machine; None when it can."""
    ort = onnxruntime()
    if PROVIDERS[device] not in ort.get_available_providers():
        return _no_provider(ort, device)
    if spec.precision == "bf16" and device == "cpu":
        return "onnxruntime has no bfloat16 kernels for CPUs"
    return None


def open_engine(bundle: Bundle, spec: Engine, device: Device, threads: int | None) -> OnnxEngine:
    """Load an ONNX engine of a bundle. Raises IncompatibleBundleError when it does not start on that device."""
    return OnnxEngine(bundle.path(spec), spec, device, threads)


def session(path: Path, device: Device, threads: int | None) -> Any:
    """An onnxruntime session on that very device. Raises IncompatibleBundleError when it would run elsewhere."""
    ort = onnxruntime()
    wanted = PROVIDERS[device]
    if wanted not in ort.get_available_providers():
        raise IncompatibleBundleError(_no_provider(ort, device))
    options = ort.SessionOptions()
    options.log_severity_level = 3  # a default bank that may be replaced draws a warning on every load
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        found = ort.InferenceSession(path, options, providers=[wanted])
    except Exception as problem:  # onnxruntime's errors share no public base class
        raise IncompatibleBundleError(f"{path}: onnxruntime {ort.__version__} cannot run it: {problem}") from None
    if found.get_providers()[0] != wanted:  # onnxruntime-gpu falls back to the CPU without a word
        raise IncompatibleBundleError(f"{device} was asked for, but onnxruntime chose {found.get_providers()}")
    return found


def onnxruntime() -> Any:
    """Import onnxruntime on first use; refuse the two distributions side by side, which break each other."""
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise IncompatibleBundleError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'safety-zoo[cpu]' (or [gpu])"
        )
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime is not installed: pip install 'safety-zoo[cpu]' (or [gpu])") from None
    return onnxruntime


def _no_provider(ort: Any, device: Device) -> str:
    return (
        f"onnxruntime {ort.__version__} has no {PROVIDERS[device]}; "
        "install `safety-zoo[gpu]` in place of `safety-zoo[cpu]`"
    )


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
