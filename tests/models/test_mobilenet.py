"""The MobileNet ports against the Keras graphs they come from, walked layer by layer.

The walk below reads `model.json` by itself and knows nothing of the transformers classes: it computes each
Keras layer from its own configuration and its own weights, so that a wrong padding, epsilon, activation,
order or transposition in the port shows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import MobileNetV1ForImageClassification, MobileNetV1Model

from zoo.archives.keras import KerasWeights
from zoo.archives.tfjs import read_tfjs
from zoo.errors import BadInputError
from zoo.models.mobilenet import NSFWJS, Nsfwjs, mobilenet_v1_config, mobilenet_v1_state, nsfwjs_state
from zoo.registry import model_card

TOLERANCE = 1e-4


def _pixels() -> torch.Tensor:
    """Two images in [0, 1] with edges and smooth parts, so that every padded border matters."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 9, 9, generator=generator)
    smooth = functional.interpolate(coarse, (224, 224), mode="bicubic").clamp(0, 1)
    return 0.8 * smooth + 0.2 * torch.rand(2, 3, 224, 224, generator=generator)


def _same_padding(x: torch.Tensor, kernel: list[int], strides: list[int]) -> torch.Tensor:
    """TensorFlow's SAME: ceil(size / stride) outputs, the odd pixel of padding goes below and right."""
    sides = []
    for size, length, stride in zip(x.shape[2:], kernel, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + length - size, 0)
        sides.append((total // 2, total - total // 2))
    (top, bottom), (left, right) = sides
    return functional.pad(x, (left, right, top, bottom))


def _convolve(x: torch.Tensor, kernel: torch.Tensor, config: dict[str, Any], depthwise: bool) -> torch.Tensor:
    if config["padding"] == "same":
        x = _same_padding(x, config["kernel_size"], config["strides"])
    axes = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
    groups = x.shape[1] if depthwise else 1
    return functional.conv2d(x, kernel.permute(*axes), stride=tuple(config["strides"]), groups=groups)


def _activate(x: torch.Tensor, name: str) -> torch.Tensor:
    known: dict[str, Callable[[], torch.Tensor]] = {
        "linear": lambda: x,
        "relu": lambda: x.clamp(min=0),
        "relu6": lambda: x.clamp(0, 6),
        "softmax": lambda: x.softmax(dim=1),
    }
    return known[name]()


def _keras_layer(kind: str, config: dict[str, Any], inputs: list[torch.Tensor], weights: KerasWeights) -> torch.Tensor:
    """Compute one Keras layer in channels-first order; an unknown kind fails with a KeyError."""

    def weight(name: str) -> torch.Tensor:
        return torch.from_numpy(weights[f"{config['name']}/{name}"]).double()

    x = inputs[0]
    if kind == "Conv2D":
        x = _convolve(x, weight("kernel"), config, depthwise=False)
        x = x + weight("bias").view(1, -1, 1, 1) if config["use_bias"] else x
        return _activate(x, config["activation"])
    if kind == "DepthwiseConv2D":
        return _activate(_convolve(x, weight("depthwise_kernel"), config, depthwise=True), config["activation"])
    if kind == "BatchNormalization":
        gain = weight("gamma") / (weight("moving_variance") + config["epsilon"]).sqrt()
        shift = weight("beta") - weight("moving_mean") * gain
        scaled: torch.Tensor = x * gain.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return scaled
    if kind == "Dense":
        return _activate(x @ weight("kernel") + weight("bias"), config["activation"])
    if kind == "ZeroPadding2D":
        (top, bottom), (left, right) = config["padding"]
        return functional.pad(x, (left, right, top, bottom))
    simple: dict[str, Callable[[], torch.Tensor]] = {
        "Activation": lambda: _activate(x, config["activation"]),
        "ReLU": lambda: x.clamp(config.get("threshold", 0), config["max_value"]),
        "Add": lambda: torch.stack(inputs).sum(dim=0),
        "AveragePooling2D": lambda: functional.avg_pool2d(x, config["pool_size"], config["strides"]),
        "GlobalAveragePooling2D": lambda: x.mean(dim=(2, 3)),
        # A 1 x 1 map: channels first and channels last flatten alike.
        "Flatten": lambda: x.reshape(len(x), -1),
        "Reshape": lambda: x.reshape(len(x), -1, 1, 1) if len(config["target_shape"]) == 3 else x.flatten(1),
        "Dropout": lambda: x,
    }
    return simple[kind]()


def _walk(folder: Path, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run the Keras graph on x [B, 3, 224, 224] in double precision; return every layer's output by name."""
    layers = json.loads((folder / "model.json").read_text())["modelTopology"]["model_config"]["config"]["layers"]
    weights = read_tfjs(folder)
    outputs: dict[str, torch.Tensor] = {}
    for layer in layers:
        if layer["class_name"] == "InputLayer":
            outputs[layer["name"]] = x.double()
            continue
        inputs = [outputs[node[0]] for node in layer["inbound_nodes"][0]]
        outputs[layer["name"]] = _keras_layer(layer["class_name"], layer["config"], inputs, weights)
    return outputs


@pytest.mark.shared_data
def test_mobilenet_v1_equals_the_keras_graph(shared: Path) -> None:
    folder = shared / "mobilenet_v1_075_imagenet"
    weights = read_tfjs(folder)
    tower = MobileNetV1Model(mobilenet_v1_config(0.75))
    tower.train(False)
    tower.load_state_dict(mobilenet_v1_state(weights))
    config = mobilenet_v1_config(0.75)
    config.num_labels = 1000
    whole = MobileNetV1ForImageClassification(config)
    whole.train(False)
    state = {f"mobilenet_v1.{key}": value for key, value in mobilenet_v1_state(weights).items()}
    # The classifier is a 1 x 1 convolution in Keras, [1, 1, in, out].
    state["classifier.weight"] = torch.from_numpy(weights["conv_preds/kernel"][0, 0].T.copy())
    state["classifier.bias"] = torch.from_numpy(weights["conv_preds/bias"])
    whole.load_state_dict(state)
    pixels = 2 * _pixels() - 1
    keras = _walk(folder, pixels)
    with torch.inference_mode():
        features = tower(pixels)
        logits = whole(pixels).logits
    grid, pooled = keras["conv_pw_13_relu"], keras["global_average_pooling2d_1"]
    assert (features.last_hidden_state - grid).abs().max() < TOLERANCE
    assert (features.pooler_output - pooled).abs().max() < TOLERANCE
    assert (logits.softmax(dim=1) - keras["reshape_2"]).abs().max() < TOLERANCE
    assert (logits - keras["conv_preds"].flatten(1)).abs().max() < TOLERANCE


@pytest.mark.shared_data
def test_nsfwjs_equals_the_keras_graph(shared: Path) -> None:
    folder = shared / "nsfwjs_mobilenet_v2"
    model = Nsfwjs(model_card(NSFWJS)).eval()
    model.load_state_dict(nsfwjs_state(read_tfjs(folder)))
    pixels = _pixels()
    keras = _walk(folder, pixels)
    with torch.inference_mode():
        features = model.backbone(pixels).pooler_output
        probabilities = model(pixels).softmax(dim=1)
    assert (features - keras["flatten_1"]).abs().max() < TOLERANCE
    assert (probabilities - keras["dense_3"]).abs().max() < TOLERANCE


@pytest.mark.shared_data
def test_missing_left_over_and_misshapen_weights_are_named(shared: Path) -> None:
    weights = dict(read_tfjs(shared / "nsfwjs_mobilenet_v2"))
    bias = weights.pop("dense_3/bias")
    with pytest.raises(BadInputError, match="missing: dense_3/bias"):
        nsfwjs_state(weights)
    with pytest.raises(BadInputError, match="left over: dense_4/bias"):
        nsfwjs_state(weights | {"dense_3/bias": bias, "dense_4/bias": bias})
    with pytest.raises(BadInputError, match=r"dense_3/bias gives \[4\], expected \[5\]"):
        nsfwjs_state(weights | {"dense_3/bias": bias[:4]})


def _keras_weights(model: Any) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Name a small MobileNetV1's weights as Keras does, the reverse of the port."""
    names = ["conv1"] + [f"conv_{kind}_{block}" for block in range(1, 14) for kind in ("dw", "pw")]
    weights = {}
    for name, layer in zip(names, [model.conv_stem, *model.layer], strict=True):
        depthwise = name.startswith("conv_dw")
        axes = (2, 3, 0, 1) if depthwise else (2, 3, 1, 0)
        kernel = "depthwise_kernel" if depthwise else "kernel"
        norm = layer.normalization
        weights[f"{name}/{kernel}"] = layer.convolution.weight.detach().permute(*axes).numpy()
        weights[f"{name}_bn/gamma"] = norm.weight.detach().numpy()
        weights[f"{name}_bn/beta"] = norm.bias.detach().numpy()
        weights[f"{name}_bn/moving_mean"] = norm.running_mean.numpy()
        weights[f"{name}_bn/moving_variance"] = norm.running_var.numpy()
    return weights


def test_mobilenet_v1_state_is_the_reverse_of_keras_naming() -> None:
    torch.manual_seed(0)
    model = MobileNetV1Model(mobilenet_v1_config(0.25))
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(torch.rand_like(tensor))
    state = mobilenet_v1_state(_keras_weights(model))
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_mobilenet_v1_without_its_first_layer_is_refused() -> None:
    with pytest.raises(BadInputError, match="missing: conv1/kernel"):
        mobilenet_v1_state({})


def test_test_sized_models_are_small_and_run() -> None:
    torch.manual_seed(0)
    card = model_card(NSFWJS)
    tiny = card.hparams | {"depth_multiplier": 0.01, "channel_step": 2, "hidden": [8, 8]}
    model = Nsfwjs(dataclasses.replace(card, hparams=tiny)).eval()
    assert sum(tensor.nbytes for tensor in model.state_dict().values()) < 100_000
    with torch.inference_mode():
        logits = model(torch.rand(2, 3, 224, 224))
    assert logits.shape == (2, 5)
    assert torch.isfinite(logits).all()
    tower = MobileNetV1Model(mobilenet_v1_config(0.01, min_depth=4))
    assert sum(tensor.nbytes for tensor in tower.state_dict().values()) < 100_000
