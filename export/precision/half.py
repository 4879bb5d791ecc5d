"""A model in half precision, converted before it is traced: the resulting graph is strongly typed by construction.

Matrix products and convolutions (those of attention too) take and give half precision. All else stays float32: resize
and normalisation of pixels, LayerNorm, softmax, the residual stream, L2 norms, the similarity with the phrases, the
layer that gives the logits, and the scores; BatchNorm is folded into its convolution while that is still float32. This
is where transformers lose verdicts (and where `F.normalize`'s epsilon underflows), and what autocast leaves in float32.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from zoo.models.base import ZooModel
from zoo.models.clip import Encoded

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_TOWERS = ("image_tower.", "text_tower.", "backbone.")


def in_half(model: ZooModel, dtype: torch.dtype) -> ZooModel:
    """A copy of the model, in evaluation mode, whose matrix products and convolutions are in `dtype`."""
    half = copy.deepcopy(model).eval()
    _fold_batch_norms(half)
    for parent in list(half.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(parent, name, HalfAttention(child, dtype))
    last = _logit_layers(half)
    for module in half.modules():
        if isinstance(module, _PRODUCTS):
            wanted = torch.float32 if module in last else dtype
            module.to(wanted)
            module.register_forward_pre_hook(partial(_cast, wanted))
        elif isinstance(module, _NORMS):
            module.register_forward_pre_hook(partial(_cast, torch.float32))
    for name in ("image_tower", "text_tower"):
        tower = getattr(half, name, None)
        if tower is not None:
            tower.register_forward_hook(_in_float32)
    return half


class HalfAttention(nn.Module):
    """`nn.MultiheadAttention` (batch first) with products in half precision and the softmax in float32."""

    def __init__(self, source: nn.MultiheadAttention, dtype: torch.dtype) -> None:
        super().__init__()
        assert source.batch_first  # the zoo has no other
        assert source.in_proj_weight is not None
        self.heads = source.num_heads
        width = source.embed_dim
        self.inputs = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        weights, biases = source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3)
        for layer, weight, bias in zip(self.inputs, weights, biases, strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias})
        self.out_proj = nn.Linear(width, width)
        self.out_proj.load_state_dict(source.out_proj.state_dict())
        self.dtype = dtype

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, **_: bool
    ) -> tuple[Tensor, None]:
        """`[B, Q, W]`, `[B, K, W]`, `[B, K, W]` to `[B, Q, W]`; keys where the mask `[B, K]` is true are not seen."""
        # [B, heads, tokens, width of a head]
        q, k, v = (
            layer(tensor).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, tensor in zip(self.inputs, (query, key, value), strict=True)
        )
        weights = (q @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5
        if key_padding_mask is not None:
            weights = weights.masked_fill(key_padding_mask[:, None, None, :], -torch.inf)
        attended = weights.softmax(dim=-1).to(self.dtype) @ v
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


def _cast(dtype: torch.dtype, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].to(dtype), *inputs[1:])


def _in_float32(_: nn.Module, __: tuple[Tensor, ...], output: Encoded | list[Tensor]) -> Encoded | list[Tensor]:
    """The output of a tower in float32, because L2 norms and similarities are computed from it."""
    wide = [tensor.float() for tensor in output]
    return Encoded(*wide) if isinstance(output, Encoded) else wide


def _fold_batch_norms(model: nn.Module) -> None:
    """Fold each BatchNorm2d that follows a convolution, as in transformers' convolutional backbones, into it."""
    for module in model.modules():
        convolution, norm = getattr(module, "convolution", None), getattr(module, "normalization", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.convolution = nn.utils.fuse_conv_bn_eval(convolution, norm)
            module.normalization = nn.Identity()


def _logit_layers(model: ZooModel) -> set[nn.Module]:
    """The last linear layer of each head: its outputs are the logits, which half precision would round to 1e-3."""
    layers: set[nn.Module] = set()
    classifier = getattr(model, "classifier", None)
    if isinstance(classifier, nn.Linear):
        layers.add(classifier)
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and not name.startswith(_TOWERS):
            linear = [child for child in module if isinstance(child, nn.Linear)]
            layers.update(linear[-1:])
    return layers
