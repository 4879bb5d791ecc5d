"""What a TensorRT plan was built from, for and with: the file beside it that the runtime reads before it loads it."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from export.bundle import Shapes
from export.tensorrt.package import PackageName
from zoo.contract import schema

#: What lies beside `x.plan`: its report `x.json`, the builder's log `x.log`, and for a plan without weights the graph
#: `x.onnx` that has them.
REPORT, LOG, GRAPH = ".json", ".log", ".onnx"


@dataclass(frozen=True, config=schema.STRICT)
class Report(schema.PlainData):
    """How a plan came about and what is in it.

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
