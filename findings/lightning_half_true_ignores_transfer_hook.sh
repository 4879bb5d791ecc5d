#!/usr/bin/env bash
# lightning 2.6.6: `precision="bf16-true"` walks through the batch before the hook that a module overrides for it.
#
# `transfer_batch_to_device` is where a module says how its own batches reach the device. A module that leaves a batch of
# frozen dataclasses without tensors as it is trains in float32 and in bf16-mixed. In bf16-true Lightning converts the
# batch first, by lightning-utilities' `apply_to_collection`, which refuses frozen dataclasses, tensors in them or not.
# What this means here: batches of conversations are named tuples (zoo/training/question_data.py).
#
# Output seen:
#   32-true: trained
#   bf16-mixed: trained
#   bf16-true: ValueError: A frozen dataclass was passed to `apply_to_collection` but this is not allowed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'lightning==2.6.6' 'lightning-utilities==0.15.3' 'torch>=2.13,<2.14' 'numpy==2.4.6'
cat >"$work/check.py" <<'PY'
import logging
import warnings
from dataclasses import dataclass

import lightning
import torch
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Sentence:
    text: str


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def training_step(self, batch, batch_idx):
        return self.layer(torch.ones(len(batch), 1)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


for precision in ("32-true", "bf16-mixed", "bf16-true"):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", precision=precision, max_epochs=1, **quiet)
    try:
        trainer.fit(Module(), torch.utils.data.DataLoader([Sentence("a"), Sentence("b")], collate_fn=list))
        print(f"{precision}: trained")
        assert precision != "bf16-true", "changed: it trains"
    except ValueError as problem:
        print(f"{precision}: ValueError: {problem}")
        assert precision == "bf16-true" and "frozen dataclass" in str(problem), "changed"
PY
"$work/venv/bin/python" "$work/check.py" 2>/dev/null
