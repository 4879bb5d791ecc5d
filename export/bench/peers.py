"""The peers of a `safeclip_*` bundle: the same CLIP in other libraries, as their own users would write it.

All have random weights, since time does not depend on them, and no more layers than the bundle's model runs. Phrases
are embedded beforehand, as the bundle's are.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel

from export.bench.report import About
from export.bench.sides import Run, Side, Task
from export.bundle.store import Bundle
from zoo.contract.card import QUICK_GELU, ModelCard
from zoo.errors import BadArgumentError, MissingDependencyError, close_match
from zoo.models.clip import clip_config, unit

#: torch's own index, as the torchvision of PyPI is a CUDA build, which does not load beside a torch for CPUs.
OPEN_CLIP = (
    "pip install --no-deps --target DIR open_clip_torch timm 'torchvision==0.28.*' "
    "--extra-index-url https://download.pytorch.org/whl/cpu, then PYTHONPATH=DIR zoo bench ..."
)
IMPOSSIBLE = {
    "optimum": "optimum-onnx (0.1.0, the newest tried) needs transformers below 4.58 and fails to import beside "
    "transformers 5, which this zoo needs; what it runs is an onnxruntime session, as the bundle's own engines are",
}


@dataclass(frozen=True)
class Tower:
    """A peer's parts: images to pixels `[B, 3, S, S]` float32, and those to embeddings `[B, D]` of any norm."""

    what: str
    precision: str
    preprocess: Callable[[list[Image.Image]], Tensor]
    embed: Callable[[Tensor], Tensor]


def check_peers(names: list[str]) -> None:
    """Raise BadArgumentError for a peer that does not exist or cannot run here, and if no peer is named."""
    for name in names:
        if name in IMPOSSIBLE:
            raise BadArgumentError(f"{name} cannot be a peer: {IMPOSSIBLE[name]}")
        if name not in PEERS:
            raise BadArgumentError(f'no peer is called "{name}"' + close_match(name, PEERS))
    if not names:
        raise BadArgumentError(f"name at least one peer: {', '.join(PEERS)}")


def peer_side(name: str, bundle: Bundle, task: Task) -> Side:
    """The peer of that name for a bundle of a `safeclip_*` model.

    Raises MissingDependencyError, with the command that installs it, where its package is absent.
    """
    tower = PEERS[name](bundle.card, task.device)
    judge = bundle.judge
    bank = unit(torch.randn(len(judge.outputs), bundle.card.hparams["embedding_dim"])).to(task.device)

    @torch.inference_mode()
    def scores(pixels: Tensor) -> NDArray[np.float32]:
        embedding = unit(tower.embed(pixels.to(task.device)).float())
        shares: NDArray[np.float32] = (100 * embedding @ bank.T).softmax(dim=-1).cpu().numpy()
        return shares

    def preprocess(jpegs: list[bytes]) -> Tensor:
        return tower.preprocess([Image.open(io.BytesIO(data)).convert("RGB") for data in jpegs])

    def from_jpegs(batch: int) -> Run:
        return lambda: judge.category_scores(scores(preprocess(task.jpegs[:batch])))

    about = About(name, tower.what, tower.precision, peer=True)
    if task.input == "jpeg":
        return Side(about, from_jpegs)
    pixels = preprocess(task.jpegs)
    return Side(about, lambda batch: lambda: scores(pixels[:batch]))


def clip_model(card: ModelCard) -> CLIPModel:
    """transformers' CLIP of a card's size, random weights, with the layers that the card's model runs."""
    config = clip_config(card)
    config.vision_config.num_hidden_layers += 1 + card.hparams["layer"]
    return CLIPModel(config).eval()


def _transformers_compile(card: ModelCard, device: str) -> Tower:
    """As `_clip`, compiled again for each batch size, while the benchmark warms up."""
    wanted = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if device == "cpu" and not any(shutil.which(compiler) for compiler in wanted):
        raise MissingDependencyError(f"torch.compile needs a C++ compiler: {' or '.join(wanted)} is not installed")
    return _clip(card, device, mode="torch.compile")


def _clip(card: ModelCard, device: str, dtype: torch.dtype = torch.float32, mode: str = "torch eager") -> Tower:
    assert card.image is not None  # a safeclip_* reads images
    model = clip_model(card).to(device, dtype)
    features: Callable[..., Any] = model.get_image_features
    if mode == "torch.compile":
        # fullgraph: what it cannot compile raises an error and does not run in eager mode.
        features = torch.compile(features, dynamic=False, fullgraph=True)
    processor = CLIPImageProcessorPil(size={"shortest_edge": card.image.size}, crop_size=card.image.size)

    return Tower(
        f"transformers {version('transformers')}, CLIPModel and CLIPImageProcessorPil, {mode}",
        {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype],
        lambda images: processor(images, return_tensors="pt")["pixel_values"],
        lambda pixels: features(pixel_values=pixels.to(dtype)).pooler_output,
    )


def _open_clip(card: ModelCard, device: str) -> Tower:
    try:
        package = importlib.import_module("open_clip")
    except (ImportError, RuntimeError) as problem:  # torchvision's CUDA build beside a torch for CPUs: RuntimeError
        raise MissingDependencyError(f"open_clip cannot be imported ({problem}); install it: {OPEN_CLIP}") from None
    assert card.image is not None  # a safeclip_* reads images
    model = open_clip_model(package, card).to(device)
    transform = package.image_transform(card.image.size, is_train=False)
    return Tower(
        f"open_clip {version('open_clip_torch')}, CLIP and image_transform, torch eager",
        "fp32",
        lambda images: torch.stack([transform(image) for image in images]),
        model.encode_image,
    )


def open_clip_model(package: Any, card: ModelCard) -> Any:
    """open_clip's CLIP with the image tower of a card's size; its text tower is not run and has one layer."""
    h = card.hparams
    assert card.image is not None  # a safeclip_* reads images
    vision = package.CLIPVisionCfg(
        layers=h["vision_layers"] + 1 + h["layer"],
        width=h["vision_width"],
        head_width=h["vision_width"] // h["vision_heads"],
        patch_size=h["patch_size"],
        image_size=card.image.size,
    )
    return package.CLIP(
        h["embedding_dim"],
        vision,
        package.CLIPTextCfg(layers=1),
        quick_gelu=h.get("hidden_act", QUICK_GELU) == QUICK_GELU,
    ).eval()


PEERS: dict[str, Callable[[ModelCard, str], Tower]] = {
    "transformers": _clip,
    "transformers-bf16": partial(_clip, dtype=torch.bfloat16),
    "transformers-compile": _transformers_compile,
    "open_clip": _open_clip,
}
