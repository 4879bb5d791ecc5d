"""A release to an ONNX bundle: torch's dynamo exporter, symbolic batch and image size, one file per graph."""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import zoo
from export.bundle import MODEL, POLICY, TEXT_ENCODER, TOKENIZER, Manifest, TensorSpec
from zoo.card import ModelCard
from zoo.errors import IncompatibleBundleError
from zoo.files import hashes, new_directory
from zoo.models.dual_encoder import PhraseEncoder
from zoo.models.served import ServedModel
from zoo.panel import default_policy
from zoo.predict import text_banks
from zoo.registry import create_model, model_entry
from zoo.release import Release, load_release, write_card

#: 20 is what TensorRT for RTX builds in every precision; 23 (`Attention`) it refuses in float32.
OPSET = 20
#: protobuf's limit for one message.
TWO_GIGABYTES = 2 * 1024**3


def export_onnx(
    source: str | Path, out: Path, *, overwrite: bool = False, untrained: dict[str, Any] | None = None
) -> Manifest:
    """Export a release directory, a Hub release or a registered model to a bundle directory.

    With `untrained` the registered architecture is built with random weights and these hyperparameters, for
    benchmarks. The defaults of the graph's text banks are those of the release's policy. Raises what `load_release`
    raises, BadInputError when `out` is taken, IncompatibleBundleError when the graph came out other than declared.
    """
    release = load_release(source) if untrained is None else _untrained(str(source), untrained)
    banks = text_banks(release.model, release.policy)
    inputs, outputs = contract(release.card)
    with new_directory(out, overwrite=overwrite) as folder:
        _export_served(release, banks, inputs, folder / MODEL)
        if isinstance(release.model, PhraseEncoder) and banks:
            _export_text_encoder(release.model, folder / TEXT_ENCODER)
        write_card(release.card, folder)
        (folder / POLICY).write_text(release.policy.to_yaml(), encoding="utf-8")
        if release.model.tokenizer_json is not None:
            (folder / TOKENIZER).write_text(release.model.tokenizer_json, encoding="utf-8")
        source_name = str(Path(source).resolve()) if Path(source).is_dir() else str(source)
        manifest = Manifest("fp32", OPSET, inputs, outputs, hashes(folder), source_name, _versions())
        manifest.write(folder)
    return manifest


def _untrained(name: str, hparams: dict[str, Any]) -> Release:
    model = create_model(name, **hparams)
    return Release(model, model.card, default_policy(model_entry(name)))


