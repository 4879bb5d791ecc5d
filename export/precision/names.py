"""The names of the precisions that an engine can have. No torch."""

from __future__ import annotations

from typing import Literal

#: `int8` has per-channel weights and activations that are scaled as they come, for onnxruntime on CPUs; `int8_qdq` has
#: fixed scales from calibration inputs (`QuantizeLinear` and `DequantizeLinear` nodes), for GPUs and OpenVINO.
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8_qdq"]

#: As what the matrix products of a graph of each precision are counted.
COUNTED_AS: dict[Precision, str] = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8", "int8_qdq": "int8"}
