"""The base of every model of the zoo: it has its card and its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from zoo.contract.card import ImageInput, ModelCard
from zoo.errors import BadArgumentError, BadDataError
from zoo.inputs.terms import codec_of
from zoo.inputs.text import TextCodec, train_tokenizer


def weights_sha256(model: ZooModel, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The sha256 of a model's tokenizer and of some of its tensors, in this order: the answers depend on both."""
    digest = hashlib.sha256((model.tokenizer_json or "").encode())
    for name, value in tensors:
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_finite(model: ZooModel, where: str | Path) -> None:
    """Raise BadDataError, which names `where` the weights are from and the tensor, for a weight of NaN or infinity.

    So it does for a variance by which nothing can be divided. An engine may turn NaN into 0, as OpenVINO does in Relu
    and Clip: it would answer, and not say that it is broken.
    """
    for name, value in model.state_dict().items():
        if not value.is_floating_point() or not value.numel():
            continue
        least, most = torch.aminmax(value)  # NaN comes through, and nothing as large as the tensor is allocated
        if not (least.isfinite() and most.isfinite()):
            raise BadDataError(
                f"{where}: the weights {name} hold NaN or infinity in {value.dtype}, so no answer of "
                f"{model.card.name} would mean anything; train or convert the model again"
            )
        # BatchNorm adds a little to its `running_var`; the heads' own `variance` is divided by as it is.
        if (least < 0 and name.endswith("running_var")) or (least <= 0 and name.endswith(".variance")):
            raise BadDataError(f"{where}: {name} holds a variance of {least:.3g}, whose root divides nothing")


def image_of(card: ModelCard) -> ImageInput:
    """What a card says about images. Raises BadArgumentError for a model that reads none."""
    if card.image is None:
        raise BadArgumentError(f"{card.name} reads no image: its card needs an image input")
    return card.image


