"""The installed TensorRT, and the report of how a plan was built. The runtime reads this too: no torch."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

import pydantic.dataclasses

from export.bundle.manifest import Shapes
from zoo.contract import schema
from zoo.errors import BadArgumentError, MissingDependencyError, close_match

PackageName = Literal["tensorrt", "tensorrt_rtx"]


@dataclass(frozen=True)
class LogLine:
    """One message of TensorRT: `severity` is INTERNAL_ERROR, ERROR, WARNING, INFO or VERBOSE."""

    severity: str
    message: str


def errors_in(log: list[LogLine]) -> str:
    """What TensorRT says is wrong."""
    return "; ".join(line.message for line in log if "ERROR" in line.severity) or "no reason given"


@dataclass(frozen=True)
class Package:
    """An imported TensorRT. `module` is what `import` gave, of `version`; `logger` the only one of this process."""

    name: PackageName
    module: Any
    logger: Any

    @property
    def version(self) -> str:
        """The version of the package: `10.9.0.34`, `1.7.1.116`."""
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT for RTX, which builds without a GPU, for any number of architectures at once."""
        return self.name == "tensorrt_rtx"

    @contextmanager
    def listen(self) -> Iterator[list[LogLine]]:
        """Collect what TensorRT says meanwhile. One listener at a time: others wait."""
        with self.logger.turn:
            self.logger.lines = []
            try:
                yield self.logger.lines
            finally:
                self.logger.lines = None


_loaded: dict[str, Package] = {}
_loading = threading.Lock()


def load_package(name: str | None = None) -> Package:
    """Import `tensorrt` or `tensorrt_rtx`; without a name NVIDIA's own `tensorrt` first, as the one for servers.

    Raises BadInputError for another name, MissingDependencyError where it is not installed.
    """
    names: tuple[PackageName, ...] = get_args(PackageName)
    if name is not None and name not in names:
        raise BadArgumentError(f'no TensorRT is named "{name}"' + close_match(name, names))
    with _loading:
        for candidate in names:
            if name in (None, candidate) and find_spec(candidate) is not None:
                if candidate not in _loaded:
                    module = importlib.import_module(candidate)
                    _loaded[candidate] = Package(candidate, module, _logger(module))
                return _loaded[candidate]
    raise MissingDependencyError(
        f"{name or 'TensorRT'} is not installed: pip install 'safety-zoo[tensorrt]' for NVIDIA's own TensorRT, or "
        "'safety-zoo[tensorrt-rtx]' for TensorRT for RTX, which builds engines without a GPU too"
    )


def _logger(module: Any) -> Any:
    """TensorRT keeps the first logger that a process gives it and ignores all later ones, so there is only this."""

    class Logger(module.ILogger):  # type: ignore[misc]  # no stubs
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.turn = threading.RLock()
            self.lines: list[LogLine] | None = None

        def log(self, severity: Any, message: str) -> None:
            if self.lines is not None:
                self.lines.append(LogLine(severity.name, message))

    return Logger()


#: The files beside `x.plan`: its report `x.json`, the builder's log `x.log`, and for a plan without weights the graph
#: `x.onnx` that has them.
REPORT, LOG, GRAPH = ".json", ".log", ".onnx"


@pydantic.dataclasses.dataclass(frozen=True, config=schema.STRICT)
class PlanReport(schema.PlainData):
    """How a plan was built and what is in it.

    `capabilities` are the GPU architectures that it runs on (`SM86`, CUDA's 8.6). `products` counts the matrix products
    and convolutions by precision and `layers` the engine's own layers by kind, both as the finished engine lists them.
    `refittable` weights can be replaced in the loaded engine; a `stripped` plan has no weights until it is refitted
    from its ONNX file. `activation_bytes` is the GPU memory that one context needs at the largest shapes.
    """

    _where = "TensorRT report"

    package: PackageName
    version: str
    capabilities: tuple[str, ...]
    profiles: dict[str, Shapes]
    products: dict[str, int]
    layers: dict[str, int]
    refittable: tuple[str, ...]
    stripped: bool
    plan_bytes: int
    activation_bytes: int
    seconds: float
