"""A CLIP to copy weights from: one of transformers or of a zoo model, with the settings that shapes do not show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from zoo.contract import schema
from zoo.contract.card import ImageInput
from zoo.errors import BadArgumentError, BadCardError, BadDataError, named_as
from zoo.files.hub import HUB, model_folder
from zoo.models.base import ZooModel, read_transformers
from zoo.models.clip import ClipImageTower, ClipTextTower, DualEncoder, copy_tower

#: Settings that change a transformer's output but no shape: without a check, a difference would go unnoticed.
_UNSEEN = ("num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")
_OPENAI = f"{HUB}openai/clip-"
_PROJECTION = "visual_projection.weight"


@dataclass(frozen=True)
class ClipWeights:
    """Tensors by transformers' names, the configuration of both towers, and where they come from.

    `layers` counts the layers of the image tower: a release of the zoo keeps only those that it reads.
    `final_norm` says whether the image tower's final LayerNorm is that of a trained CLIP. A source that judges images
    only has no text tensors, and its `text` is None. `image` is how it wants images, None where it does not say.
    """

    source: str
    licence: str
    state: Mapping[str, Tensor]
    vision: CLIPVisionConfig
    layers: int
    final_norm: bool = True
    text: CLIPTextConfig | None = None
    tokenizer_json: str | None = None
    image: ImageInput | None = None


def published_clip(source: str, *, with_text: bool) -> ClipWeights:
    """Read a transformers CLIP, a directory or `hf-hub:ORG/NAME`; with `with_text` its tokenizer.json too.

    Raises BadInputError when it cannot be fetched or read, or lacks a tensor.
    """
    folder, place = model_folder(source)
    clip, tokenizer = read_transformers(CLIPModel, folder, source, "the CLIP", with_tokenizer=with_text)
    with named_as(place, folder):
        preprocessing = read_preprocessing(folder, clip.config.vision_config.image_size)
    return ClipWeights(
        source=place if place.startswith(HUB) else f"directory {folder.name}",
        licence="MIT (OpenAI CLIP weights)" if source.startswith(_OPENAI) else f"that of {Path(source).name}",
        state=clip.state_dict(),
        vision=clip.config.vision_config,
        layers=clip.config.vision_config.num_hidden_layers,
        text=clip.config.text_config,
        tokenizer_json=tokenizer,
        image=preprocessing,
    )


def read_preprocessing(folder: Path, size: int) -> ImageInput | None:
    """How the files of a CLIP want its images of `size` pixels; None where none of them says it.

    Reads transformers' `processor_config.json` or `preprocessor_config.json`, else open_clip's
    `open_clip_config.json`. Raises BadDataError naming the field of what an `ImageInput` cannot say.
    """
    for name, (part, read) in _READERS.items():
        path = folder / name
        data = schema.read_json(path) if path.is_file() else {}
        given = (data if isinstance(data, dict) else {"": data}).get(part) if part else data
        if given in (None, {}):  # transformers 4 wrote a processor_config.json without the settings of images
            continue
        try:
            image, checks = read(given, size)
            for field, (value, allowed) in checks.items():
                if value not in allowed:
                    raise ValueError(f"{field} is {value}, and this model can only be given {allowed[0]}")
            return schema.parse(ImageInput, {"size": size, **image}, str(path))
        except BadCardError as problem:
            raise BadDataError(str(problem)) from None
        except (TypeError, ValueError) as problem:  # also transformers', for sizes that are none
            raise BadDataError(f"{path}: {problem}") from None
    return None


#: Fields of an `ImageInput`, and other settings with the values that they may have.
_Plan: TypeAlias = tuple[dict[str, Any], dict[str, tuple[Any, tuple[Any, ...]]]]


def _read_transformers(data: Any, size: int) -> _Plan:
    if not isinstance(data, dict):
        raise ValueError(f"must be an object of settings, got {type(data).__name__}")
    kind = data.get("image_processor_type") or data.get("feature_extractor_type") or "CLIP"
    if not str(kind).startswith("CLIP"):  # what its file leaves out would be another than CLIP's
        missing = next((name for name in ("size", "resample", "image_mean", "image_std") if data.get(name) is None), "")
        if missing:
            raise ValueError(f"names no {missing}, as a {kind} need not")
        edges = data["size"] if isinstance(data["size"], dict) else dict.fromkeys(("height", "width"), data["size"])
        data = {"do_center_crop": False, **data, "size": edges}
    given: Any = CLIPImageProcessorPil(**{name: value for name, value in data.items() if value is not None})
    edges = dict(given.size or {})
    squash = "shortest_edge" not in edges
    image = {
        "resize": "squash" if squash else "shortest_edge_crop",
        "interpolation": {2: "bilinear", 3: "bicubic"}.get(given.resample, given.resample),
        "mean": given.image_mean if given.do_normalize else [0.0] * 3,
        "std": given.image_std if given.do_normalize else [1.0] * 3,
    }
    checks = {
        "do_resize": (given.do_resize, (True,)),
        "do_rescale": (given.do_rescale, (True,)),
        "rescale_factor": (round(255 * given.rescale_factor, 4), (1.0,)),
        "size": (edges, ({"height": size, "width": size} if squash else {"shortest_edge": size},)),
    }
    if given.do_center_crop:
        checks["crop_size"] = (dict(given.crop_size or {}), ({"height": size, "width": size},))
    elif not squash:
        checks["do_center_crop"] = (False, (True,))
    return image, checks


def _read_open_clip(given: Any, size: int) -> _Plan:
    if not isinstance(given, dict):
        raise ValueError(f"preprocess_cfg must be an object of settings, got {type(given).__name__}")
    sides = given.get("size", size)
    modes = {"shortest": "shortest_edge_crop", "squash": "squash"}
    mode = given.get("resize_mode", "shortest")
    image = {
        "resize": modes.get(mode, mode),
        "interpolation": given.get("interpolation", "bicubic"),
        "mean": given.get("mean", OPENAI_CLIP_MEAN),
        "std": given.get("std", OPENAI_CLIP_STD),
    }
    return image, {"size": (sides, (size, [size, size]))}


#: The files that say how images are prepared, the first one counts: which part of it does, and how it is read.
_READERS: dict[str, tuple[str, Callable[[Any, int], _Plan]]] = {
    "processor_config.json": ("image_processor", _read_transformers),
    "preprocessor_config.json": ("", _read_transformers),
    "open_clip_config.json": ("preprocess_cfg", _read_open_clip),
}


def clip_of(model: ZooModel, source: str) -> ClipWeights:
    """The CLIP in a model of the zoo. Raises BadArgumentError for a model without a CLIP image tower."""
    image, text = getattr(model, "image_tower", None), getattr(model, "text_tower", None)
    card = model.card
    if not isinstance(image, ClipImageTower):
        raise BadArgumentError(f"{source}: {card.name} has no CLIP image tower to copy")
    state = dict(image.state_dict())
    if isinstance(text, ClipTextTower):
        state |= text.state_dict()
    if isinstance(model, DualEncoder):
        state["logit_scale"] = model.logit_scale.detach()
    return ClipWeights(
        source=f"release {source} ({card.name}, sha256 {card.files.get('model.safetensors', 'unknown')}), "
        f"itself from {card.source}",
        licence=card.licence,
        state=state,
        vision=image.vision_model.config,
        layers=len(image.vision_model.encoder.layers),
        # Training leaves an unused LayerNorm at its initial value. A CLIP that was copied has a trained one.
        final_norm=image.post_layernorm or not card.training.recipe,
        text=text.text_model.config if isinstance(text, ClipTextTower) else None,
        tokenizer_json=model.tokenizer_json,
        image=card.image,
    )


def fill_image_tower(tower: ClipImageTower, clip: ClipWeights, projection: ClipWeights | None = None) -> None:
    """Copy CLIP's image tower; its projection comes from another CLIP where one is given.

    Raises BadInputError when the towers differ, or layers are needed that the source has not kept.
    """
    needed: CLIPVisionConfig = tower.vision_model.config
    check_settings(clip.source, "image tower", clip.vision, needed)
    built = len(tower.vision_model.encoder.layers)
    if built > clip.layers:
        raise BadDataError(
            f"{clip.source}: keeps {clip.layers} of the {needed.num_hidden_layers} layers of its image tower, those "
            f"that it reads, and {built} are needed here: give the CLIP that it was made from, or a layer of "
            f"{clip.layers - needed.num_hidden_layers - 1} or below"
        )
    if tower.post_layernorm and not clip.final_norm:
        raise BadDataError(
            f"{clip.source}: was trained without the final LayerNorm that is asked for here (post_layernorm), so its "
            "values there mean nothing"
        )
    state = dict(clip.state)
    if projection is not None:
        state[_PROJECTION] = projection.state[_PROJECTION]
    copy_tower(state, tower)


def fill_zero_shot(model: ZooModel, image: ClipWeights, rest: ClipWeights) -> ZooModel:
    """Fill a model with the image tower of one CLIP, and projection, text and temperature of another or the same.

    Returns it in evaluation mode. Raises BadInputError when one of them does not fit it, or has no text tower.
    """
    if not isinstance(model, DualEncoder):
        raise BadArgumentError(f"{model.card.name} compares no images with phrases")
    if rest.text is None or "logit_scale" not in rest.state:
        raise BadDataError(f"{rest.source}: has no text tower, tokenizer and temperature to compare phrases with")
    fill_towers(model, image, rest)
    model.logit_scale.data.copy_(rest.state["logit_scale"])
    return model.eval()


def fill_towers(model: ZooModel, image: ClipWeights, rest: ClipWeights) -> None:
    """Copy the image tower of one CLIP, and projection, text tower and tokenizer of another or the same.

    Raises BadInputError when the model has no CLIP towers, one of these does not fit, or `rest` has no text tower.
    """
    tower, text_tower = getattr(model, "image_tower", None), getattr(model, "text_tower", None)
    if not (isinstance(tower, ClipImageTower) and isinstance(text_tower, ClipTextTower)):
        raise BadArgumentError(f"{model.card.name} does not have two CLIP towers")
    if rest.text is None or rest.tokenizer_json is None:
        raise BadDataError(f"{rest.source}: has no text tower and tokenizer")
    fill_image_tower(tower, image, rest)
    check_settings(rest.source, "text tower", rest.text, text_tower.text_model.config)
    copy_tower(rest.state, text_tower)
    model.tokenizer_json = rest.tokenizer_json
    model.codec()
    if image.image not in (None, model.card.image):
        raise BadDataError(
            f"{image.source}: wants images as {image.image}, and {model.card.name} gives {model.card.image}"
        )


def check_settings(
    source: str, tower: str, given: CLIPVisionConfig | CLIPTextConfig, needed: CLIPVisionConfig | CLIPTextConfig
) -> None:
    """Raise BadDataError when a tower computes otherwise than the one that is to hold its weights."""
    pairs = {name: (getattr(given, name), getattr(needed, name)) for name in _UNSEEN}
    wrong = [f"{name} {there} (expected {here})" for name, (there, here) in pairs.items() if there != here]
    if wrong:
        raise BadDataError(f"{source}: its {tower} does not fit the architecture: {', '.join(wrong)}")
