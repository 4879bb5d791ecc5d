"""The detector: what a released SafeCLIP adds to CLS tokens that a vision-language model has computed anyway."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.assets import find_asset
from zoo.contract.panel import one_policy
from zoo.contract.policy import Policy
from zoo.contract.verdict import Verdict
from zoo.errors import BadArgumentError, GuardError
from zoo.guard.vision import tower_sample
from zoo.judging.judge import Judge
from zoo.models.clip import ClipImageTower, DualEncoder
from zoo.models.served import text_bank
from zoo.release.load import load_release

Tiles = Literal["max", "mean", "base"]
_SEVERITY = {"safe": 0, "review": 1, "unsafe": 2}


def load_detector(
    source: str | Path, policy: Policy | str | Path | None = None, *, layer: int | None = None
) -> Detector:
    """The detector of a release or registered `safeclip_*` model, with its own policy or another (or the file of one).

    Raises what `load_release` and `Detector` raise.
    """
    release = load_release(source)
    if isinstance(policy, (str, Path)):
        policy = Policy.read(find_asset(policy))
    if not isinstance(release.model, DualEncoder):
        raise BadArgumentError(
            f"{release.card.name} cannot be a guard's detector: a guard's detector is a safeclip_* model"
        )
    return Detector(release.model, policy or one_policy(release.policy), layer=layer)


class Detector(nn.Module):
    """Visual projection, text bank and temperature of a SafeCLIP, with a policy (arXiv 2503.00037).

    `layer` is the index of the hidden state whose CLS token is read, negative, in the CLIP that the model's card
    describes (default: the card's; LLaVA's projector reads -2); `index` is the same counted from the embeddings, so
    that it also fits a tower that was cut off behind that layer. `post_layernorm` applies CLIP's final LayerNorm.

    `tiles` combines an image's tiles where a model cuts it up: `max` lets the worst tile decide (a flagged one before
    any other, then the highest unsafe score), `mean` averages the phrase scores, `base` reads the whole view alone.

    The text bank is embedded here, once; the towers are not kept. Everything is float32 whatever the model is in.
    Raises BadInputError for a model without CLIP towers or a layer that it does not have, BadPolicyError.
    """

    text_bank: Tensor

    def __init__(
        self,
        model: DualEncoder,
        policy: Policy,
        *,
        layer: int | None = None,
        post_layernorm: bool | None = None,
        tiles: Tiles = "max",
    ) -> None:
        super().__init__()
        tower = getattr(model, "image_tower", None)
        if not isinstance(model, DualEncoder) or not isinstance(tower, ClipImageTower):
            name = model.card.name if hasattr(model, "card") else type(model).__name__
            raise BadArgumentError(
                f"{name} cannot be a guard's detector: that takes a safeclip_* model, with a CLIP tower"
            )
        if tiles not in get_args(Tiles):
            raise BadArgumentError(f"tiles must be one of {', '.join(get_args(Tiles))}, got {tiles!r}")
        depth = int(model.card.hparams["vision_layers"])
        self.layer = int(model.card.hparams["layer"]) if layer is None else layer
        if not -depth - 1 <= self.layer <= -1:
            raise BadArgumentError(
                f"layer must lie in [{-depth - 1}, -1] for a CLIP of {depth} layers, got {self.layer}"
            )
        self.index = depth + 1 + self.layer
        self.card, self.policy, self.tiles = model.card, policy, tiles
        self.judge = Judge(model.card, policy)
        self.visual_projection = copy.deepcopy(tower.visual_projection).float().requires_grad_(False)
        normed = tower.post_layernorm if post_layernorm is None else post_layernorm
        norm = copy.deepcopy(tower.vision_model.post_layernorm) if normed else nn.Identity()
        self.post_layernorm = norm.float().requires_grad_(False)
        self.register_buffer("text_bank", text_bank(model, policy).float() * model.scale().detach().float())
        built = len(tower.vision_model.encoder.layers)
        self.compared_layers = min(built, self.index)
        self.tower_weights = tower_sample(tower.vision_model, self.compared_layers)
        self.to(model.logit_scale.device).eval()

    @property
    def width(self) -> int:
        """Width of the CLS tokens that it projects."""
        return int(self.visual_projection.in_features)

    @torch.no_grad()
    def forward(self, cls: Tensor) -> Tensor:
        """Phrase scores `[N, P]` in [0, 1], float32, of hidden CLS tokens `[N, W]` in any float type."""
        if self.text_bank.device != cls.device:
            self.to(cls.device)
        with torch.autocast(cls.device.type, enabled=False):
            embedding = self.visual_projection(self.post_layernorm(cls.float()))
            return (nn.functional.normalize(embedding, dim=-1) @ self.text_bank.T).softmax(dim=-1)

    def verdicts(self, scores: Tensor, tiles: list[int]) -> list[Verdict]:
        """One verdict an image, from the phrase scores of its tiles. Raises GuardError when one cannot be judged."""
        table = scores.cpu().numpy()
        if not np.isfinite(table).all():
            rows = np.flatnonzero(~np.isfinite(table).all(axis=1)).tolist()
            raise GuardError(
                f"the detector's scores of tiles {rows} are NaN: the vision tower gave no finite CLS token"
            )
        ends = np.cumsum(tiles)
        return [self._image(table[end - count : end]) for end, count in zip(ends, tiles, strict=True)]

    def _image(self, table: NDArray[np.float32]) -> Verdict:
        if self.tiles == "mean":
            table = table.mean(axis=0, keepdims=True)
        elif self.tiles == "base":
            table = table[:1]
        verdicts = self.judge.verdicts(table)
        for verdict in verdicts:
            if verdict.status != "ok":
                raise GuardError(f"an image could not be judged: {verdict.detail}")
        unsafe = self.judge.unsafe_score(self.judge.category_scores(table))
        worst = max(range(len(verdicts)), key=lambda row: (_SEVERITY[verdicts[row].decision], unsafe[row]))
        return verdicts[worst]
