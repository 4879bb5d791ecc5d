"""The model as it is served: uint8 pixels, token ids and text banks in, logits and scores out.

Eager evaluation and export share it. Only this module makes text banks, the embedded phrases of a policy.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.contract.policy import Policy
from zoo.judging.banks import policy_bank
from zoo.judging.judge import AnyJudge
from zoo.judging.scorer import Feeds
from zoo.models.base import Resize, ZooModel, weights_sha256
from zoo.models.clip import PhraseEncoder


class ServedModel(nn.Module):
    """Wraps a `ZooModel` with resize, normalisation and score function.

    Inputs are those of `card.input_names`: `image` uint8 `[B, H, W, 3]`, `input_ids` and `attention_mask` int64
    `[B, T]` or in place of the mask `term_weights` float32, `image_present` bool `[B]`; and the embedded phrases of the
    policies, one float32 `[P, D]` for each of `card.bank_names`. With `recompress` H and W are the model's size: that
    step is for whoever resizes, before this.
    Returns `logits` and `scores`, both `[B, N]`, N phrases or labels.
    """

    def __init__(self, model: ZooModel) -> None:
        super().__init__()
        self.model = model
        image = model.card.image
        self.resize: nn.Module | None = None
        if image is not None:
            self.resize = Resize(image) if image.recompress is None else nn.Identity()

    def forward(
        self,
        image: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        term_weights: Tensor | None = None,
        image_present: Tensor | None = None,
        text_banks: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor, Tensor]:
        """Logits and scores of a batch; what the model does not read is None."""
        given: list[Tensor] = []
        if image is not None:
            given.append(self.pixels(image))
        given += [tensor for tensor in (input_ids, attention_mask, term_weights, image_present) if tensor is not None]
        return self.model.answer(*given, *text_banks)

    def pixels(self, image: Tensor) -> Tensor:
        """uint8 `[B, H, W, 3]` to the model's `[B, 3, size, size]` float32 in [0, 1]."""
        assert self.resize is not None  # an image only comes where the card has an image input
        # To float before the transpose: TensorRT transposes no uint8.
        return self.resize(image.float().div(255.0).permute(0, 3, 1, 2))  # type: ignore[no-any-return]


class ServedRun:
    """Numpy feeds in, numpy scores `[B, N]` out, through eager torch on the model's own device."""

    def __init__(self, model: ZooModel, text_banks: tuple[Tensor, ...]) -> None:
        self.served, self.text_banks = ServedModel(model).eval(), text_banks
        self.device = next(model.parameters()).device
        self.name = f"eager on {self.device}"
        self.why = f"eager torch {torch.__version__} on {self.device}: the model itself, not an exported engine"

    @property
    def weights(self) -> str:
        """A hash of the weights and the tokenizer as they are in memory."""
        model = self.served.model
        return weights_sha256(model, sorted(model.state_dict().items()))

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:
        """Scores of one batch; the feeds are those of `card.input_names`."""
        return self.run(feeds)[1]

    @torch.inference_mode()
    def run(self, feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and scores of one batch."""
        tensors = {name: torch.as_tensor(value).to(self.device) for name, value in feeds.items()}
        logits, scores = self.served(**tensors, text_banks=self.text_banks)
        return logits.cpu().numpy(), scores.cpu().numpy()


def text_banks(model: ZooModel, judge: AnyJudge) -> tuple[Tensor, ...]:
    """The banks that a model takes with the policy of this judge, in the order of `card.bank_names`; () without any."""
    if not isinstance(model, PhraseEncoder) or not judge.zero_shot_policies:
        return ()
    encoder = encoder_sha256(model)
    return tuple(text_bank(model, policy, encoder) for policy in judge.zero_shot_policies)


def text_bank(model: PhraseEncoder, policy: Policy, encoder: str = "") -> Tensor:
    """The embedded phrases `[P, D]` of a policy, unit norm over its temperature, on the model's device.

    The embeddings are kept on disk (see `zoo.judging.banks`), by the content of text tower, tokenizer and phrases.
    `encoder` is the hash of the first two where it is known already.
    """

    def embed(words: tuple[str, ...]) -> NDArray[np.float32]:
        embedded: NDArray[np.float32] = model.embed_phrases(words).float().cpu().numpy()
        return embedded

    bank = policy_bank(policy, embed, encoder or encoder_sha256(model))
    return torch.from_numpy(bank).to(next(model.text_tower.parameters()))


def encoder_sha256(model: PhraseEncoder) -> str:
    """A hash of text tower and tokenizer as they are in memory: weights that changed since they were loaded show."""
    return weights_sha256(model, model.text_tower.state_dict().items())
