"""The content of manifest.json: engines, how each was built and verified, hashes of all files. No torch."""

from __future__ import annotations

import json
import logging
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from pydantic.dataclasses import dataclass

from zoo.assets import find_asset
from zoo.contract import schema
from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError, close_match
from zoo.files.writing import MANIFEST, write_file

#: `int8` has per-channel weights and activations with a scale per row, found as they come, for onnxruntime on CPUs;
#: `int8_qdq` has fixed scales from calibration inputs (`QuantizeLinear` and `DequantizeLinear` nodes), for GPUs and
#: OpenVINO.
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8_qdq"]

#: As what the matrix products of a graph of each precision are counted.
COUNTED_AS: dict[Precision, str] = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8", "int8_qdq": "int8"}


@dataclass(frozen=True, config=schema.STRICT)
class Budget(schema.YamlData):
    """The largest differences with which an engine passes.

    `max_logit_difference` is absolute, None for no limit. `max_flips` is the share of inputs, in [0, 1], whose verdict
    may change. `max_auroc_loss` counts where labelled data were given. `max_company_difference` is how far a score may
    lie from that of the same input alone in its batch, None for no limit. `at_threshold` says whether inputs that were
    placed at a threshold on purpose count too: float32 keeps their verdicts, fewer bits cannot.
    """

    _where = "budget"

    name: str
    summary: str
    max_logit_difference: float | None
    max_flips: float
    max_auroc_loss: float | None
    at_threshold: bool
    max_company_difference: float | None = None
    schema_version: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.max_flips <= 1:
            raise ValueError(f"max_flips is a share in [0, 1], got {self.max_flips}")
        for name in ("max_logit_difference", "max_auroc_loss", "max_company_difference"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be below 0, got {value}")


def budget_of(precision: Precision) -> Budget:
    """The shipped budget of a precision; both kinds of int8 share one. Raises BadInputError for an unknown one."""
    if precision not in get_args(Precision):
        raise BadArgumentError(f'no precision is named "{precision}"' + close_match(precision, get_args(Precision)))
    return Budget.read(find_asset(f"configs/export/{precision.removesuffix('_qdq')}.yaml"))


log = logging.getLogger("export.bundle.manifest")

#: 20 is what TensorRT for RTX builds in every precision; 23 (`Attention`) it refuses in float32.
OPSET = 20
#: The first in which a convolution may be bfloat16.
OPSET_BF16 = 22

TEXT_ENCODER = "text_encoder.onnx"

Kind = Literal["onnx", "openvino", "tensorrt"]
Profile = Literal["latency", "throughput"]
Device = Literal["cpu", "cuda"]
#: Options of `zoo export` by name: a flag is true, a repeatable option several texts (see `given`).
Given: TypeAlias = dict[str, bool | str | tuple[str, ...]]
#: Least, usual and largest number, such as of a batch.
Range: TypeAlias = tuple[int, int, int]
#: The usual batches of a profile.
BATCHES: dict[Profile, Range] = {"latency": (1, 8, 64), "throughput": (1, 32, 256)}
#: Least, usual and largest shape of an input. An engine is fastest at the usual one and takes no other than between.
Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, config=schema.STRICT)
class TensorSpec:
    """One input or output of the graph. A string in `shape` is a dimension that may vary."""

    name: str
    dtype: Literal["uint8", "int64", "bool", "float32"]
    shape: tuple[int | str, ...]
    optional: bool = False


def contract(card: ModelCard) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of the graph that a card implies."""
    sides: tuple[int | str, ...] = ("height", "width")
    if card.image is not None and card.image.recompress is not None:
        sides = (card.image.size, card.image.size)  # no graph saves a JPEG of what it resized
    specs = {"image": TensorSpec("image", "uint8", ("batch", *sides, 3))}
    if card.text is not None:
        length = "tokens" if card.text.variable_length else card.text.context_length
        for name in ("input_ids", "attention_mask"):
            specs[name] = TensorSpec(name, "int64", ("batch", length))
        specs["term_weights"] = TensorSpec("term_weights", "float32", ("batch", length))
    specs["image_present"] = TensorSpec("image_present", "bool", ("batch",))
    inputs = [specs[name] for name in card.input_names]
    columns: int | str = len(card.labels)
    if card.bank_names:
        width = card.hparams.get("embedding_dim", "width")
        # Each bank has a length of its own; the outputs are as wide as all heads together.
        lengths = ["phrases" if len(card.bank_names) == 1 else f"phrases_{n}" for n in range(len(card.bank_names))]
        banks = zip(card.bank_names, lengths, strict=True)
        inputs += [TensorSpec(name, "float32", (length, width), optional=True) for name, length in banks]
        columns = "phrases"
    if card.task == "panel":
        columns = "outputs"
    outputs = tuple(TensorSpec(name, "float32", ("batch", columns)) for name in ("logits", "scores"))
    return tuple(inputs), outputs


@dataclass(frozen=True, config=schema.STRICT)
class Difference:
    """How one output differs from the trained model's: absolute differences, and the least cosine of two rows.

    None if an engine answered no finite number.
    """

    max: float | None
    mean: float | None
    p99: float | None
    cosine: float | None


@dataclass(frozen=True, config=schema.STRICT)
class Verification:
    """The result of `zoo verify` for one engine, on the `device` that it ran on.

    `flips` are verdicts that changed among the `inputs`; `flips_at_threshold` those among the `at_threshold` inputs
    that were placed there on purpose, which count if the budget says so. `flipped` names the first of them.
    `at_shapes` are the largest differences of the logits in batches of some sizes, and for images of some sizes, which
    the graph resizes by itself. `options` are those of `zoo verify` that said what it was verified on, and `policy` the
    id of that by which verdicts were counted. `company` is how far a score lies from that of the same input alone in
    its batch, None if that was not measured.
    """

    passed: bool
    inputs: int
    flips: int
    at_threshold: int
    flips_at_threshold: int
    outputs: dict[str, Difference]
    device: str
    image_source: str
    flipped: tuple[str, ...] = ()
    auroc: float | None = None
    auroc_loss: float | None = None
    problems: tuple[str, ...] = ()
    at_shapes: dict[str, float | None] = field(default_factory=dict)
    options: Given = field(default_factory=dict)
    policy: str = ""
    company: float | None = None

    @property
    def kind(self) -> Device:
        """The kind of device that it ran on, and counts for."""
        return "cuda" if self.device.startswith("cuda") else "cpu"


@dataclass(frozen=True, config=schema.STRICT)
class Gpu:
    """What a plan was built for: architectures by TensorRT's names, such as `SM80, SM89`; the card if it is for one."""

    name: str
    capability: str


