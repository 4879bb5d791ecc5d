"""`zoo.load_scorer`: any model, released, registered or exported, bound to a policy and ready to judge."""

from __future__ import annotations

import hashlib
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zoo.bank_cache import cached_bank
from zoo.errors import MissingDependencyError
from zoo.judge import phrases
from zoo.panel import AnyPolicy, bind, zero_shot_policies
from zoo.policy import Policy
from zoo.release import Release, load_release
from zoo.scorer import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.models.base import ZooModel
    from zoo.models.dual_encoder import PhraseEncoder


def load_scorer(source: str | Path | Release, policy: AnyPolicy | None = None, **options: Any) -> Scorer:
    """Load a bundle, a release, a Hub release or a registered model, or take one in memory; `policy` replaces its own.

    A bundle runs in its runtime, without torch; `options` are those of `export.runtime.load`, or `device` and
    `batch_size`. Raises what `load_release` or the runtime raises, and BadPolicyError where they do not fit.
    """
    if not isinstance(source, Release) and is_bundle(source):
        # The zoo never imports the export package: the runtime announces itself.
        runtimes = entry_points(group="safety_zoo.runtimes", name="bundle")
        if not runtimes:
            raise MissingDependencyError("no bundle runtime is installed: pip install safety-zoo again")
        scorer: Scorer = next(iter(runtimes)).load()(source, policy, **options)
        return scorer
    release = source if isinstance(source, Release) else load_release(source)
    device = options.pop("device", "cpu")
    return model_scorer(release.model.to(device), policy or release.policy, **options)


def is_bundle(source: str | Path) -> bool:
    """Whether this is an exported bundle rather than a release or a name: it has a manifest."""
    return (Path(source) / "manifest.json").is_file()


def model_scorer(model: ZooModel, policy: AnyPolicy, **options: Any) -> Scorer:
    """Bind a model that is in memory to a policy, on its own device. The model is put in evaluation mode."""
    from zoo.models.served import ServedRun

    judge = bind(model.card, policy)
    codec = model.codec() if model.card.reads_text else None
    return Scorer(judge, codec, ServedRun(model.eval(), text_banks(model, policy)), **options)


def text_banks(model: ZooModel, policy: AnyPolicy) -> tuple[Tensor, ...]:
    """The banks that a model takes with this policy, in the order of `card.bank_names`; none for a classifier."""
    from zoo.models.dual_encoder import PhraseEncoder

    if not isinstance(model, PhraseEncoder):
        bind(model.card, policy)
        return ()
    policies = zero_shot_policies(model.card, policy)
    encoder = _encoder_hash(model) if policies else ""
    return tuple(_bank(model, one, encoder) for one in policies)


def text_bank(model: PhraseEncoder, policy: Policy) -> Tensor:
    """The embedded phrases `[P, D]` of a policy, unit norm over its temperature, on the model's device.

    The embeddings are kept on disk (see `zoo.bank_cache`), by the content of text tower, tokenizer and phrases.
    """
    return _bank(model, policy, _encoder_hash(model))


def _bank(model: PhraseEncoder, policy: Policy, encoder: str) -> Tensor:
    import torch

    def embed(words: tuple[str, ...]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = model.embed_phrases(words).float().cpu().numpy()
        return found

    bank = cached_bank(encoder, phrases(policy), embed)
    weight = next(model.text_tower.parameters())
    return torch.from_numpy(bank / np.float32(policy.temperature)).to(weight)


def _encoder_hash(model: PhraseEncoder) -> str:
    """A hash of text tower and tokenizer as they are in memory: weights that changed since they were loaded show."""
    import torch

    found = hashlib.sha256((model.tokenizer_json or "").encode())
    for name, value in model.text_tower.state_dict().items():
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
