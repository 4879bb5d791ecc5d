"""TensorRT engines of a bundle: pinned buffers, a stream of their own, numpy in and out. No torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle.manifest import Device, Engine, Shapes
from export.bundle.rebuild import rebuild
from export.bundle.store import Banks, Bundle, read_banks
from export.runtime.cuda import Buffer, LocalGpu, call, cudart, local_gpu
from export.runtime.engine import RunningEngine
from export.tensorrt.package import GRAPH, REPORT, Package, PlanReport, errors_in, load_package
from zoo.contract import schema
from zoo.errors import BadArgumentError, IncompatibleBundleError, MissingDependencyError, TamperedFileError
from zoo.files.held import HeldFiles
from zoo.judging.scorer import Feeds

OUTPUTS = ("logits", "scores")
#: Gives the command that builds a plan again, with changed options: `mend(text_bank="input")`.
Mend = Callable[..., str]


class TensorRTEngine(RunningEngine):
    """A plan on the first GPU with one execution context. Thread-safe: callers take turns.

    `banks` are the embedded phrases `[P, D]`, float32, that were the defaults of the graph. Others are uploaded or
    refitted before the next batch.
    """

    def __init__(self, plan: Path, spec: Engine, mend: Mend, files: HeldFiles | None = None) -> None:
        """Load a plan with the files beside it; `mend` gives the command that builds it again, for messages.

        `files` are those of its folder, if they are open already.

        Raises what `check_machine` raises, and IncompatibleBundleError where TensorRT does not take the plan.
        """
        super().__init__(spec, "cuda")
        files = files or HeldFiles(plan.parent)
        self.report = read_report(plan, files)
        self._mend = mend
        self._trt, gpu = check_machine(self.report, mend)
        self.provider = f"{self._trt.name} {self._trt.version} ({gpu.name})"
        self.banks = read_banks(files, plan.name)
        self._cuda = cudart()
        self._lock = threading.Lock()
        call(self._cuda.cudaSetDevice, 0)
        self._engine = self._load(plan, files)
        self._context = self._create_context()
        (self._stream,) = call(self._cuda.cudaStreamCreateWithFlags, self._cuda.cudaStreamNonBlocking)
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        self._buffers = {name: Buffer() for name in names}
        self._dtypes = {name: np.dtype(self._trt.module.nptype(self._engine.get_tensor_dtype(name))) for name in names}
        # A refittable bank is in the plan from the start; one that is an input is uploaded when it is first needed.
        self._current: dict[str, Any] = {name: self.banks.get(name) for name in self.report.refittable}

    def run(self, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and scores `[B, N]` of one batch; one that is smaller than the plan takes is filled up.

        Raises BadInputError for a shape that the profile does not hold, IncompatibleBundleError for a bank that cannot
        replace the plan's own.
        """
        rows = len(next(iter(feeds.values())))
        feeds, wanted = filled(feeds, self.spec.batch[0]), {**self.banks, **self.text_banks}
        for name, value in {**feeds, **wanted}.items():
            if name in self.report.refittable:
                check_refit(name, value.shape, self.banks[name].shape, self._mend)
            elif name in self.text_banks and name not in self.report.profiles:
                mend = self._mend(text_bank="input")
                raise IncompatibleBundleError(f'"{name}" is built into the plan; as an input it takes any: {mend}')
            else:
                check_shape(name, value.shape, self.report.profiles, self._mend)
        with self._lock:
            call(self._cuda.cudaSetDevice, 0)  # CUDA keeps the chosen GPU for each thread
            self._use_banks(wanted)
            for name, value in feeds.items():
                self._put(name, value)
            logits, scores = self._execute()
        return logits[:rows], scores[:rows]

    def close(self) -> None:
        """Give the GPU's memory back. The plan answers no more."""
        with self._lock:
            for buffer in self._buffers.values():
                buffer.close()
            self._buffers.clear()
            self._context = self._engine = None
            call(self._cuda.cudaStreamDestroy, self._stream)

    def _execute(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        for name in OUTPUTS:
            size = int(np.prod(self._context.get_tensor_shape(name))) * self._dtypes[name].itemsize
            self._buffers[name].reserve(size)
            self._context.set_tensor_address(name, self._buffers[name].device)
        if not self._context.execute_async_v3(int(self._stream)):
            raise IncompatibleBundleError(f"{self.provider} could not run a batch; is the GPU out of memory?")
        pinned = [
            self._buffers[name].download(tuple(self._context.get_tensor_shape(name)), self._dtypes[name], self._stream)
            for name in OUTPUTS
        ]
        call(self._cuda.cudaStreamSynchronize, self._stream)
        logits, scores = (array.copy() for array in pinned)
        return logits, scores

    def _put(self, name: str, value: NDArray[Any]) -> None:
        buffer = self._buffers[name]
        buffer.upload(np.asarray(value, dtype=self._dtypes[name]), self._stream)
        self._context.set_input_shape(name, value.shape)
        self._context.set_tensor_address(name, buffer.device)

    def _use_banks(self, banks: Banks) -> None:
        """Upload or refit the banks that are not those of the last batch."""
        changed = {name: bank for name, bank in banks.items() if self._current.get(name) is not bank}
        refit = {name: bank for name, bank in changed.items() if name in self.report.refittable}
        for name in changed.keys() - refit.keys():
            self._put(name, changed[name])
        if refit:
            self._refit(refit)
        self._current |= changed

    def _refit(self, banks: Banks) -> None:
        with self._trt.listen() as log:
            refitter = self._trt.module.Refitter(self._engine, self._trt.logger)
            kept = {name: np.ascontiguousarray(bank, dtype=np.float32) for name, bank in banks.items()}
            taken = [refitter.set_named_weights(name, self._trt.module.Weights(bank)) for name, bank in kept.items()]
            if not all(taken) or not refitter.refit_cuda_engine():
                raise IncompatibleBundleError(f"{self.provider} does not refit {sorted(banks)}: {errors_in(log)}")

    def _load(self, plan: Path, files: HeldFiles) -> Any:
        with self._trt.listen() as log:
            engine = self._trt.module.Runtime(self._trt.logger).deserialize_cuda_engine(files.read(plan.name))
            if engine is None:
                words = f"{self._trt.name} does not load it: {errors_in(log)}"
                raise IncompatibleBundleError(f"{plan}: {words}: {self._mend()}")
            if self.report.stripped:
                graph = plan.with_suffix(GRAPH)
                refitter = self._trt.module.Refitter(engine, self._trt.logger)
                parser = self._trt.module.OnnxParserRefitter(refitter, self._trt.logger)
                if not parser.refit_from_bytes(files.read(graph.name)) or not refitter.refit_cuda_engine():
                    raise IncompatibleBundleError(
                        f"{plan}: not refitted from {graph}: {errors_in(log)}: {self._mend()}"
                    )
        return engine

    def _create_context(self) -> Any:
        if self._trt.is_rtx:  # which records and replays CUDA graphs by itself
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._trt.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            need = self.report.activation_bytes / 1e6
            raise IncompatibleBundleError(f"no room on the GPU: one context needs {need:.0f} MB for its largest batch")
        return context


def read_report(plan: Path, files: HeldFiles | None = None) -> PlanReport:
    """The report beside a plan. Raises TamperedFileError if it is missing, BadCardError."""
    path = plan.with_suffix(REPORT)
    files = files or HeldFiles(plan.parent)
    for needed in (plan, path):
        if not files.has(needed.name):
            raise TamperedFileError(f"{needed}: missing; a plan needs its report to be run")
    return PlanReport.from_dict(schema.read_json(path, files.read(path.name)), str(path))


def check_machine(report: PlanReport, mend: Mend) -> tuple[Package, LocalGpu]:
    """The TensorRT and the GPU that run a plan; `mend` gives the command that builds it again.

    Raises MissingDependencyError without that TensorRT or `cuda-bindings`, IncompatibleBundleError without a GPU, or if
    the version or the GPU differs from that of the build.
    """
    trt = load_package(report.package)
    if trt.version != report.version:
        raise IncompatibleBundleError(
            f"the plan was built by {report.package} {report.version}, and {trt.version} is installed: {mend()}"
        )
    gpu = local_gpu()
    check_gpu(report, gpu, mend)
    return trt, gpu


def check_gpu(report: PlanReport, gpu: LocalGpu, mend: Mend) -> None:
    """Raise IncompatibleBundleError if a plan was built for other GPUs than this one."""
    if gpu.capability not in report.capabilities:
        other = {"capability": (gpu.capability,)} if report.package == "tensorrt_rtx" else {}
        built = ", ".join(report.capabilities)
        raise IncompatibleBundleError(
            f"the plan was built for {built}, and {gpu.name} is {gpu.capability}: {mend(**other)}"
        )


def check_shape(name: str, shape: tuple[int, ...], profiles: Mapping[str, Shapes], mend: Mend) -> None:
    """Raise BadInputError if the plan has no such input, or not of that shape."""
    if name not in profiles:
        raise BadArgumentError(f'the plan has no input "{name}", it reads {sorted(profiles)}')
    least, _, largest = profiles[name]
    inside = len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, largest, strict=True))
    if not inside:
        raise BadArgumentError(
            f'"{name}" is {list(shape)}, and the plan takes {list(least)} to {list(largest)}: '
            + mend(**_wider(name, shape, profiles[name]))
        )


