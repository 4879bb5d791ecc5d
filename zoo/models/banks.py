"""From a policy to the text banks that a zero-shot model takes: the one place where phrases are embedded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zoo.contract.policy import Policy
from zoo.judging.banks import cached_bank, policy_bank
from zoo.judging.panel import AnyJudge

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.models.base import ZooModel
    from zoo.models.dual_encoder import PhraseEncoder


def text_banks(model: ZooModel, judge: AnyJudge) -> tuple[Tensor, ...]:
    """The banks that a model takes with the policy of this judge, in the order of `card.bank_names`; () without any."""
    from zoo.models.dual_encoder import PhraseEncoder

    if not isinstance(model, PhraseEncoder):
        return ()
    policies = judge.zero_shot_policies
    encoder = _encoder_hash(model) if policies else ""
    return tuple(_bank(model, one, encoder) for one in policies)


def text_bank(model: PhraseEncoder, policy: Policy) -> Tensor:
    """The embedded phrases `[P, D]` of a policy, unit norm over its temperature, on the model's device.

    The embeddings are kept on disk (see `zoo.judging.banks`), by the content of text tower, tokenizer and phrases.
    """
    return _bank(model, policy, _encoder_hash(model))


def _bank(model: PhraseEncoder, policy: Policy, encoder: str) -> Tensor:
    import torch

    def embed(words: tuple[str, ...]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = model.embed_phrases(words).float().cpu().numpy()
        return found

    bank = policy_bank(policy, lambda words: cached_bank(encoder, words, embed))
    weight = next(model.text_tower.parameters())
    return torch.from_numpy(bank).to(weight)


def _encoder_hash(model: PhraseEncoder) -> str:
    """A hash of text tower and tokenizer as they are in memory: weights that changed since they were loaded show."""
    from zoo.models.base import weights_sha256

    return weights_sha256(model, model.text_tower.state_dict().items())
