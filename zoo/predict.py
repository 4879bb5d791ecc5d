"""`zoo.load_scorer`: any model, released, registered or exported, bound to a policy and ready to judge."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import MissingDependencyError
from zoo.judge import Judge, phrases
from zoo.policy import Policy
from zoo.scorer import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.models.base import ZooModel


def load_scorer(source: str | Path, policy: Policy | None = None, **options: Any) -> Scorer:
    """Load a bundle, a release, a Hub release or a registered model; `policy` replaces its own.

    A bundle runs in its runtime, without torch; `options` are those of `export.runtime.load`, or `device` and
    `batch_size`. Raises what `load_release` or the runtime raises, and BadPolicyError where they do not fit.
    """
    if is_bundle(source):
        # The zoo never imports the export package: the runtime announces itself.
        runtimes = entry_points(group="safety_zoo.runtimes", name="bundle")
        if not runtimes:
            raise MissingDependencyError("no bundle runtime is installed: pip install safety-zoo again")
        scorer: Scorer = next(iter(runtimes)).load()(source, policy, **options)
        return scorer
    from zoo.release import load_release

    release = load_release(source)
    device = options.pop("device", "cpu")
    return model_scorer(release.model.to(device), policy or release.policy, **options)


def is_bundle(source: str | Path) -> bool:
    """Whether this is an exported bundle rather than a release or a name: it has a manifest."""
    return (Path(source) / "manifest.json").is_file()


def model_scorer(model: ZooModel, policy: Policy, **options: Any) -> Scorer:
    """Bind a model that is in memory to a policy, on its own device. The model is put in evaluation mode."""
    from zoo.models.served import ServedRun

    judge = Judge(model.card, policy)
    codec = model.codec() if model.card.reads_text else None
    return Scorer(judge, codec, ServedRun(model.eval(), text_bank(model, policy)), **options)


def text_bank(model: ZooModel, policy: Policy) -> Tensor | None:
    """The embedded phrases `[P, D]` of a policy for a zero-shot model; None for a classifier."""
    from zoo.models.dual_encoder import DualEncoder

    return model.embed_phrases(phrases(policy)) if isinstance(model, DualEncoder) else None