def _wider(name: str, shape: tuple[int, ...], built: Shapes) -> dict[str, tuple[int, int, int]]:
    """The options of a plan that takes this shape too; empty if neither batch nor image size is the reason."""
    least, usual, largest = built
    if name not in ("image", "input_ids", "attention_mask", "term_weights", "image_present") or shape[3:] != least[3:]:
        return {}
    options = {"batch": (min(least[0], shape[0]), usual[0], max(largest[0], shape[0]))}
    if name == "image":
        options["image"] = (min(*least[1:3], *shape[1:3]), usual[1], max(*largest[1:3], *shape[1:3]))
    return options


def check_refit(name: str, shape: tuple[int, ...], built: tuple[int, ...], mend: Mend) -> None:
    """Raise IncompatibleBundleError if a bank cannot replace the constant that is in the plan."""
    if shape != built:
        raise IncompatibleBundleError(
            f'"{name}" is a constant of {list(built)} in the plan, which one of {list(shape)} cannot replace; as an '
            f"input it takes any: {mend(text_bank='input')}"
        )


def obstacle(bundle: Bundle, spec: Engine, device: Device) -> str | None:
    """Why a plan cannot run on this machine, found without loading it; None if no reason is known."""
    try:
        check_machine(read_report(bundle.folder / spec.files[0], bundle.files), _mend(bundle, spec))
    except (IncompatibleBundleError, MissingDependencyError) as problem:
        return str(problem)
    return None


def open_engine(bundle: Bundle, spec: Engine, device: Device, threads: int | None) -> TensorRTEngine:
    """Load a plan of a bundle. Raises IncompatibleBundleError when this machine cannot run it."""
    return TensorRTEngine(bundle.folder / spec.files[0], spec, _mend(bundle, spec), bundle.files)


def filled(feeds: Feeds, least: int) -> Feeds:
    """A batch of at least `least` rows: the last row is repeated for those that are missing."""
    missing = least - len(next(iter(feeds.values())))
    if missing <= 0:
        return feeds
    return {name: np.concatenate([value, np.repeat(value[-1:], missing, axis=0)]) for name, value in feeds.items()}


def _mend(bundle: Bundle, spec: Engine) -> Mend:
    return partial(rebuild, bundle.manifest, spec, bundle.folder)
