#!/usr/bin/env bash
# OpenVINO 2026.4.1 (CPU): ReLU and Clamp turn NaN into 0, HardSigmoid into 1; onnxruntime and numpy keep NaN.
#
# One expects IEEE behaviour: NaN in, NaN out, so that a check of the last scores for NaN finds a broken model. With
# OpenVINO a NaN weight before an activation ends as an ordinary, even confident score.
# What this means here: a check of scores alone cannot find broken weights behind this engine; weights have to be
# checked for finite values before they are exported.
#
# Output seen:
#   Relu         numpy nan  onnxruntime nan  OpenVINO 0.0
#   Clip         numpy nan  onnxruntime nan  OpenVINO 0.0
#   HardSigmoid  numpy nan  onnxruntime nan  OpenVINO 1.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'openvino==2026.4.1' 'onnxruntime==1.32.0' 'onnx==1.23.2' 'numpy==2.4.6'
cat >"$work/check.py" <<'PY'
import io

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper

x = np.float32([1, np.nan])
ends = [helper.make_tensor("low", TensorProto.FLOAT, [], [0.0]), helper.make_tensor("high", TensorProto.FLOAT, [], [1.0])]
answers = {}
for op, inputs in {"Relu": ["x"], "Clip": ["x", "low", "high"], "HardSigmoid": ["x"]}.items():
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op, inputs, ["y"])], op, ports[:1], ports[1:], ends if op == "Clip" else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    ort = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0][1]
    vino = openvino.compile_model(openvino.Core().read_model(io.BytesIO(model)), "CPU")(x)[0][1]
    truth = {"Relu": np.maximum(x, 0), "Clip": np.clip(x, 0, 1), "HardSigmoid": np.clip(0.2 * x + 0.5, 0, 1)}[op][1]
    answers[op] = float(vino)
    print(f"{op:12} numpy {truth}  onnxruntime {ort}  OpenVINO {vino}")
assert answers == {"Relu": 0.0, "Clip": 0.0, "HardSigmoid": 1.0}, f"changed: {answers}"
PY
"$work/venv/bin/python" "$work/check.py"
