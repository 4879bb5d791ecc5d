"""One cell of the matrix, a model in one engine and precision, and the folder that keeps the cells. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from pydantic.dataclasses import dataclass as strict_dataclass

from export.bundle.manifest import Kind, Precision
from zoo.contract import schema
from zoo.errors import BadArgumentError, BadCardError

#: How far a cell is taken. `parse`: the graph is written, and TensorRT reads it. `build`: it starts on the CPU and is
#: timed, and TensorRT builds its plan. `verify`: the answers on the CPU are compared with the model's too.
Depth = Literal["parse", "build", "verify"]
DEPTHS: tuple[Depth, ...] = get_args(Depth)
Outcome = Literal["done", "missed", "refused", "failed"]

Column: TypeAlias = tuple[Kind, Precision]
#: TensorRT reads no int8 whose activations are scaled as they come, and OpenVINO is slow at it.
COLUMNS: tuple[Column, ...] = (
    ("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "bf16"), ("onnx", "int8"), ("onnx", "int8_qdq"),
    ("openvino", "fp32"), ("openvino", "int8_qdq"),
    ("tensorrt", "fp32"), ("tensorrt", "fp16"), ("tensorrt", "bf16"), ("tensorrt", "int8_qdq"),
)  # fmt: skip


#: The mark beside a cell that is being made.
BEGUN = ".begun"


@strict_dataclass(frozen=True, config=schema.STRICT)
class Cell(schema.PlainData):
    """What became of one model in one engine and precision.

    `outcome` is `done`, `missed` (verified, outside its budget), `refused` (an engine or the exporter cannot; `note`
    says why) or `failed` (an error that nobody expected). `graph` identifies the architecture, its policy and weights
    that are not random; `setting` says in which opset it was written and what it was calibrated and judged on.
    `products` counts the matrix products and convolutions by precision. `flips` of `inputs` verdicts changed, those at
    a threshold among them where the budget counts them; None where it was not verified. `difference` is the largest of
    a score, for where the model judges all inputs `alike`, so that few flips prove little. `ms` is the median processor
    time of a batch of one on one thread, `wall_ms` that on the clock. `seconds` is the processor time of the cell.
    """

    _where = "cell of the matrix"

    model: str
    kind: Kind
    precision: Precision
    depth: Depth
    graph: str
    setting: str
    versions: dict[str, str]
    outcome: Outcome
    note: str = ""
    products: dict[str, int] = field(default_factory=dict)
    inputs: int | None = None
    flips: int | None = None
    difference: float | None = None
    alike: bool = False
    ms: float | None = None
    wall_ms: float | None = None
    machine: str = ""
    seconds: float = 0.0
    schema_version: Literal[1] = 1

    @property
    def column(self) -> Column:
        """Its engine and precision."""
        return self.kind, self.precision


def reach(kind: Kind, depth: Depth) -> Depth:
    """How far an engine of a kind can be taken: plans of TensorRT are built, and verified by nobody without a GPU."""
    return "build" if kind == "tensorrt" and depth == "verify" else depth


@dataclass(frozen=True)
class Store:
    """The folder of the matrix: one JSON file for each cell, `MODEL/ENGINE-PRECISION.json`."""

    folder: Path

    def read(self) -> dict[tuple[str, Column], Cell]:
        """All cells, by model and column. Raises BadInputError for a file that is no cell."""
        found = {}
        for path in sorted(self.folder.glob("*/*.json")):
            try:
                cell = Cell.from_dict(schema.read_json(path), str(path))
            except BadCardError as problem:
                raise BadArgumentError(f"{problem}; remove it, and the next run makes it anew") from None
            found[cell.model, cell.column] = cell
        return found

    def begin(self, model: str, column: Column) -> None:
        """Mark a cell as begun. When the process is killed before it is written, the mark stays."""
        mark = self._path(model, column).with_suffix(BEGUN)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

    def was_cut(self, model: str, column: Column) -> bool:
        """Whether a cell was begun and never written."""
        return self._path(model, column).with_suffix(BEGUN).exists()

    def write(self, cell: Cell) -> None:
        """Keep a cell, whole or not at all."""
        path = self._path(cell.model, cell.column)
        fresh = path.with_suffix(".new")
        cell.write_json(fresh)
        os.replace(fresh, path)
        path.with_suffix(BEGUN).unlink(missing_ok=True)

    def _path(self, model: str, column: Column) -> Path:
        return self.folder / model / f"{'-'.join(column)}.json"
