#!/usr/bin/env bash
# onnxconverter-common 1.16.0: the float16 converter clips weights that float16 can hold, and warns of some only.
#
# float16 reaches 65,504. The converter clips at 10,000 in either direction: 12,345 becomes 10,000 without a word, 65,000
# with a warning. One expects the nearest float16 (12,344), and a warning wherever more than rounding happens.
# What this means here: half precision is made in the torch module before it is traced (export/precision/half.py), by
# torch's own rounding; this converter is not a dependency.
#
# Output seen:
#   [12345.0, 65000.0, 0.5] -> [10000.0, 10000.0, 0.5]
#   warned of 12345: False, of 65000: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'onnxconverter-common==1.16.0' 'onnx==1.23.2' 'numpy==2.4.6'
cat >"$work/check.py" <<'PY'
import warnings

import numpy as np
from onnx import helper, numpy_helper
from onnxconverter_common import float16

weights = np.float32([12345.0, 65000.0, 0.5])
ports = [helper.make_tensor_value_info(name, 1, [3]) for name in ("x", "y")]
node = helper.make_node("Mul", ["x", "w"], ["y"])
graph = helper.make_graph([node], "g", ports[:1], ports[1:], [numpy_helper.from_array(weights, "w")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    half = float16.convert_float_to_float16(model)
values = numpy_helper.to_array(half.graph.initializer[0])
said = " ".join(str(one.message) for one in caught)
print(f"{weights.tolist()} -> {values.tolist()}")
print(f"warned of 12345: {'12345' in said}, of 65000: {'65000' in said}")
assert values.dtype == np.float16 and values.tolist() == [10000.0, 10000.0, 0.5], "changed: values"
assert "12345" not in said and "65000" in said, "changed: warnings"
PY
"$work/venv/bin/python" "$work/check.py"
