"""Judge images and texts with an eager torch model: `zoo.load_scorer`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from zoo.judge import Judge, phrases
from zoo.models.base import ZooModel
from zoo.models.dual_encoder import DualEncoder
from zoo.models.served import ServedRun
from zoo.policy import Policy
from zoo.release import load_release
from zoo.scorer import Scorer


def load_scorer(source: str | Path, policy: Policy | None = None, *, device: str = "cpu", batch_size: int = 32) -> Scorer:
    """Load a release, a Hub release or a registered model and bind it to a policy (its own when None).

    Raises what `zoo.release.load_release` raises, and BadPolicyError when the policy does not fit the model.
    """
    release = load_release(source)
    return model_scorer(release.model.to(device), policy or release.policy, batch_size=batch_size)


def model_scorer(model: ZooModel, policy: Policy, *, batch_size: int = 32) -> Scorer:
    """Bind a model that is already in memory to a policy. The model is put in evaluation mode."""
    model.eval()
    codec = model.codec() if model.card.reads_text else None
    return Scorer(Judge(model.card, policy), codec, ServedRun(model, text_bank(model, policy)), batch_size=batch_size)


def text_bank(model: ZooModel, policy: Policy) -> Tensor | None:
    """The embedded phrases `[P, D]` of a policy for a zero-shot model; None for a classifier."""
    return model.embed_phrases(phrases(policy)) if isinstance(model, DualEncoder) else None
