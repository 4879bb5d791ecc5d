#!/usr/bin/env bash
# safetensors 0.8.0, numpy side: a transposed or strided array is saved under its own shape with the bytes of another.
#
# One expects what `np.save` and safetensors.torch do: save the values (np.save), or refuse what is not contiguous
# (safetensors.torch.save). `safetensors.numpy.save` does neither: it raises nothing and takes the memory as it lies.
# What this means here: weights are written from torch alone, made contiguous before; a converter that works on numpy
# arrays calls np.ascontiguousarray first.
#
# Output seen:
#   transposed: wrote [[0, 3], [1, 4], [2, 5]], read [[0, 1], [2, 3], [4, 5]]
#   every other column: wrote [[0, 2], [3, 5]], read [[0, 1], [2, 3]]
#   safetensors.torch refuses the same array: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'safetensors==0.8.0' 'numpy==2.4.6' 'torch==2.13.0'
cat >"$work/check.py" <<'PY'
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

rows = np.arange(6, dtype=np.float32).reshape(2, 3)
for name, array in {"transposed": rows.T, "every other column": rows[:, ::2]}.items():
    back = safetensors.numpy.load(safetensors.numpy.save({"x": array}))["x"]
    print(f"{name}: wrote {array.astype(int).tolist()}, read {back.astype(int).tolist()}")
    assert back.shape == array.shape and not np.array_equal(back, array), "changed: the values come back"
try:
    safetensors.torch.save({"x": torch.from_numpy(rows).T})
except ValueError:
    print("safetensors.torch refuses the same array: True")
else:
    raise SystemExit("changed: safetensors.torch takes what is not contiguous")
PY
"$work/venv/bin/python" "$work/check.py"
