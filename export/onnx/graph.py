"""A model to an ONNX graph: torch's dynamo exporter, symbolic batch and image size, standard operators only."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from export.bundle.manifest import OPSET, TensorSpec, contract
from zoo.errors import IncompatibleBundleError
from zoo.models.base import ZooModel, check_finite
from zoo.models.clip import PhraseEncoder
from zoo.models.served import ServedModel


def served_graph(model: ZooModel, banks: tuple[Tensor, ...], *, opset: int = OPSET) -> onnx.ModelProto:
    """The graph of `ServedModel`, its text banks inputs that have `banks` for defaults, in the model's own precision.

    Raises IncompatibleBundleError when the graph came out other than `contract` declares, BadDataError for a weight
    that is not a finite number in that precision.
    """
    check_finite(model, f"export of {model.card.name}")
    inputs, _ = contract(model.card)
    generator = torch.Generator().manual_seed(0)
    names = model.card.bank_names
    examples: dict[str, Tensor] = {}
    for spec in inputs:
        # A batch of one would silently freeze the batch dimension; height and width differ, so neither ties.
        sizes = {"batch": 2, "height": 48, "width": 80, "tokens": 6}
        shape = [sizes.get(side, 0) if isinstance(side, str) else side for side in spec.shape]
        if spec.name == "image":
            examples["image"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        elif spec.name in names:
            bank = banks[names.index(spec.name)]
            examples[spec.name] = torch.cat([bank, bank])[: max(2, len(bank))]
        elif spec.name in ("image_present", "term_weights"):
            examples[spec.name] = torch.ones(shape, dtype=torch.bool if spec.name == "image_present" else torch.float32)
        else:
            end = model.card.hparams.get("end_token", 1)
            examples[spec.name] = torch.full(shape, end if spec.name == "input_ids" else 1, dtype=torch.int64)
    proto = _export(ServedModel(model).eval(), examples, inputs, ("logits", "scores"), opset, banks=names)
    for name, bank in zip(names, banks, strict=True):
        # An initializer that is also a graph input is its default: a policy may feed another bank.
        proto.graph.initializer.append(numpy_helper.from_array(bank.cpu().numpy(), name))
    return proto


class _TextEncoder(nn.Module):
    def __init__(self, model: PhraseEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.encode_text(input_ids, attention_mask)


def text_encoder_graph(model: PhraseEncoder) -> onnx.ModelProto:
    """The graph that embeds phrases: ids and mask `[B, T]` to `text_embedding` `[B, D]`, unit norm, float32."""
    tokens = model.codec().encode(["a dog", "two cats on a mat"])
    examples = {"input_ids": torch.from_numpy(tokens.ids), "attention_mask": torch.from_numpy(tokens.mask)}
    specs = tuple(TensorSpec(name, "int64", ("batch", tokens.ids.shape[1])) for name in examples)
    return _export(_TextEncoder(model).eval(), examples, specs, ("text_embedding",), OPSET)


def _export(
    module: nn.Module,
    examples: dict[str, Tensor],
    specs: tuple[TensorSpec, ...],
    outputs: tuple[str, ...],
    opset: int,
    banks: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """Trace a module that takes the examples by name; those of `banks` together, as the tuple `text_banks`."""
    # One shared symbol per name: two inputs of one batch stay tied together.
    dims = {side: torch.export.Dim(side, min=1) for spec in specs for side in spec.shape if isinstance(side, str)}
    shapes = {one.name: {axis: dims[side] for axis, side in enumerate(one.shape) if side in dims} for one in specs}
    alone = [name for name in examples if name not in banks]

    def arguments(values: dict[str, Any]) -> dict[str, Any]:
        together = {"text_banks": tuple(values[name] for name in banks)} if banks else {}
        return {name: values[name] for name in alone} | together

    with _plain_attention(module), errors_only("torch.onnx"), warnings.catch_warnings(), torch.no_grad():
        # The exporter logs each decomposition and warns of torch's own deprecations; errors still come through.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (),
            kwargs=arguments(examples),
            dynamic_shapes=arguments(shapes),
            dynamo=True,
            opset_version=opset,
            input_names=[*alone, *banks],
            output_names=list(outputs),
            verbose=False,
        )
    assert program is not None  # only the deprecated exporter returns None
    proto: onnx.ModelProto = program.model_proto
    _forget_places(proto)
    written = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise IncompatibleBundleError(f"the exporter wrote opset {written} where {opset} was asked for")
    _check_symbolic(proto, specs)
    return proto


def _forget_places(proto: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces: they name the folders of the machine that a bundle was made on."""
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        for place in reversed(range(len(node.metadata_props))):
            if node.metadata_props[place].key.endswith("stack_trace"):
                del node.metadata_props[place]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """transformers' eager attention, `[B, heads, T, W]` each, with the softmax in float32 for inputs of any type.

    transformers asks `softmax` for it by `dtype=`, which the exporter drops.
    """
    weights = (query @ key.transpose(2, 3)).float() * scaling
    if attention_mask is not None:
        weights = weights + attention_mask.float()
    weights = weights.softmax(dim=-1).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


_ATTENTION = "zoo_float32_softmax"
AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


@contextmanager
def _plain_attention(module: nn.Module) -> Iterator[None]:
    """Plain attention gives the smaller graph (no SDPA masks); torch's fused MHA path cannot be traced."""
    found: list[Any] = [getattr(child, "config", None) for child in module.modules()]
    before = [(config, config._attn_implementation) for config in found if hasattr(config, "_attn_implementation")]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for config, _ in before:
            config._attn_implementation = _ATTENTION
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for config, implementation in before:
            config._attn_implementation = implementation


@contextmanager
def errors_only(name: str | None = None) -> Iterator[None]:
    """Silence what a logger (the root one without a name) says beside errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_symbolic(proto: onnx.ModelProto, specs: tuple[TensorSpec, ...]) -> None:
    """Raise IncompatibleBundleError if the graph froze a dimension that may vary, or the reverse."""
    dims = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.input}
    shapes = {name: tuple(dim.dim_param or dim.dim_value for dim in found) for name, found in dims.items()}
    for spec in specs:
        if shapes.get(spec.name) != spec.shape:
            raise IncompatibleBundleError(
                f'graph input "{spec.name}" is {shapes.get(spec.name)}, declared {spec.shape}: the exporter changed it'
            )
