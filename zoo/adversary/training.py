"""The inner attacks of adversarial training: the worst pixels and words within a threat, for each batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from zoo.adversary.image.ball import Ball
from zoo.adversary.text.edits import KINDS, TextBudget, character_edits, drawing, perturb
from zoo.adversary.text.target import watched
from zoo.adversary.text.tokens import Pieces
from zoo.adversary.threat import ImagePart
from zoo.contract import schema
from zoo.errors import BadArgumentError, BadDataError, close_match

#: Pixels `[B, C, H, W]` to the scalar that the attack maximises; each image contributes its own summand.
Objective: TypeAlias = Callable[[Tensor], Tensor]

#: The fields of a training threat. The attacker in training is always PGD, with one start.
FIELDS = ("norm", "eps", "steps", "step_size")


def training_threat(fields: Mapping[str, Any], *, single_step: bool = False) -> ImagePart:
    """The threat of `{norm: Linf, eps: 4/255, steps: 10, step_size: 1/255}`; steps are 10 unless given.

    `single_step` is FGSM from a random start with a step of 1.25 eps (Wong et al. 2020, arXiv 2001.03994). Raises
    BadInputError for a field that training does not use, BadCardError for a wrong value.
    """
    given = dict(fields)
    if given.get("attacks") in (["pgd"], ("pgd",)):
        del given["attacks"]
    for name in given:
        if name not in FIELDS:
            raise BadArgumentError(f'threat: training attacks by PGD and knows no "{name}"' + close_match(name, FIELDS))
    if single_step and given.get("steps", 1) != 1:
        raise BadArgumentError(f"threat: a single-step method takes 1 step, got {given['steps']}")
    given = {"steps": 1 if single_step else 10, **given}
    threat = ImagePart.from_dict({"attacks": ["pgd"], **given}, "threat")
    if single_step and threat.step_size is None:
        threat = dataclasses.replace(threat, step_size=1.25 * threat.eps)
    return threat


def scaled(threat: ImagePart, share: float) -> ImagePart:
    """The threat with a share in (0, 1] of its eps, and of its step."""
    if share >= 1:
        return threat
    step = None if threat.step_size is None else share * threat.step_size
    return dataclasses.replace(threat, eps=share * threat.eps, step_size=step)


def random_start(ball: Ball, generators: Sequence[torch.Generator] | None = None) -> Tensor:
    """A random allowed image for each clean one: of uniform offsets (Linf) or uniform length (L2).

    Drawn from torch's own stream, or for each image from a generator of its own, whatever stands beside it.
    """
    clean = ball.clean.detach()
    offsets, length = torch.empty_like(clean), torch.empty(len(clean), 1, 1, 1, device=clean.device)
    for rows, generator in [(slice(None), None)] if generators is None else enumerate(generators):
        if ball.norm == "Linf":
            offsets[rows].uniform_(-ball.eps, ball.eps, generator=generator)
        else:
            offsets[rows].normal_(generator=generator)
            length[rows].uniform_(0, ball.eps, generator=generator)
    if ball.norm != "Linf":
        offsets = ball.direction(offsets) * length
    return ball.project(offsets.add_(clean))


def perturb_pixels(
    objective: Objective, pixels: Tensor, threat: ImagePart, generators: Sequence[torch.Generator] | None = None
) -> Tensor:
    """PGD from a random start: images `[B, C, H, W]` float32 at most eps from `pixels` and in [0, 1].

    Put the model in evaluation mode with frozen parameters first (`zoo.adversary.image.target.evaluation_mode`):
    else dropout fools the attack, batch statistics leak between the images, and gradients of weights are computed
    for nothing. Raises BadInputError when the objective does not depend on the pixels.
    """
    return worst_inputs(lambda inputs: objective(inputs["image"]), {"image": pixels}, threat, None, generators)["image"]


@dataclass(frozen=True, config=schema.STRICT)
class TextHardening(schema.PlainData):
    """The changes of texts in training: a `share` of them gets character edits of some `kinds` within `budget`.

    The others get up to `hotflip_words` words exchanged against the model. `protected` words carry the label (a prompt
    for a dog without "dog" is another prompt): no exchange removes or adds one. Character edits may disguise them; in a
    share `aimed` of the edited texts these words are edited first, as an attacker would. The model gets the one of
    `worst_of` edits of a text that it judges worst: one of forty typos in "dog" is "dig", which a search finds and a
    random draw seldom does.
    """

    _where = "text"

    share: float = 0.0
    kinds: tuple[str, ...] = tuple(KINDS)
    budget: TextBudget = TextBudget()
    hotflip_words: int = 0
    protected: tuple[str, ...] = ()
    aimed: float = 0.0
    worst_of: int = 1

    def __post_init__(self) -> None:
        for name in ("share", "aimed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} lies in [0, 1], got {getattr(self, name)}")
        if self.aimed and not self.protected:
            raise ValueError("aimed edits the protected words first: name them in protected")
        if self.hotflip_words < 0:
            raise ValueError(f"hotflip_words must not be negative, got {self.hotflip_words}")
        if self.worst_of < 1:
            raise ValueError(f"worst_of is 1 or more, got {self.worst_of}")
        character_edits(self.kinds)  # refuses an unknown kind by name
        if not self.share and not self.hotflip_words:
            raise ValueError("text changes nothing: give share above 0, or hotflip_words")

    def edited(self, text: str, seed: int) -> str:
        """One random character edit of a text that spends the budget, of one kind drawn at random."""
        rng = drawing(seed, text)
        kind, aim = rng.choice(self.kinds), rng.random() < self.aimed
        return perturb(text, KINDS[kind], self.budget, seed, self.protected if aim else ())


class WordSwaps:
    """Exchanges whole words in token ids, for the tokenizer and the embedding table of one model.

    Raises BadInputError when the vocabulary has no whole words to bring in.
    """

    def __init__(self, tokenizer_json: str, embedding: nn.Embedding, protected: Sequence[str] = ()) -> None:
        pieces = Pieces(tokenizer_json)
        size = min(len(pieces.surface), embedding.num_embeddings)
        kept = {word.casefold() for word in protected}
        free = np.array([surface.casefold() not in kept for surface in pieces.surface], dtype=np.bool_)
        words = [token for token in pieces.whole_words() if free[token] and token < size]
        if not words:
            raise BadDataError("the tokenizer knows no whole words to exchange: train it on texts first")
        self.embedding = embedding
        #: The tokens `[W]` that may be brought in.
        self.words = torch.tensor(words)
        whole = pieces.kind == pieces.kind[words[0]]
        letters = np.array([surface.isalnum() for surface in pieces.surface], dtype=np.bool_)
        ends = (pieces.kind & 2) > 0
        by_end = bool(ends[words[0]])  # CLIP marks where a word ends, others where it begins or goes on
        #: `[V]` each: a word on its own if the neighbours allow; goes on from the token before; goes on in the next.
        self._word = torch.from_numpy(whole & pieces.readable & free)
        self._goes_on = torch.from_numpy(~whole & letters & (not by_end))
        self._unended = torch.from_numpy(~ends & letters & by_end)

    def open_places(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Where `[B, T]` a whole word stands that may go: no padding, control token, protected word or piece of one."""
        known = ids.cpu().clamp(max=len(self._word) - 1)
        left = torch.nn.functional.pad(self._unended[known][:, :-1], (1, 0))
        right = torch.nn.functional.pad(self._goes_on[known][:, 1:], (0, 1))
        alone = self._word[known] & ~left & ~right
        return alone.to(ids.device) & (mask > 0) & (ids < len(self._word))

    def best(self, ids: Tensor, mask: Tensor, gradient: Tensor, count: int) -> Tensor:
        """Ids `[B, T]` with up to `count` words of each text exchanged: those that raise the loss most, to first order.

        `gradient` `[B, T, D]` is that of the loss in the looked-up embeddings. Exchanging `e` for `e'` adds
        `(e' - e) . gradient`; places add up. A place where nothing helps is left as it is.
        """
        places = self.open_places(ids, mask).nonzero()
        if not count or not len(places):
            return ids
        rows, columns = places.unbind(1)
        weight = self.embedding.weight.detach().float()
        slope = gradient[rows, columns].float().nan_to_num(0.0, 0.0, 0.0)
        own = ids[rows, columns]
        words = self.words.to(ids.device)
        table = slope @ weight[words].T
        table.masked_fill_(words == own[:, None], -torch.inf)
        value, which = table.max(dim=1)
        gain = value - (slope * weight[own]).sum(dim=1)
        gains = torch.zeros(ids.shape, dtype=gain.dtype, device=ids.device).index_put_((rows, columns), gain)
        swapped = ids.index_put((rows, columns), words[which])
        top, place = gains.topk(min(count, ids.shape[1]), dim=1)
        chosen = torch.zeros_like(gains, dtype=torch.bool).scatter_(1, place, top > 0)
        return torch.where(chosen, swapped, ids)


