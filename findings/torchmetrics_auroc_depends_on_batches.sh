#!/usr/bin/env bash
# torchmetrics 1.9.0: BinaryAUROC of the same scores depends on how they are cut into batches.
#
# A batch in which one value leaves [0, 1] is taken for logits and put through a sigmoid, the other batches are not. A
# sum of probabilities in float32 can be 1.0000001, so that one row moves the whole batch to [0.5, 0.73]. One expects
# the decision to be made once, or an error, and the AUROC, which only looks at ranks, not to change.
# What this means here: scores are clamped to [0, 1] before any metric of torchmetrics sees them (zoo/training).
#
# Output seen:
#   one batch of 8: 1.0000, two batches of 4: 0.7500
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'torchmetrics==1.9.0' 'torch==2.13.0'
cat >"$work/check.py" <<'PY'
import torch
from torchmetrics.classification import BinaryAUROC

scores = torch.tensor([0.05, 0.40, 0.10, 0.45, 1.0000001, 0.20, 0.98, 0.30])
labels = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])


def area(size: int) -> float:
    metric = BinaryAUROC()
    for start in range(0, 8, size):
        metric.update(scores[start : start + size], labels[start : start + size])
    return float(metric.compute())


whole, parts = area(8), area(4)
print(f"one batch of 8: {whole:.4f}, two batches of 4: {parts:.4f}")
assert whole == 1.0, "every positive is above every negative"
assert parts < 0.9, "changed: batches no longer matter"
PY
"$work/venv/bin/python" "$work/check.py"
