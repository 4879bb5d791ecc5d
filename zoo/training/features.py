"""What a frozen vision tower says of each image, computed once: no pixel is encoded again in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from zoo.contract.verdict import Verdict
from zoo.errors import BadArgumentError
from zoo.guard.detector import Detector
from zoo.inputs.image import decode


class TowerFeatures:
    """The hidden states `[T, W]` that a LLaVA's projector reads, and a detector's verdict, for each image file.

    `model` is a LlavaForConditionalGeneration whose tower stays as it is; more than `max_gigabytes` of hidden states
    are refused with BadInputError. LLaVA-1.5 (576 x 1024 in float16) takes 1.2 MB an image.
    """

    def __init__(self, model: Any, processor: Any, detector: Detector | None, max_gigabytes: float = 8.0) -> None:
        self._model, self._processor, self._detector = model, processor, detector
        self.max_gigabytes = max_gigabytes
        self._states: list[Tensor] = []
        self._number: dict[Path, int] = {}
        #: What the detector says of each image; empty without a detector.
        self.verdicts: dict[Path, Verdict] = {}

    @property
    def tokens(self) -> int:
        """How many image tokens an image fills, T."""
        return len(self._states[0])

    @torch.no_grad()
    def compute(self, paths: Sequence[Path], batch_size: int = 64) -> None:
        """Encode the images that are not known yet. Raises BadInputError for one that cannot be read."""
        new = [path for path in dict.fromkeys(paths) if path not in self._number]
        batches = [new[start : start + batch_size] for start in range(0, len(new), batch_size)]
        for batch in track(batches, "Encoding images", transient=True, disable=len(batches) < 2):
            pixels = self._processor.image_processor(images=[decode(path) for path in batch], return_tensors="pt")
            states, cls = self._encode(pixels["pixel_values"])
            size = states[0].numel() * states.element_size() * (len(self._number) + len(new)) / 1e9
            if size > self.max_gigabytes:
                raise BadArgumentError(
                    f"the features of {len(new)} images take {size:.1f} GB, more than max_cache_gb {self.max_gigabytes}"
                )
            if self._detector is not None and cls is not None:
                found = self._detector.verdicts(self._detector(cls), [1] * len(batch))
                self.verdicts |= dict(zip(batch, found, strict=True))
            self._number |= {path: len(self._states) + offset for offset, path in enumerate(batch)}
            self._states += states.cpu().unbind()

    def outputs(self, paths: Sequence[Path]) -> dict[str, BaseModelOutputWithPooling]:
        """`mm_encoder_outputs` for the model: the projected features of these images, with the projector's gradient."""
        states = torch.stack([self._states[self._number[path]] for path in paths]).to(self._model.device)
        return {
            "image": BaseModelOutputWithPooling(pooler_output=list(self._model.model.multi_modal_projector(states)))
        }

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Selected hidden states `[B, T, W]` as `LlavaModel.get_image_features` selects them, and CLS `[B, W]`."""
        config, tower = self._model.config, self._model.model.vision_tower
        read = config.vision_feature_layer
        layers = [read] if isinstance(read, int) else list(read)
        wanted = layers if self._detector is None else [*layers, self._detector.index]
        training = tower.training
        tower.eval()
        pixels = pixels.to(tower.device, tower.dtype)
        hidden = tower(pixels, output_hidden_states=wanted, return_dict=True).hidden_states
        tower.train(training)  # as it was: Lightning warns of parts in evaluation mode
        states = torch.cat([hidden[layer] for layer in layers], dim=-1)
        if config.vision_feature_select_strategy == "default":
            states = states[:, 1:]
        return states, None if self._detector is None else hidden[self._detector.index][:, 0]
