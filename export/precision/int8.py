"""An fp32 graph to 8 bits, by onnxruntime's quantizer: dynamic for CPUs, fixed scales from calibration for GPUs."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from export.precision.nodes import save
from zoo.judging.scorer import Feeds


def quantise_dynamic(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Weights in int8 with a scale per channel; activations are scaled as they come, input by input.

    Linear layers only: a convolution in 8 bits is slower than in float32 on CPUs. The resize, the attention's own
    products and the similarity with the phrases stay float32, as neither of their operands is a weight.
    """
    with _files(proto) as (source, target):
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_without_weight(proto),
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(target)


def quantise_static(proto: onnx.ModelProto, batches: list[Feeds], *, symmetric: bool = True) -> onnx.ModelProto:
    """Weights and activations in int8 between `QuantizeLinear` and `DequantizeLinear`, scales from `batches` of feeds.

    Symmetric throughout and with float32 biases, which is what TensorRT takes; otherwise activations are uint8 with a
    zero point of their own, which spends no codes on values that never come.
    """
    with _files(proto) as (source, target):
        quantize_static(
            source,
            target,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_without_weight(proto),
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "MatMulConstBOnly": True,
            },
        )
        return onnx.load(target)


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The feeds that onnxruntime asks for one by one."""

    def __init__(self, batches: list[Feeds]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Feeds | None:
        return next(self.batches, None)


def _without_weight(proto: onnx.ModelProto) -> list[str]:
    """The products none of whose operands is a weight; a text bank is an input, although it has a default."""
    inputs = {value.name for value in proto.graph.input}
    weights = {weight.name for weight in proto.graph.initializer} - inputs
    products = [node for node in proto.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    return [node.name for node in products if node.input[1] not in weights]


@contextmanager
def _files(proto: onnx.ModelProto) -> Iterator[tuple[Path, Path]]:
    """The graph in a file, without the exporter's shapes, on which the quantizer fails; and where to write."""
    plain = copy.deepcopy(proto)
    del plain.graph.value_info[:]
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it asks, at each call, for a preprocessing that these graphs need not
    try:
        with tempfile.TemporaryDirectory(prefix="safety-zoo-") as folder:
            source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            save(plain, source)
            yield source, target
    finally:
        logger.setLevel(level)