#: A model's inputs by name (`image`, `input_ids`, `attention_mask`, ...), `[B, ...]` each.
Inputs: TypeAlias = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Words:
    """Up to `count` exchanges of words in the texts of the `rows` `[B]` bool."""

    swaps: WordSwaps
    count: int
    rows: Tensor


def worst_inputs(
    objective: Callable[[Inputs], Tensor],
    inputs: Inputs,
    threat: ImagePart | None,
    words: Words | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> dict[str, Tensor]:
    """The inputs with images attacked (given a `threat`) and words exchanged (given `words`).

    `objective` is a scalar to which each row contributes a summand of its own. With both, the first pass takes the
    gradient in pixels and in words at once, and the other passes attack the image beside the changed text: as many
    passes as PGD alone. As with `perturb_pixels`, the caller puts the model in evaluation mode.
    """
    worst = dict(inputs)
    if threat is None:
        if words is not None:
            _exchange(objective, worst, words)
        return worst
    ball = Ball.around(inputs["image"], threat)
    worst["image"] = random_start(ball, generators)
    for step in range(threat.steps):
        if words is not None and step == 0:
            (gradient,) = _exchange(objective, worst, words, "image")
        else:
            gradient = _pixel_gradient(objective, worst)
        uphill = ball.direction(gradient.nan_to_num_(0.0, 0.0, 0.0))  # pixels without a finite gradient do not move
        worst["image"] = ball.project(worst["image"].add(uphill, alpha=threat.pgd_step))
    return worst


def _pixel_gradient(objective: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
    """The gradient `[B, C, H, W]` float32 in the image; BadArgumentError when the objective does not depend on it."""
    with torch.enable_grad():
        leaf = inputs["image"].detach().requires_grad_()
        value = objective({**inputs, "image": leaf})
        if not value.requires_grad:
            raise BadArgumentError("the model's loss has no gradient in the pixels: there is nothing to train against")
        (gradient,) = torch.autograd.grad(value, leaf)
    return gradient


def _exchange(
    objective: Callable[[Inputs], Tensor], inputs: dict[str, Tensor], words: Words, *others: str
) -> list[Tensor]:
    """Exchange words in `inputs`; returns the gradients in the other inputs, which are as they were."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in others}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.enable_grad(), watched(words.swaps.embedding) as looked_up:
        slope, rest = looked_up.gradient(objective(inputs | leaves), ids.shape, list(leaves.values()))
    swapped = words.swaps.best(ids, mask, slope, words.count)
    inputs["input_ids"] = torch.where(words.rows[:, None], swapped, ids)
    return rest