@dataclass(frozen=True, config=schema.STRICT)
class Engine:
    """One way to run the model: a graph or plan in one precision.

    `files` are in the bundle, the one to load first. `batch` are the least, the usual and the largest batch. `runs_on`
    are the devices that it is meant for. `matmuls` counts the matrix products and convolutions by their precision, as
    read from the finished graph or plan. Its text banks are those of the policy `embedded` (the policy's id) until
    others are fed. `options` are what it was exported with beside precision and profile, for the command that makes it
    again. `shapes` are those that a plan was built for, by input. With `unclamped`, 8-bit sums fit the 16 bits that an
    x86 without VNNI has for them. `budget` is what was asked when it was verified, None until then. `verification` is
    the latest one, `elsewhere` the latest on each other kind of device.
    """

    name: str
    kind: Kind
    precision: Precision
    files: tuple[str, ...]
    profile: Profile
    batch: Range
    runs_on: tuple[Device, ...]
    matmuls: dict[str, int]
    embedded: str
    opset: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    gpu: Gpu | None = None
    options: Given = field(default_factory=dict)
    shapes: dict[str, Shapes] = field(default_factory=dict)
    budget: Budget | None = None
    verification: Verification | None = None
    elsewhere: tuple[Verification, ...] = ()
    unclamped: bool = False

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError(f'engine "{self.name}" has no file')
        if not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise ValueError(f"batch is least:usual:largest, from 1 upwards, got {list(self.batch)}")

    @property
    def verifications(self) -> tuple[Verification, ...]:
        """One for each kind of device, the latest first."""
        return () if self.verification is None else (self.verification, *self.elsewhere)

    def verified_on(self, device: str) -> Verification | None:
        """The verification on that kind of device: one on a CPU says nothing of CUDA."""
        return next((one for one in self.verifications if one.kind == device), None)

    def share(self, precision: str) -> float:
        """The share of the matrix products that are in a precision, in [0, 1]."""
        return self.matmuls.get(precision, 0) / max(1, sum(self.matmuls.values()))


@dataclass(frozen=True, config=schema.STRICT)
class Manifest(schema.PlainData):
    """The content of a bundle and how it was built. `files` are the sha256 of every other file.

    `source` is the release or registry name that was exported, for `zoo verify`, and `weights` the hash of its weights:
    all engines of a bundle have the same. `untrained` are the hyperparameters where they are random.
    """

    engines: tuple[Engine, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: dict[str, str]
    source: str
    weights: str
    untrained: dict[str, Any] | None = None
    schema_version: Literal[2] = 2

    def __post_init__(self) -> None:
        names = [engine.name for engine in self.engines]
        twice = schema.repeated(names)
        if twice or not names:
            raise ValueError(f"a bundle has at least one engine, each with a name of its own, got {twice or names}")

    def engine(self, name: str) -> Engine:
        """The engine of that name. Raises BadInputError with the close matches."""
        for engine in self.engines:
            if engine.name == name:
                return engine
        raise BadArgumentError(f'the bundle has no engine "{name}"' + close_match(name, [e.name for e in self.engines]))

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into a bundle, whole or not at all; the signature of the old one is removed."""
        path = folder / MANIFEST
        write_file(path, json.dumps(self.to_dict(), indent=2) + "\n")
        if signature_path(path).is_file():  # after it: a full disk costs no signature
            log.warning("%s: its signature was that of the manifest as it was; sign it again: zoo bundle sign", folder)
            signature_path(path).unlink()


def signature_path(manifest: Path) -> Path:
    """Where the signature of a manifest lies, raw, 64 bytes."""
    return manifest.with_name(manifest.name + ".sig")


def given(**arguments: object) -> Given:
    """Arguments of an exporter as options of `zoo export`: `text_bank="refit"` is `--text-bank refit`.

    What is None, false or empty was not given. Ranges (tuples of numbers) are joined by colons. Paths stay as given: a
    manifest says nothing of the machine that it was made on.
    """
    options = {name.replace("_", "-"): _plain(value) for name, value in arguments.items()}
    return {name: value for name, value in options.items() if value}


def _plain(value: object) -> bool | str | tuple[str, ...]:
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, (tuple, list)):
        several = tuple(map(str, value))
        return ":".join(several) if all(isinstance(one, int) for one in value) else several
    return str(value)