def contract(card: ModelCard) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of the graph that a card implies."""
    specs = {"image": TensorSpec("image", "uint8", ("batch", "height", "width", 3))}
    if card.text is not None:
        for name in ("input_ids", "attention_mask"):
            specs[name] = TensorSpec(name, "int64", ("batch", card.text.context_length))
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


def _export_served(release: Release, banks: tuple[Tensor, ...], inputs: tuple[TensorSpec, ...], path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    examples: dict[str, Tensor] = {}
    for spec in inputs:
        # A batch of one would silently freeze the batch dimension; height and width differ, so neither ties.
        sizes = {"batch": 2, "height": 48, "width": 80}
        shape = [sizes.get(side, 0) if isinstance(side, str) else side for side in spec.shape]
        if spec.name == "image":
            examples["image"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        elif spec.name in release.card.bank_names:
            bank = banks[release.card.bank_names.index(spec.name)]
            examples[spec.name] = torch.cat([bank, bank])[: max(2, len(bank))]
        elif spec.name == "image_present":
            examples["image_present"] = torch.ones(2, dtype=torch.bool)
        else:
            end = release.card.hparams.get("end_token", 1)
            examples[spec.name] = torch.full(shape, end if spec.name == "input_ids" else 1, dtype=torch.int64)
    names = release.card.bank_names
    proto = _export(ServedModel(release.model).eval(), examples, inputs, ("logits", "scores"), banks=names)
    for name, bank in zip(release.card.bank_names, banks, strict=True):
        # An initializer that is also a graph input is its default: a policy may feed another bank.
        proto.graph.initializer.append(numpy_helper.from_array(bank.cpu().numpy(), name))
    _check_symbolic(proto, inputs)
    _save(proto, path)


class _TextEncoder(nn.Module):
    def __init__(self, model: PhraseEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.encode_text(input_ids, attention_mask)


def _export_text_encoder(model: PhraseEncoder, path: Path) -> None:
    tokens = model.codec().encode(["a dog", "two cats on a mat"])
    examples = {"input_ids": torch.from_numpy(tokens.ids), "attention_mask": torch.from_numpy(tokens.mask)}
    specs = tuple(TensorSpec(name, "int64", ("batch", tokens.ids.shape[1])) for name in examples)
    proto = _export(_TextEncoder(model).eval(), examples, specs, ("text_embedding",))
    _check_symbolic(proto, specs)
    _save(proto, path)


def _export(
    module: nn.Module,
    examples: dict[str, Tensor],
    specs: tuple[TensorSpec, ...],
    outputs: tuple[str, ...],
    banks: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """Trace a module that takes the examples by name; those of `banks` together, as the tuple `text_banks`."""
    dims: dict[str, Any] = {}  # one shared symbol per name: two inputs of one batch stay tied together
    shapes: dict[str, dict[int, Any]] = {}
    for spec in specs:
        named = {axis: side for axis, side in enumerate(spec.shape) if isinstance(side, str)}
        shapes[spec.name] = {axis: dims.setdefault(side, torch.export.Dim(side, min=1)) for axis, side in named.items()}
    together = {"text_banks": banks} if banks else {}
    alone = [name for name in examples if name not in banks]
    arguments: dict[str, Any] = {name: examples[name] for name in alone}
    arguments |= {key: tuple(examples[name] for name in names) for key, names in together.items()}
    dynamic: dict[str, Any] = {name: shapes[name] for name in alone}
    dynamic |= {key: tuple(shapes[name] for name in names) for key, names in together.items()}
    with _eager_attention(module), _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (),
            kwargs=arguments,
            dynamic_shapes=dynamic,
            dynamo=True,
            opset_version=OPSET,
            input_names=[*alone, *banks],
            output_names=list(outputs),
            verbose=False,
        )
    assert program is not None  # only the deprecated exporter returns None
    proto: onnx.ModelProto = program.model_proto
    found = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if found != OPSET:
        raise IncompatibleBundleError(f"the exporter wrote opset {found} where {OPSET} was asked for")
    return proto


@contextmanager
def _eager_attention(module: nn.Module) -> Iterator[None]:
    """Eager attention gives the smaller graph (no SDPA masks); torch's fused MHA path cannot be traced."""
    found = [getattr(child, "config", None) for child in module.modules()]
    configs: dict[int, Any] = {id(config): config for config in found if hasattr(config, "_attn_implementation")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for config in configs.values():
            config._attn_implementation = "eager"
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for key, config in configs.items():
            config._attn_implementation = before[key]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs each decomposition and warns of torch's own deprecations; errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_symbolic(proto: onnx.ModelProto, specs: tuple[TensorSpec, ...]) -> None:
    """Raise IncompatibleBundleError where the graph froze a dimension that may vary, or the reverse."""
    found = {}
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        found[value.name] = tuple(d.dim_param if d.HasField("dim_param") else d.dim_value for d in dims)
    for spec in specs:
        if found.get(spec.name) != spec.shape:
            raise IncompatibleBundleError(
                f'graph input "{spec.name}" is {found.get(spec.name)}, declared {spec.shape}: the exporter changed it'
            )


def _save(proto: onnx.ModelProto, path: Path) -> None:
    large = proto.ByteSize() >= TWO_GIGABYTES
    onnx.save(proto, path, save_as_external_data=large, location=path.name + ".data" if large else None)


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "onnx", "onnxscript")
    return {"safety-zoo": zoo.__version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
