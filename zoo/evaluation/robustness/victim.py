"""The attacked model: its inputs for a set of items, its two logits at an operating point, a threshold by its FPR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from zoo.adversary.image.target import evaluation_mode
from zoo.adversary.image.two_logits import Judged
from zoo.contract.policy import Policy
from zoo.errors import BadArgumentError, BadDataError
from zoo.evaluation.robustness.items import Items
from zoo.release.store import Release


@dataclass(frozen=True)
class AttackedPoint:
    """A model that decides: `module` maps the model's inputs to logits `[B, K]`, and the highest is its answer.

    `threshold` is on the policy's unsafe score; None if the policy's own thresholds hold, or if classes are
    judged. It was found on `calibrated_on` at a rate of `fpr_target`; of the `negatives` there it flags the share
    `fpr_measured`.
    """

    name: str
    module: nn.Module
    threshold: float | None = None
    fpr_target: float | None = None
    fpr_measured: float | None = None
    calibrated_on: str = ""
    negatives: int = 0

    def answers(self, logits: Tensor) -> Tensor:
        """The class `[N]` that is answered for the model's own logits `[N, K]`."""
        if isinstance(self.module, Judged):
            logits = self.module.judge(logits)
        return logits.argmax(dim=1)


class Victim:
    """A release on a device, ready to be judged and attacked.

    With `target` labels its own classes are attacked, without a policy. Raises BadInputError for a panel.
    """

    def __init__(
        self,
        release: Release,
        policy: Policy | None = None,
        *,
        target: Literal["policy", "labels"] = "policy",
        device: str = "cpu",
    ) -> None:
        card = release.card
        card.refuse_panel("attack the models of its heads one by one")
        self.by_label = target == "labels"
        if self.by_label and (not card.labels or card.image is None or card.reads_text):
            raise BadArgumentError(
                f"`target` labels is for classifiers of images, and {card.name} is not one: attack its policy"
            )
        own = (policy or release.policy).single()
        self.card, self.policy, self.device = card, own, torch.device(device)
        self.model = release.model.to(self.device).eval()
        self.codec = self.model.codec() if card.reads_text else None
        self.judged = None if self.by_label else Judged(self.model, own)

    def own_point(self) -> AttackedPoint:
        """The policy's own decisions, or the model's own classes."""
        return AttackedPoint("policy", self.judged) if self.judged else AttackedPoint("labels", self.model)

    def point_at(self, name: str, threshold: float) -> AttackedPoint:
        """The decision "unsafe score above `threshold`"."""
        return AttackedPoint(name, Judged(self.model, self.policy, threshold), threshold)

    def extras(self, items: Items, texts: Sequence[str | None] | None = None) -> tuple[Tensor, ...]:
        """The model's inputs besides pixels, in its order, one row for each item; `texts` replace the items' own."""
        extras: list[Tensor] = []
        if self.codec is not None:
            given = items.texts if texts is None else texts
            tokens = self.codec.encode([text or "" for text in given])
            there = torch.tensor([text is not None for text in given])[:, None]
            extras = [torch.from_numpy(part) * there for part in (tokens.ids, tokens.mask)]
        if "image_present" in self.card.input_names:
            extras.append(items.with_image)
        return tuple(part.to(self.device) for part in extras)

    def floats(self, pixels: Tensor) -> Tensor:
        """uint8 pixels as float32 in [0, 1] on the device, the form that the model and the attacks take."""
        return pixels.to(self.device).float().div_(255)

    @torch.no_grad()
    def logits(
        self,
        items: Items,
        batch_size: int,
        *,
        pixels: Tensor | None = None,
        texts: Sequence[str | None] | None = None,
        progress: bool = False,
    ) -> Tensor:
        """The model's own logits `[N, K]`, on the CPU; `pixels` (float32) and `texts` replace the items' own."""
        extras = self.extras(items, texts)
        banks = self.judged.banks if self.judged else ()
        parts = torch.split(torch.arange(len(items)), batch_size)
        logits = []
        with evaluation_mode(self.model):
            for rows in track(parts, "Judging", transient=True, disable=not progress):
                inputs = [part[rows.to(self.device)] for part in extras]
                if pixels is not None:
                    inputs.insert(0, pixels[rows].to(self.device))
                elif items.pixels is not None:
                    inputs.insert(0, self.floats(items.pixels[rows]))
                logits.append(self.model(*inputs, *banks).float().cpu())
        return torch.cat(logits)

    def heights(self, logits: Tensor) -> NDArray[np.float64]:
        """The value that items `[N]` rank by: the highest of the guarded categories, in log-odds if possible."""
        assert self.judged is not None  # labels have no unsafe score
        guarded = [place for place, limit in enumerate(self.judged.limits) if limit < float("inf")]
        heights: NDArray[np.float64] = self.judged.heights(logits.double())[:, guarded].amax(dim=1).numpy()
        return heights

    def threshold_at(self, height: float) -> float:
        """The unsafe score of a height, on the scale of the policy's thresholds; rounded up, never down."""
        if self.judged is None or not self.judged.odds:
            return height
        score = 1 / (1 + math.exp(-height))
        while score < 1 and math.log(score) - math.log1p(-score) < height:  # the sigmoid rounds
            score = math.nextafter(score, 1.0)
        return score


def threshold_height(heights: NDArray[np.float64], fpr: float) -> float:
    """The lowest height that at most a share `fpr` of safe items `[N]` lies above.

    Raises BadInputError for a rate outside (0, 1), or for too few safe items: at 5 %, none of 10 items may be flagged,
    and the threshold would be the highest of them for any lower rate too.
    """
    if not 0 < fpr < 1:
        raise BadArgumentError(f"`fpr` is a share in (0, 1), got {fpr}")
    if not len(heights):
        raise BadDataError("no safe item to find the threshold on: `fpr` needs rows that are not unsafe")
    allowed = math.floor(fpr * len(heights) + 1e-9)
    if not allowed:
        raise BadDataError(
            f"{len(heights)} safe items are too few for a false positive rate of {fpr:g}: at least "
            f"{math.ceil(1 / fpr)} are needed; give more data, a higher `fpr`, or `points` policy"
        )
    return float(np.sort(heights)[::-1][allowed])
