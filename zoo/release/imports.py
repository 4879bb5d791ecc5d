"""Turn published weights of others into releases: `zoo import KIND SOURCE --out RELEASE`.

A head is read from a safetensors file alone. Its sha256 must be that of the tested file, or one that the user vouches
for. Tensors that are missing, left over or of another shape are named, and no default replaces them.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from zoo.archives.tfjs import read_tfjs
from zoo.assets import find_asset
from zoo.contract.card import QUICK_GELU, ModelCard
from zoo.contract.policy import Policy
from zoo.errors import BadArgumentError, BadDataError, TamperedFileError, ZooError, close_match, named_as
from zoo.files.held import hashes
from zoo.files.hub import HUB, model_folder
from zoo.files.writing import CARD, refuse_input
from zoo.models.base import ZooModel
from zoo.models.clip_weights import ClipWeights, clip_of, fill_image_tower, fill_zero_shot, published_clip
from zoo.models.heads import EmbeddingClassifier
from zoo.models.mobilenet import NSFWJS, nsfwjs_state
from zoo.models.upstream import KINDS, UPSTREAM, Upstream
from zoo.registry import build, create_model, list_models, model_card, model_entry
from zoo.release.store import load_release, write_release

log = logging.getLogger("zoo.release")

#: Turns a state dictionary that torch saved into safetensors; `weights_only` runs no code of the file.
CONVERT = (
    "import torch; from safetensors.torch import save_file; "
    "save_file(torch.load('{0}', map_location='cpu', weights_only=True), '{1}')"
)


def import_release(
    kind: str,
    source: str | Path,
    out: Path,
    *,
    tower: str | None = None,
    sha256: str | None = None,
    name: str | None = None,
    projection_from: str | None = None,
    hparams: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> ModelCard:
    """Read published weights of a known kind and write them as a release; returns its card.

    `kind` is `nsfwjs`, `clip` or the architecture of a published head. Heads take a `tower`, the CLIP below them (a
    transformers directory or a release, or `hf-hub:ORG/NAME`; OpenAI's by default), and the `sha256` of a file that the
    user vouches for. `clip` takes the registry `name` that it becomes, and `projection_from`, another CLIP for
    projection, text tower, tokenizer and temperature. Both take `hparams` that differ from the registered ones.

    Raises BadInputError naming the option, file or tensor that is wrong, TamperedFileError for an unknown sha256.
    """
    if kind not in KINDS:
        raise BadArgumentError(f'"{kind}" is not a kind of published weights' + close_match(kind, KINDS))
    given = {
        "tower": tower,
        "sha256": sha256,
        "name": name,
        "projection_from": projection_from,
        "hparams": dict(hparams or {}) or None,
    }
    for option, value in given.items():
        if value is not None and option not in KINDS[kind]:
            raise BadArgumentError(
                f"{kind} takes no {option}, got {value}; it takes {', '.join(KINDS[kind]) or 'none'}"
            )
    refuse_input(out, *(path for path in (source, tower, projection_from) if path is not None))
    if kind == "nsfwjs":
        model = _nsfwjs(Path(source))
    elif kind == "clip":
        model = _clip(str(source), name, projection_from, hparams or {})
    else:
        model = _head(UPSTREAM[kind], Path(source), tower, sha256, hparams or {})
    return write_release(model, Policy.read(find_asset(model_entry(model.card.name).policy)), out, overwrite=overwrite)


def _nsfwjs(source: Path) -> ZooModel:
    model = create_model(NSFWJS)
    model.load_state_dict(nsfwjs_state(read_tfjs(source)))
    upstream = hashes(source)["model.json"]
    model.card = model.card.replace(source=f"{model.card.source} (model.json sha256 {upstream})")
    return model


def _clip(source: str, name: str | None, projection_from: str | None, hparams: Mapping[str, Any]) -> ZooModel:
    known = list_models("safeclip_*")
    if name not in known:
        raise BadArgumentError(f'name must be that of a safeclip model, got "{name}"' + close_match(str(name), known))
    card = _card(name, hparams)  # wrong arguments are named before anything is read
    image = read_clip(source, with_text=projection_from is None)
    card = _as_prepared(card, image)
    rest = image if projection_from is None else read_clip(projection_from, with_text=True)
    if image.vision.hidden_act != QUICK_GELU:
        card = card.replace(hparams={**card.hparams, "hidden_act": image.vision.hidden_act})
    model = fill_zero_shot(_build(card), image, rest)
    sources, licences = image.source, image.licence
    if projection_from is not None:
        sources = f"image tower: {image.source}; projection, text tower, temperature: {rest.source}"
        licences = image.licence if image.licence == rest.licence else f"{image.licence}; {rest.licence}"
    model.card = card.replace(source=sources, licence=licences)
    return model


def _as_prepared(card: ModelCard, clip: ClipWeights) -> ModelCard:
    """The card with the preprocessing that the files of a CLIP name; a warning where they name none."""
    if clip.image is None:
        words = "%s: no file says how images are prepared; it is done as for %s: %s"
        log.warning(words, clip.source, card.name, card.image)
        return card
    return card.replace(image=clip.image)


def _head(
    upstream: Upstream, file: Path, tower: str | None, sha256: str | None, hparams: Mapping[str, Any]
) -> ZooModel:
    card = _card(upstream.model, hparams)
    tensors, digest = _read_safetensors(file, upstream, sha256)
    model = _with_head(card, tensors, upstream, file)  # a wrong file is named before a tower is fetched
    clip = read_clip(tower or HUB + upstream.tower, with_text=False)
    model = _with_head(_as_prepared(card, clip), tensors, upstream, file)
    fill_image_tower(model.image_tower, clip)
    vouched = "" if sha256 is None else ", not the file that was tested: vouched for by who imported it"
    model.card = model.card.replace(
        source=f"head: {upstream.source}, as safetensors, sha256 {digest}{vouched}; CLIP tower: {clip.source}",
        licence=f"head: {upstream.licence}; CLIP tower: {clip.licence}",
    )
    return model.eval()


def _with_head(card: ModelCard, tensors: dict[str, Tensor], upstream: Upstream, file: Path) -> EmbeddingClassifier:
    model = _build(card)
    assert isinstance(model, EmbeddingClassifier)  # every upstream's entry is one
    own = {key: value for key, value in tensors.items() if not key.startswith(upstream.ignored)}
    _load_exactly(model.head, {upstream.rename.get(key, key): value for key, value in own.items()}, file)
    return model


def _card(name: str, hparams: Mapping[str, Any]) -> ModelCard:
    """The registered card with these hyperparameters, each of its registered type."""
    registered = model_entry(name).card.hparams
    for key, value in hparams.items():
        if key in registered and type(value) is not type(registered[key]):
            wanted = type(registered[key]).__name__
            raise BadArgumentError(f"{name}: {key} must be of type {wanted}, as {registered[key]!r} is, got {value!r}")
    return model_card(name, **hparams)


def _build(card: ModelCard) -> ZooModel:
    try:
        return build(card)
    except ZooError:
        raise
    except (ValueError, StrictDataclassError) as problem:  # transformers, for sizes that do not fit together
        raise BadArgumentError(f"{card.name} cannot be built with these sizes: {problem}") from None


def read_clip(source: str, *, with_text: bool) -> ClipWeights:
    """A CLIP from a release or a transformers CLIP: a directory, or `hf-hub:ORG/NAME`.

    Raises BadInputError when the source has no CLIP, or lacks a tensor.
    """
    folder, place = model_folder(source)
    if (folder / CARD).is_file():
        with named_as(place, folder):
            return clip_of(load_release(folder).model, place if place.startswith(HUB) else folder.name)
    return published_clip(source, with_text=with_text)


def _read_safetensors(file: Path, upstream: Upstream, sha256: str | None) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file, as float32, and its sha256, once it is the one that was tested or is vouched for."""
    if not file.is_file():
        raise BadArgumentError(f"{file}: no such file; it is made from {upstream.source}")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise BadArgumentError(f'sha256 must be 64 hexadecimal digits, got "{sha256}"')
    content = file.read_bytes()
    if content[8:9] != b"{":  # JSON follows the length of the header in every safetensors file
        if content.startswith((b"PK\x03\x04", b"\x80")):
            line = CONVERT.format(file, file.with_suffix(".safetensors"))
            raise BadDataError(
                f"{file}: is a pickle, which can run code when it is read, so only safetensors is. Convert it, without "
                f'running code of its, with: python -c "{line}" (and then name its sha256)'
            )
        raise BadDataError(f"{file}: is not a safetensors file")
    digest = hashlib.sha256(content).hexdigest()
    if digest != (sha256 or upstream.sha256).lower():
        given = "the one given" if sha256 else f"that of the tested file, {upstream.source} converted to safetensors,"
        raise TamperedFileError(
            f"{file}: sha256 is {digest}, {given} is {sha256 or upstream.sha256}. If you checked this file yourself, "
            f"give its own as `sha256`: {digest}"
        )
    try:
        tensors = load(content)
    except (SafetensorError, ValueError) as problem:
        raise BadDataError(f"{file}: not readable as safetensors: {problem}") from None
    return tensors, digest


def _load_exactly(head: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Load a head's tensors. Raises BadDataError naming all that are missing, left over, misshapen or not finite."""
    # BatchNorm's count of batches: no answer depends on it, and few files keep it.
    state = head.state_dict()
    counters = {key: value for key, value in state.items() if key.endswith("num_batches_tracked")}
    missing = sorted(state.keys() - counters.keys() - tensors.keys())
    unknown = [key + close_match(key, state) for key in sorted(tensors.keys() - state.keys())]
    unfit = []
    for key in sorted(state.keys() & tensors.keys() - counters.keys()):
        shape, wanted = list(tensors[key].shape), list(state[key].shape)
        if shape != wanted:
            unfit.append(f"{key} is {shape}, expected {wanted}")
        elif not tensors[key].is_floating_point() or not torch.isfinite(tensors[key]).all():
            unfit.append(f"{key} holds values that are not finite floating-point numbers")
    wrong = [
        f"{what}: {', '.join(keys[:12])}" + (f" and {len(keys) - 12} more" if len(keys) > 12 else "")
        for what, keys in (("missing", missing), ("unknown", unknown), ("unfit", unfit))
        if keys
    ]
    if wrong:
        raise BadDataError(f"{file}: does not hold the weights of this head. " + ". ".join(wrong))
    head.load_state_dict(counters | tensors)
