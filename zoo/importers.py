"""Published weights of others into releases of ours: `zoo import KIND DIR --out RELEASE`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zoo.assets import find_asset
from zoo.card import ModelCard
from zoo.files import hashes
from zoo.models.base import ZooModel
from zoo.models.tfjs import read_tfjs
from zoo.policy import Policy
from zoo.registry import create_model, model_entry
from zoo.release import write_release


def import_release(kind: str, source: Path, out: Path, *, overwrite: bool = False) -> ModelCard:
    """Read published weights of a known kind and write them as a release; returns its card.

    Raises BadInputError for a source that is not what the kind says, naming the file or the weight.
    """
    name, read = KINDS[kind]
    model = read(name, source)
    return write_release(model, Policy.read(find_asset(model_entry(name).policy)), out, overwrite=overwrite)


def _nsfwjs(name: str, source: Path) -> ZooModel:
    from zoo.models.nsfwjs import nsfwjs_state

    model = create_model(name)
    model.load_state_dict(nsfwjs_state(read_tfjs(source).weights))
    upstream = hashes(source)["model.json"]
    model.card = model.card.replace(source=f"{model.card.source} (model.json sha256 {upstream})")
    return model


#: Kind, the registered model it becomes, and how it is read.
KINDS: dict[str, tuple[str, Callable[[str, Path], ZooModel]]] = {
    "nsfwjs": ("nsfwjs_mobilenet_v2.gantman", _nsfwjs),
}
