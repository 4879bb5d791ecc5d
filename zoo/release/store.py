"""Releases: model.safetensors, card.json, policy.yaml, tokenizer.json in a directory or on the Hub, hashes checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.archives.archive import Archived
from zoo.contract.card import ModelCard
from zoo.contract.policy import AnyPolicy, read_policy
from zoo.errors import (
    BadArgumentError,
    BadCardError,
    BadDataError,
    MissingDependencyError,
    NoWeightsError,
    training_needed,
)
from zoo.files.held import HeldFiles, hashes, is_bundle
from zoo.files.hub import HUB, check_named, model_folder
from zoo.files.writing import CARD, POLICY, TOKENIZER, WEIGHTS, native_writer, new_directory, write_file
from zoo.judging.judge import AnyJudge, bind
from zoo.judging.scorer import Scorer
from zoo.keys import refuse_unsigned
from zoo.registry import RANDOM, ModelEntry, build, default_policy, list_models, model_card, model_entry
from zoo.release.pull import BUNDLE, RELEASE, archived_entry, naming, pull

if TYPE_CHECKING:
    from zoo.models.base import ZooModel


@dataclass(frozen=True)
class Release:
    """A model with weights (in evaluation mode), its card and its policy, bound to each other once, as `judge`.

    One model and a panel look the same here. Raises BadPolicyError when policy and model do not fit.
    """

    model: ZooModel
    card: ModelCard
    policy: AnyPolicy
    judge: AnyJudge = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "judge", bind(self.card, self.policy))


def write_release(model: ZooModel, policy: AnyPolicy, out: Path, *, overwrite: bool = False) -> ModelCard:
    """Write a release directory and return its card, hashes filled in.

    Everything is written beside `out` and moved there at the end, so that a broken run leaves no release.
    Raises BadPolicyError when the policy does not fit the model, BadInputError when `out` is taken or a weight is NaN
    or infinite.
    """
    from safetensors.torch import save_file

    from zoo.models.base import check_finite

    bind(model.card, policy)
    check_finite(model, model.card.name)
    with new_directory(out, overwrite=overwrite, ours=(CARD, WEIGHTS, POLICY, TOKENIZER)) as folder:
        tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        with native_writer(folder / WEIGHTS):
            save_file(tensors, folder / WEIGHTS)
        write_file(folder / POLICY, policy.to_yaml())
        if model.tokenizer_json is not None:
            write_file(folder / TOKENIZER, model.tokenizer_json)
        card = model.card.replace(files=hashes(folder))
        write_card(card, folder)
    return card


def write_card(card: ModelCard, folder: Path) -> None:
    """Write `card.json` into a folder."""
    card.write_json(folder / CARD, indent=2)


@training_needed()
def load_scorer(source: str | Path | Release, policy: AnyPolicy | str | Path | None = None, **options: Any) -> Scorer:
    """Load a bundle, a release, a Hub release or a registered model, ready to judge; or take a release in memory.

    A model whose weights lie in an archive (`zoo pull`) is fetched once, and its bundle runs.
    `policy`, or the file of one as given or as shipped, replaces its own. A bundle runs in its runtime, without torch.
    With a key configured (`SAFETY_ZOO_PUBLIC_KEY`) it must be a signed bundle.
    `options` are those of `export.runtime.load` for a bundle, else `device` (default: where the model is) and those of
    `Scorer`. Raises what `load_release` or the runtime raises, and BadPolicyError when policy and model do not fit.

    >>> with zoo.load_scorer("my_release") as scorer:
    ...     verdict = scorer.verdict("photo.jpg")
    >>> verdict.status, verdict.model
    ('ok', 'safeclip_tiny.zeroshot')
    """
    if isinstance(policy, (str, Path)):
        policy = read_policy(policy)
    if not isinstance(source, Release) and archived_entry(source) is not None:
        folder = pull(str(source)) / BUNDLE
        with naming(str(source), folder):
            return load_scorer(folder, policy, **options)
    if not isinstance(source, Release) and is_bundle(source):
        # The zoo never imports the export package: the runtime announces itself.
        runtimes = entry_points(group="safety_zoo.runtimes", name="bundle")
        if not runtimes:
            raise MissingDependencyError("no bundle runtime is installed: pip install safety-zoo again")
        scorer: Scorer = next(iter(runtimes)).load()(source, policy, **options)
        return scorer
    refuse_unsigned(source.card.name if isinstance(source, Release) else source)
    release = source if isinstance(source, Release) else load_release(source)
    from zoo.models.base import check_finite
    from zoo.models.served import ServedRun, text_banks

    if release is source:  # what was read is checked already
        check_finite(release.model, "the model in memory")
    judge = release.judge if policy is None else bind(release.card, policy)
    model = release.model.to(options.pop("device", None))
    codec = model.codec() if release.card.reads_text else None
    return Scorer(judge, codec, ServedRun(model.eval(), text_banks(model, judge)), **options)


def model_scorer(model: ZooModel, policy: AnyPolicy, **options: Any) -> Scorer:
    """Bind a model in memory to a policy, as `load_scorer`. The model is put in evaluation mode."""
    return load_scorer(Release(model, model.card, policy), **options)


@training_needed()
def load_release(source: str | Path) -> Release:
    """Load a model with its policy from a release, the Hub (`hf-hub:ORG/NAME[@REVISION]`), or by registry name.

    Raises UnknownModelError (close matches), NoWeightsError (architecture without published weights),
    TamperedFileError (a file that is not the one the card names), BadCardError, BadPolicyError, BadInputError.

    >>> release = zoo.load_release("my_release")
    >>> release.card.name, release.policy.name
    ('safeclip_tiny.zeroshot', 'safeclip')
    """
    found = _find(source)
    if isinstance(found, ModelEntry):
        model = _published(found)
        return Release(model, model.card, default_policy(found))
    place, name = found
    with naming(name, place):
        card, files = _open(place)
        return Release(_read_model(card, files), card, read_policy(place / POLICY, files.read(POLICY)))


@training_needed()
def load_model(source: str | Path) -> ZooModel:
    """The module of `load_release`, in evaluation mode. Its policy is not read.

    >>> model = zoo.load_model("my_release")
    >>> model.encode_image(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 128])
    """
    found = _find(source)
    if isinstance(found, ModelEntry):
        return _published(found)
    with naming(found[1], found[0]):
        return _read_model(*_open(found[0]))


def _find(source: str | Path) -> tuple[Path, str] | ModelEntry:
    """The folder of a release, fetched from the Hub if need be, and its name; or the entry of a registered model."""
    path, name = Path(source), str(source)
    check_named(name)
    if is_bundle(path) and not (path / WEIGHTS).is_file():
        raise BadArgumentError(
            f"{name}: is a bundle, which holds engines and not the model itself; give the release that it was exported "
            "from (to add an engine, export that release into the bundle), or judge with the bundle: `zoo score`, "
            "zoo.load_scorer()"
        )
    if path.is_dir():
        return path, name
    if path.suffix == ".ckpt":
        missing = "" if path.is_file() else "no such file; "
        raise BadArgumentError(
            f"{name}: {missing}a checkpoint of a training is not a release; make one: zoo release {name} --out DIR"
        )
    if name in list_models():
        entry = model_entry(name)
        return (pull(name) / RELEASE, name) if isinstance(entry.pretrained, Archived) else entry
    if path.is_file():
        raise BadArgumentError(f"{name}: is a file, and a release is a directory (made by `zoo release`); give that")
    if name.startswith(HUB) or "/" in name:
        return model_folder(name, list_models())
    return model_entry(name)  # raises UnknownModelError with the close matches


def _open(folder: Path) -> tuple[ModelCard, HeldFiles]:
    """The card of a release, and its files as they were hashed."""
    if not (folder / CARD).is_file():
        raise BadDataError(f"{folder}: holds no {CARD}, so it is not a release (see `zoo release`)")
    card = ModelCard.read(folder / CARD)
    for required in (WEIGHTS, POLICY, *((TOKENIZER,) if card.text else ())):
        if required not in card.files:
            raise BadCardError(f'{folder / CARD}: field "files" names no {required}')
    return card, HeldFiles(folder, card.files)


def _read_model(card: ModelCard, files: HeldFiles) -> ZooModel:
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    from zoo.models.base import check_finite

    model = build(card).eval()
    path = files.folder / WEIGHTS
    with files.place(WEIGHTS) as place:
        try:
            model.load_state_dict(load(place) if isinstance(place, bytes) else load_file(place))
        except RuntimeError as problem:
            raise BadDataError(f"{path} does not fit {card.name}: {problem}") from None
        except (SafetensorError, ValueError) as problem:
            raise BadDataError(f"{path}: not readable as safetensors: {problem}") from None
    check_finite(model, path)
    if card.text is not None:
        model.tokenizer_json = files.read(TOKENIZER).decode("utf-8")
        model.codec()  # raises for a tokenizer that does not fit
    return model


def _published(entry: ModelEntry) -> ZooModel:
    name = entry.card.name
    if entry.pretrained is None:
        raise NoWeightsError(
            f"{name}: no downloadable weights are registered for this model. Import published ones (`zoo import`) or "
            "train it (`zoo recipes`), and load the release directory; the untrained model is "
            f'zoo.create_model("{name}")'
        )
    if isinstance(entry.pretrained, str) and entry.pretrained != RANDOM:
        return load_clip(name, HUB + entry.pretrained)
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(entry.card).eval()


def load_clip(name: str, pretrained: str | Path) -> ZooModel:
    """A `safeclip_*` model with the weights and tokenizer of a transformers CLIP: a directory, or `hf-hub:ORG/NAME`.

    Raises BadInputError when it cannot be fetched or read, or does not fit the architecture.
    """
    from zoo.models.base import check_finite
    from zoo.models.clip_weights import fill_zero_shot, published_clip

    clip = published_clip(str(pretrained), with_text=True)
    model = fill_zero_shot(build(model_card(name)), clip, clip)
    check_finite(model, pretrained)
    return model
