"""Published weights in the cache: a release and a bundle, made from archives once, by the name of a model."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

import zoo
from zoo.archives.archive import Archived, Weights
from zoo.assets import find_asset
from zoo.contract.card import ModelCard
from zoo.contract.policy import AnyPolicy
from zoo.errors import BadArgumentError, MissingDependencyError, NoWeightsError, TamperedFileError, named_as
from zoo.files.held import hashes, is_bundle
from zoo.files.hub import HUB
from zoo.files.writing import CARD, POLICY, TOKENIZER, WEIGHTS, new_directory, write_file
from zoo.judging.banks import cache_folder
from zoo.keys import refuse_unsigned
from zoo.registry import RANDOM, ModelEntry, default_policy, list_models, model_entry

log = logging.getLogger("zoo.release.pull")

RELEASE, BUNDLE = "release", "bundle"


def archived_entry(source: str | Path) -> ModelEntry | None:
    """The entry of a registered name whose weights lie in archives; None for anything else, such as a folder."""
    if Path(source).is_dir() or str(source) not in list_models():
        return None
    entry = model_entry(str(source))
    return entry if isinstance(entry.pretrained, Archived) else None


def place(entry: ModelEntry) -> Path:
    """Where the weights of a model from archives are kept: by everything that they are made of.

    Raises RuntimeError where nothing can be kept (see `cache_folder`).
    """
    assert isinstance(entry.pretrained, Archived)
    policy = find_asset(entry.policy).read_text(encoding="utf-8")
    made_of = [entry.card.to_dict(), policy, zoo.__version__, entry.pretrained.converter]
    digest = hashlib.sha256(json.dumps([*made_of, *(one.sha256 for one in entry.pretrained.archives)]).encode())
    return cache_folder() / "models" / f"{entry.card.name}-{digest.hexdigest()[:16]}"


@contextmanager
def naming(name: str, folder: Path) -> Iterator[None]:
    """Let errors about a file of a folder call it by its model's name, and name the command that fetches it again."""
    try:
        with named_as(name, folder):
            yield
    except TamperedFileError as problem:
        if archived_entry(name) is None:
            raise
        raise TamperedFileError(f"{problem}; fetch it again: zoo pull {name} --overwrite") from None


def availability(entry: ModelEntry) -> tuple[str, str]:
    """Where the weights of a registered model are, in a word, and in parentheses where they come from.

    `here` (in the cache), `pull` (fetched by name, from an archive or the Hub), `random`, or `train` (or imported).
    """
    if isinstance(entry.pretrained, Archived):
        came = f"({entry.pretrained.megabytes} MB, {entry.pretrained})"
        try:
            return "here" if is_bundle(place(entry) / BUNDLE) else "pull", came
        except RuntimeError:  # no home, or a key that nothing in the cache is signed with
            return "pull", came
    if entry.pretrained in (None, RANDOM):
        return ("train", "(or import)") if entry.pretrained is None else ("random", "(for tests)")
    return "pull", f"({HUB}{entry.pretrained})"


def pull(name: str, given: Sequence[Path] = (), *, again: bool = False) -> Path:
    """The folder with the `release` and the `bundle` of a model whose weights lie in archives, made if it is not there.

    `given` are archives that were fetched by other means, under their own names. `again` fetches and converts them
    again. It is written whole or not at all. Raises UnknownModelError, NoWeightsError for a model without archives,
    what `Archived.weights` raises, and TamperedFileError with a key configured: nobody signed what is fetched.

    >>> sorted(path.name for path in pull("profanity_tfidf.alt_profanity_check").iterdir())
    ['bundle', 'release']
    """
    entry = model_entry(name)
    archived = entry.pretrained
    if not isinstance(archived, Archived):
        others = filter(archived_entry, list_models())
        raise NoWeightsError(f"{name}: no archive with its weights is known; there is one for {', '.join(others)}")
    refuse_unsigned(name)
    try:
        folder = place(entry)
    except RuntimeError as problem:
        raise BadArgumentError(
            f"{name}: cannot be kept anywhere ({problem}); name a folder: SAFETY_ZOO_CACHE"
        ) from None
    if is_bundle(folder / BUNDLE) and not again:
        return folder
    policy = default_policy(entry)
    weights = archived.weights(entry.card, given)
    if folder.exists():  # what a broken disk left, or what is to be made again; only this function writes there
        shutil.rmtree(folder)
    try:
        with new_directory(folder) as work:
            _write_release(entry.card, policy, weights, work / RELEASE)
            _write_bundle(entry.card, policy, weights, archived, work / BUNDLE)
    except BadArgumentError:
        if not is_bundle(folder / BUNDLE):  # else another process made it meanwhile
            raise
    log.warning("%s: checked, converted and kept in %s", name, folder)
    return folder


def _write_release(card: ModelCard, policy: AnyPolicy, weights: Weights, folder: Path) -> None:
    """Write a release from arrays, as `zoo.release.store.write_release` does from a module. No torch."""
    from safetensors.numpy import save

    folder.mkdir()
    write_file(folder / WEIGHTS, save(weights.arrays))
    write_file(folder / POLICY, policy.to_yaml())
    if weights.tokenizer is not None:
        write_file(folder / TOKENIZER, weights.tokenizer)
    card.replace(files=hashes(folder)).write_json(folder / CARD, indent=2)


def _write_bundle(card: ModelCard, policy: AnyPolicy, weights: Weights, archived: Archived, folder: Path) -> None:
    """Write a bundle by the export package, which announces itself: the zoo never imports it."""
    writers = entry_points(group="safety_zoo.runtimes", name="written")
    if not writers:
        raise MissingDependencyError("no writer of bundles is installed: pip install safety-zoo again")
    folder.mkdir()
    next(iter(writers)).load()(card, policy, weights, archived, folder)
