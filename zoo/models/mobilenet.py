"""MobileNetV1 as Keras published it, on the class of transformers, and how Keras weights are renamed for torch.

Source: MobileNetV1 0.75 at 224 px by Google (Apache-2.0). Keras pads stride-2 convolutions below and to the right
only, and has a batch-norm epsilon of 1e-3: both are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import MobileNetV1Config, MobileNetV1ForImageClassification, MobileNetV1Model

from zoo.errors import BadDataError

Weights = Mapping[str, NDArray[np.float32]]

IMAGE_SIZE = 224
BATCH_NORM_EPSILON = 1e-3

_BATCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def mobilenet_v1_config(depth_multiplier: float = 0.75, min_depth: int = 8) -> MobileNetV1Config:
    """Return the configuration of a Keras MobileNetV1 at 224 px.

    `depth_multiplier` scales every channel count (0.75 is the published model: 768 features); none falls
    below `min_depth`. The smallest useful test model, 0.01 and 4, has under 2,000 parameters.
    """
    return MobileNetV1Config(
        depth_multiplier=depth_multiplier,
        min_depth=min_depth,
        image_size=IMAGE_SIZE,
        tf_padding=True,
        hidden_act="relu6",
        layer_norm_eps=BATCH_NORM_EPSILON,
    )


def draw_weights(backbone: nn.Module) -> None:
    """Draw convolutions after Kaiming. Those of transformers are so small that, untrained, all images answer alike."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


def mobilenet_v1_state(weights: Weights, *, classifier: bool = False) -> dict[str, torch.Tensor]:
    """Rename the Keras weights of a MobileNetV1 for `MobileNetV1Model.load_state_dict`.

    With `classifier`, the state is for `MobileNetV1ForImageClassification` instead; without it, the ImageNet
    classifier `conv_preds` may be in `weights` and is left out. The depth multiplier is read off the first
    layer.

    Raises `BadInputError` naming every weight that is missing, left over or of the wrong shape.
    """
    table = conv_table("conv_stem", "conv1", "conv1_bn")
    for block in range(1, 14):
        depthwise, pointwise = f"conv_dw_{block}", f"conv_pw_{block}"
        table |= conv_table(f"layer.{2 * block - 2}", depthwise, f"{depthwise}_bn", depthwise=True)
        table |= conv_table(f"layer.{2 * block - 1}", pointwise, f"{pointwise}_bn")
    _require(weights, ["conv1/kernel"])
    config = mobilenet_v1_config(weights["conv1/kernel"].shape[-1] / 32)
    if not classifier:
        kept = {name: array for name, array in weights.items() if not name.startswith("conv_preds/")}
        return convert(kept, table, shapes(MobileNetV1Model, config))
    table = {f"mobilenet_v1.{torch_name}": keras_name for torch_name, keras_name in table.items()}
    table |= {"classifier.weight": "conv_preds/kernel", "classifier.bias": "conv_preds/bias"}
    _require(weights, ["conv_preds/bias"])
    config.num_labels = len(weights["conv_preds/bias"])
    return convert(weights, table, shapes(MobileNetV1ForImageClassification, config))


def conv_table(prefix: str, conv: str, norm: str, *, depthwise: bool = False) -> dict[str, str]:
    """Map the torch names of one convolution and its batch norm to the Keras names."""
    kernel = "depthwise_kernel" if depthwise else "kernel"
    table = {f"{prefix}.normalization.{ours}": f"{norm}/{theirs}" for ours, theirs in _BATCH_NORM.items()}
    return {f"{prefix}.convolution.weight": f"{conv}/{kernel}"} | table


def shapes(model_class: type[nn.Module], config: Any) -> dict[str, torch.Size]:
    """Shapes of every tensor of the model's state; nothing is allocated."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in model_class(config).state_dict().items()}


def convert(weights: Weights, table: dict[str, str], shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Transpose the weights named in `table` to torch's layout; all of `weights` and `shapes` must be met."""
    _require(weights, table.values())
    left_over = sorted(set(weights) - set(table.values()))
    if left_over:
        raise BadDataError(f"weights left over: {', '.join(left_over)}; no known layer has them")
    state: dict[str, torch.Tensor] = {}
    wrong = []
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):  # torch counts batches, Keras does not
            state[name] = torch.zeros(shape, dtype=torch.long)
            continue
        state[name] = _to_torch(weights[table[name]], depthwise=table[name].endswith("/depthwise_kernel"))
        # MobileNetV1's classifier is a 1 x 1 convolution in Keras.
        if len(shape) == 2 and state[name].ndim == 4:
            state[name] = state[name].flatten(1)
        if state[name].shape != shape:
            wrong.append(f"{table[name]} gives {list(state[name].shape)}, expected {list(shape)}")
    if wrong:
        raise BadDataError(f"weights of the wrong shape: {'; '.join(wrong)}")
    return state


def _require(weights: Weights, names: Any) -> None:
    missing = sorted(set(names) - set(weights))
    if missing:
        raise BadDataError(f"weights missing: {', '.join(missing)}")


def _to_torch(array: NDArray[np.float32], *, depthwise: bool) -> torch.Tensor:
    """Turn Keras' [h, w, in, out], depthwise [h, w, channels, 1] or dense [in, out] into torch's layout."""
    if array.ndim == 4:
        array = array.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
    elif array.ndim == 2:
        array = array.T
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
