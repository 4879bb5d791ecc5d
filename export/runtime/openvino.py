"""OpenVINO engines of a bundle, on the CPU (see `export.runtime.engine`). No torch."""

from __future__ import annotations

import threading
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle.manifest import Device, Engine
from export.bundle.store import Bundle, read_banks
from export.runtime.engine import RunningEngine
from zoo.errors import IncompatibleBundleError, MissingDependencyError
from zoo.files.held import HeldFiles
from zoo.judging.scorer import Feeds

#: Inputs of one shape each, by name.
InputShapes = dict[str, tuple[int, ...]]


class OpenVINOEngine(RunningEngine):
    """A graph compiled by OpenVINO, for images of the model's own size. Thread-safe: callers take turns.

    It is compiled for batches of any size, and beside that for each of the shapes in `exact`: a tenth faster, for as
    much memory again as the weights take.
    """

    def __init__(self, files: HeldFiles, spec: Engine, exact: list[InputShapes], threads: int | None = None) -> None:
        """Load the graph of `spec` from its folder. Raises IncompatibleBundleError if OpenVINO does not take it."""
        super().__init__(spec, "cpu")
        self.provider = f"openvino {version('openvino')}"
        self._banks = read_banks(files, spec.files[0])
        self._lock = threading.Lock()
        try:
            core = openvino().Core()
            # The graph keeps reading from it. Mapped, what is written to the file would change the answers.
            self._weights = np.frombuffer(files.loaded(spec.files[1]), np.uint8)
            model = core.read_model(files.read(spec.files[0]), openvino().Tensor(self._weights, shared_memory=True))
            self._any = compile_graph(core, model, threads=threads).create_infer_request()
            self._exact = [(one, compile_graph(core, model, one, threads).create_infer_request()) for one in exact]
        except RuntimeError as problem:
            raise IncompatibleBundleError(
                f"{files.folder / spec.files[0]}: {self.provider} cannot run it: {problem}"
            ) from None

    def run(self, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and scores `[B, N]` of one batch."""
        shapes = {name: value.shape for name, value in feeds.items()}
        request = next((request for exact, request in self._exact if exact == shapes), self._any)
        with self._lock:
            request.infer({**feeds, **self._banks, **self.text_banks}, share_inputs=True)
            logits, scores = (request.get_tensor(name).data.copy() for name in ("logits", "scores"))
        return logits, scores


def obstacle(bundle: Bundle, spec: Engine, device: Device) -> str | None:
    """None: OpenVINO runs everywhere. Raises MissingDependencyError if it is not installed."""
    openvino()
    return None


def open_engine(bundle: Bundle, spec: Engine, device: Device, threads: int | None) -> OpenVINOEngine:
    """Load an engine of a bundle, for its least and its usual batch. Raises IncompatibleBundleError when it fails."""
    size = bundle.card.image.size if bundle.card.image else 0
    exact: list[InputShapes] = []
    for batch in sorted(set(spec.batch[:2])):
        sides = {"batch": batch, "height": size, "width": size}
        fed = [one for one in bundle.manifest.inputs if not one.optional]  # a bank is as long as the policy says
        if any("tokens" in one.shape for one in fed):
            break  # each batch of texts has a length of its own
        exact.append({one.name: tuple(sides[n] if isinstance(n, str) else n for n in one.shape) for one in fed})
    return OpenVINOEngine(bundle.files, spec, exact, threads)


def compile_graph(core: Any, model: Any, shapes: InputShapes | None = None, threads: int | None = None) -> Any:
    """The compiled graph, for inputs of these shapes (any if None), on `threads` threads (one per core if None).

    Raises RuntimeError if OpenVINO does not take the graph.
    """
    if shapes is not None:
        model = model.clone()  # which shares its weights
        model.reshape(shapes)
    # One stream: all threads work at one batch. And float32 is float32: OpenVINO takes bfloat16 where a CPU has it.
    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return core.compile_model(model, "CPU", settings)


def openvino() -> Any:
    """Import OpenVINO on first use. Raises MissingDependencyError without it."""
    try:
        import openvino
    except ImportError:
        raise MissingDependencyError("openvino is not installed: pip install 'safety-zoo[openvino]'") from None
    return openvino