def token_tensors(codec: TextCodec, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask `[N, T]` int64 of texts, on a device."""
    tokens = codec.encode(texts)
    return torch.from_numpy(tokens.ids).to(device), torch.from_numpy(tokens.mask).to(device)


def read_transformers(
    kind: type[Any], folder: Path, source: str, what: str, *, with_tokenizer: bool = True, **options: Any
) -> tuple[Any, str | None]:
    """A model of a class of transformers, from a directory with safetensors, and its tokenizer.json.

    Raises BadDataError, which names `what` was to be read and its `source`, if it cannot be read or lacks a tensor.
    """
    try:
        model, report = kind.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **options)
        tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8") if with_tokenizer else None
    except (OSError, ValueError, RuntimeError) as problem:
        reason = str(problem).replace(str(folder), source)
        raise BadDataError(f"{what} {source} cannot be loaded: {reason}") from None
    if report["missing_keys"]:  # transformers would leave them at random values, with only a warning
        absent = ", ".join(sorted(report["missing_keys"])[:4])
        raise BadDataError(f"{what} {source}: the weights are incomplete, without {absent}")
    return model, tokenizer


class ZooModel(nn.Module):
    """A module with a card: images `[B, 3, size, size]` float32 RGB in [0, 1] to logits `[B, N]`.

    `tokenizer_json` is the tokenizer.json that encodes its texts, None for a model that reads no text.
    `stays_in_eval` names frozen modules, which `train()` leaves in evaluation mode.
    """

    stays_in_eval: frozenset[str] = frozenset()

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.card = card
        self.tokenizer_json: str | None = train_tokenizer([], 0) if card.text is not None else None

    def train(self, mode: bool = True) -> Self:
        """Switch modes as `nn.Module.train` does, except for the modules in `stays_in_eval`."""
        super().train(mode)
        for name in self.stays_in_eval:
            self.get_submodule(name).training = False
        return self

    def answer(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and scores, both float32 `[B, N]`: the output of `forward`, and the card's score function of it."""
        logits: Tensor = self(*inputs).float()
        return logits, logits.softmax(dim=-1) if self.card.score == "softmax" else logits.sigmoid()

    def begun_from(self, source: str, licence: str = "") -> None:
        """Note in the card whose weights the training begins from, and their licence."""
        licences = dict.fromkeys((self.card.licence, licence)) if licence else (self.card.licence,)
        self.card = self.card.replace(source=f"{self.card.source}; {source}", licence="; ".join(licences))

    def codec(self) -> TextCodec:
        """The text codec of this model. Raises BadInputError when it reads no text."""
        if self.card.text is None or self.tokenizer_json is None:
            raise BadArgumentError(f"{self.card.name} reads no text")
        codec = codec_of(self.tokenizer_json, self.card.text)
        room = self.card.hparams.get("vocabulary_size")
        if isinstance(room, int) and codec.vocabulary_size > room:
            raise BadArgumentError(
                f"{self.card.name}: the tokenizer knows {codec.vocabulary_size} tokens, the model only {room}"
            )
        return codec

    @property
    def image_size(self) -> int:
        """Side of the square image in pixels. Raises BadInputError when the model reads no image."""
        return image_of(self.card).size


class Resize(nn.Module):
    """`[B, 3, H, W]` in [0, 1], any H and W, to `[B, 3, size, size]` in [0, 1], as `spec` says.

    Pixels of `size` by `size` are what the model reads, and stay as they are: a margin is cut off others alone.
    """

    def __init__(self, spec: ImageInput) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, pixels: Tensor) -> Tensor:
        """Resize a batch. Bicubic overshoot is clamped."""
        rows = torch.arange(pixels.shape[2], device=pixels.device)
        columns = torch.arange(pixels.shape[3], device=pixels.device)
        # Lengths as tensors, not Python numbers: they stay symbolic in the exported graph.
        height, width = rows[-1] + 1, columns[-1] + 1
        short = torch.minimum(height, width) if self.spec.resize == "shortest_edge_crop" else None
        margin = None
        if self.spec.margin:
            fits = (height == self.spec.size) & (width == self.spec.size)
            margin = torch.where(fits, 0.0, self.spec.margin)
        down = self._weights(rows, height, short, margin).to(pixels.dtype)
        across = self._weights(columns, width, short, margin).to(pixels.dtype)
        # Across first, and clamped in between: Pillow keeps 8 bits between its two passes.
        narrow = torch.matmul(pixels, across.transpose(0, 1)).clamp(0.0, 1.0)
        return torch.matmul(down, narrow).clamp(0.0, 1.0)

    def _weights(self, positions: Tensor, length: Tensor, short: Tensor | None, margin: Tensor | None) -> Tensor:
        """The `[size, length]` matrix of one axis; each row sums to 1 (Pillow's `precompute_coeffs`)."""
        size = self.spec.size
        targets = torch.arange(size, device=positions.device)
        if self.spec.interpolation == "bilinear_align_corners":
            centres = targets.float() * ((length - 1).float() / max(size - 1, 1))
            return (1.0 - (positions.float()[None, :] - centres[:, None]).abs()).clamp(min=0.0)
        # `shortest_edge_crop`: the long side becomes size * long // short, and the centre `size` of it is kept.
        full = torch.full_like(length, size) if short is None else (length * size) // short
        offset = (full - size) // 2
        scale = length.float() / full.float()
        if margin is not None:
            scale = scale * (1.0 - 2.0 * margin)
        centres = (targets + offset).float().add(0.5) * scale
        if margin is not None:
            centres = centres + length.float() * margin  # kernels reach beyond the edge, as Pillow's do
        stretch = scale.clamp(min=1.0)  # antialias: the kernel widens when shrinking, never narrows
        distance = ((positions.float()[None, :] + 0.5 - centres[:, None]) / stretch).abs()
        weights = _cubic(distance) if self.spec.interpolation == "bicubic" else (1.0 - distance).clamp(min=0.0)
        return weights / weights.sum(dim=1, keepdim=True)


class Normalise(nn.Module):
    """Per-channel (pixels - mean) / std on `[B, 3, H, W]` in [0, 1]. Part of the model, so eps means pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ImageInput) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise a batch in its own dtype; the result is of the model's, as convolutions want it."""
        return ((pixels - self.mean.to(pixels.dtype)) / self.std.to(pixels.dtype)).to(self.mean.dtype)


def _cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic kernel with a = -0.5 (Pillow's and CLIP's; OpenCV and non-antialiased torch take -0.75)."""
    near = ((a + 2.0) * distance - (a + 3.0)) * distance * distance + 1.0
    far = (((distance - 5.0) * distance + 8.0) * distance - 4.0) * a
    inner = distance < 1.0
    outer = distance < 2.0
    return torch.where(inner, near, torch.where(outer, far, torch.zeros_like(distance)))
