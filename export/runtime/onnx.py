"""ONNX engines on onnxruntime, only on the device that was asked for. No torch."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle.manifest import Device, Engine, Precision
from export.bundle.store import Bundle
from export.runtime.engine import RunningEngine
from zoo.errors import IncompatibleBundleError, MissingDependencyError, ZooError
from zoo.files.held import HeldFiles
from zoo.judging.banks import cache_folder
from zoo.judging.scorer import Feeds

log = logging.getLogger("export.runtime.onnx")

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
#: What is tried on each device, in this order. A session that would run elsewhere is refused.
PROVIDERS: dict[Device, tuple[str, ...]] = {"cuda": (TENSORRT, CUDA), "cpu": ("CPUExecutionProvider",)}


class OnnxEngine(RunningEngine):
    """One onnxruntime session on a graph. Thread-safe, as onnxruntime's sessions are.

    >>> spec = runtime.load("my_bundle").engine.spec
    >>> engine = runtime.OnnxEngine(Path("my_bundle") / spec.files[0], spec, threads=1)
    >>> engine(feeds={"image": np.zeros((1, 64, 64, 3), np.uint8)}).shape[0]
    1
    """

    def __init__(
        self,
        path: Path,
        spec: Engine,
        device: Device = "cpu",
        threads: int | None = None,
        files: HeldFiles | None = None,
    ) -> None:
        """Load the graph at `path`, from the `files` of its folder where they are held open already."""
        super().__init__(spec, device)
        self.session, self.provider = open_session(path, device, threads, spec.precision, files, spec.files[1:])

    def run(self, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and scores `[B, N]` of one batch."""
        logits, scores = self.session.run(["logits", "scores"], {**feeds, **self.text_banks})
        return logits, scores


def obstacle(bundle: Bundle, spec: Engine, device: Device) -> str | None:
    """Why an ONNX engine cannot run on a device of this machine; None when it can. Raises what `onnxruntime` raises."""
    ort = onnxruntime()
    if PROVIDERS[device][-1] not in ort.get_available_providers():
        return _no_provider(ort, device)
    if spec.precision == "bf16" and device == "cpu":
        return "onnxruntime has no bfloat16 kernels for CPUs"
    return None


def open_engine(bundle: Bundle, spec: Engine, device: Device, threads: int | None) -> OnnxEngine:
    """Load an ONNX engine of a bundle. Raises IncompatibleBundleError when it does not start on that device."""
    return OnnxEngine(bundle.folder / spec.files[0], spec, device, threads, bundle.files)


def open_session(
    path: Path,
    device: Device,
    threads: int | None,
    precision: Precision = "fp32",
    files: HeldFiles | None = None,
    data: Sequence[str] = (),
) -> tuple[Any, str]:
    """A session on that very device, and in words: the provider that runs it, and why the ones before it do not.

    `files` hold the folder of the graph open; `data` are those of its files with weights, and no other is read.
    Raises IncompatibleBundleError when none of the device's providers runs it: never a fall to another device.
    """
    ort = onnxruntime()
    if PROVIDERS[device][-1] not in ort.get_available_providers():
        raise IncompatibleBundleError(_no_provider(ort, device))
    options = ort.SessionOptions()
    options.log_severity_level = 3  # a default bank that may be replaced draws a warning on every load
    if threads is not None:
        options.intra_op_num_threads = threads
    # Where a graph without a path would look for weights: by a relative name, in the current folder.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    files = files or HeldFiles(path.parent)
    passed_over: list[str] = []
    for provider in PROVIDERS[device]:
        reason = _no_tensorrt(ort, precision) if provider == TENSORRT else None
        if reason is None:
            session = _start(ort, path, options, provider, files, data)
            chosen = session.get_providers()
            if chosen[0] == provider:
                return session, provider + (f" ({'; '.join(passed_over)})" if passed_over else "")
            reason = f"onnxruntime chose {chosen} in its place"  # onnxruntime-gpu falls back without a word
        passed_over.append(f"not {provider}: {reason}")
    raise IncompatibleBundleError(f"{device} was asked for, but {'; '.join(passed_over)}")


def _start(ort: Any, path: Path, options: Any, provider: str, files: HeldFiles, data: Sequence[str]) -> Any:
    settings: dict[str, str] = {}
    if provider == CUDA:
        settings["use_tf32"] = "0"  # on by default: 10 bits of mantissa in what says float32
    elif provider == TENSORRT and not files.signed:  # it builds an engine for each new batch size, in minutes
        # Its own keys are of names alone, and another model of the architecture would answer with these weights.
        try:
            cache = cache_folder() / "tensorrt" / "-".join(files.sha256(name) for name in (path.name, *data))
            cache.mkdir(parents=True, exist_ok=True)
            settings |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}
        except (OSError, RuntimeError) as problem:
            log.warning("TensorRT's engines cannot be kept (%s)", getattr(problem, "strerror", problem))
    try:
        with ExitStack() as held:
            buffers = [held.enter_context(files.content(name)) for name in data]
            if data:
                options.add_external_initializers_from_files_in_memory(data, buffers, [len(one) for one in buffers])
            # TensorRT's provider names what it keeps by the name of the graph, if it has one.
            graph = files.read(path.name) if provider == TENSORRT else held.enter_context(files.place(path.name))
            return ort.InferenceSession(graph, options, providers=[(provider, settings)])
    except ZooError:
        raise
    except Exception as problem:  # onnxruntime's errors share no public base class
        raise IncompatibleBundleError(f"{path}: onnxruntime {ort.__version__} cannot run it: {problem}") from None


def _no_tensorrt(ort: Any, precision: Precision) -> str | None:
    """Why onnxruntime's TensorRT provider is not used; None if it can be."""
    if TENSORRT not in ort.get_available_providers():
        return "this onnxruntime was built without it"
    if precision == "fp32":
        return "it would multiply float32 as TF32, with 10 bits of mantissa"
    installed = _version("tensorrt")
    if installed is None or not installed.startswith("10."):
        return f"it needs tensorrt 10, and {installed or 'none'} is installed"
    importlib.import_module("tensorrt")  # which loads the libraries that onnxruntime looks for
    return None


def onnxruntime() -> Any:
    """Import onnxruntime on first use; refuse the two distributions side by side, which break each other."""
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        raise IncompatibleBundleError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'safety-zoo[cpu]' (or [gpu])"
        )
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime is not installed: pip install 'safety-zoo[cpu]' (or [gpu])") from None
    return onnxruntime


def installed_version() -> dict[str, str]:
    """The distribution of onnxruntime that is here, and its version. Raises what `onnxruntime` raises."""
    onnxruntime()
    names = ("onnxruntime", "onnxruntime-gpu")
    return {name: number for name in names if (number := _version(name)) is not None}


def _no_provider(ort: Any, device: Device) -> str:
    return (
        f"onnxruntime {ort.__version__} has no {PROVIDERS[device][-1]}; "
        "install `safety-zoo[gpu]` in place of `safety-zoo[cpu]`"
    )


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
