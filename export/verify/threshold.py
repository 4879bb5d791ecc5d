"""Inputs placed at a policy's threshold, where a difference between two engines shows first."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.contract.policy import HeadPolicy, Policy, Threshold
from zoo.judging.judge import AnyJudge, Judge, PanelJudge
from zoo.judging.scorer import Feeds
from zoo.models.base import ZooModel
from zoo.models.served import ServedRun, text_banks

#: Pairs of inputs, one just above a threshold and one just below, that are made at most.
PAIRS = 32

Scores: TypeAlias = Callable[[Feeds], NDArray[np.float32]]


@dataclass(frozen=True)
class Placed:
    """Inputs near a threshold, how they were made, and the judge whose thresholds they are near."""

    feeds: Feeds
    how: str
    judge: AnyJudge


def placed_at_threshold(run: Scores, judge: AnyJudge, feeds: Feeds, scores: NDArray[np.float32]) -> Placed:
    """Make up to 2 x 32 inputs whose score lies at a threshold, where the smallest difference flips a verdict.

    Between an input that is flagged and one that is not, the images are blended, by bisection, until the verdict
    depends on single grey levels. For models that read only texts, tokens are exchanged until it depends on one. If all
    inputs get the same verdict, as with an untrained model, one threshold is first moved to the median score of the
    inputs. For a panel, this is done for each head.
    """
    if not isinstance(judge, PanelJudge):
        return _placed(run, judge, feeds, scores, PAIRS)
    by_head, end = {}, 0
    for name, one in judge.judges.items():
        part = slice(end, end := end + len(one.outputs))

        def head(feeds: Feeds, part: slice = part) -> NDArray[np.float32]:
            return run(feeds)[:, part]

        by_head[name] = _placed(head, one, feeds, scores[:, part], max(4, PAIRS // len(judge.judges)))
    policies = tuple(HeadPolicy(name, placed.judge.policy.single()) for name, placed in by_head.items())
    together = {key: np.concatenate([placed.feeds[key] for placed in by_head.values()]) for key in feeds}
    how = "for each head, " + "; ".join(sorted({placed.how for placed in by_head.values()}))
    judge = PanelJudge(judge.card, dataclasses.replace(judge.policy, heads=policies), warn=False)
    return Placed(together, how, judge)


def _placed(run: Scores, judge: Judge, feeds: Feeds, scores: NDArray[np.float32], most: int) -> Placed:
    flagged = judge.flags(judge.category_scores(scores)).any(axis=1)
    mix, how = _blended, "images blended until the verdict hangs on single grey levels"
    if "image" not in feeds:
        mix, how = _exchanged, "tokens exchanged until the verdict hangs on one"
    if not (flagged.any() and (~flagged).any()):
        judge = _at_median(judge, scores)
        flagged = judge.flags(judge.category_scores(scores)).any(axis=1)
        how = "a threshold moved to the median score, as the policy's own divide no inputs"
    over, under = np.flatnonzero(flagged)[:most], np.flatnonzero(~flagged)[:most]
    pairs = min(len(over), len(under))
    if pairs == 0:
        empty = {name: value[:0] for name, value in feeds.items()}
        return Placed(empty, "none (all inputs score alike)", judge)
    start = {name: value[under[:pairs]] for name, value in feeds.items()}
    end = {name: value[over[:pairs]] for name, value in feeds.items()}
    low, high = np.zeros(pairs, dtype=np.float32), np.ones(pairs, dtype=np.float32)
    for _ in range(16):
        middle = (low + high) / 2
        hit = judge.flags(judge.category_scores(run(mix(start, end, middle)))).any(axis=1)
        high, low = np.where(hit, middle, high), np.where(hit, low, middle)
    below, above = mix(start, end, low), mix(start, end, high)
    both = {name: np.concatenate([below[name], above[name]]) for name in feeds}
    return Placed(both, how, judge)


def _blended(start: Feeds, end: Feeds, share: NDArray[np.floating]) -> Feeds:
    """Images between the two sides; everything else is the end's, so that a share of 1 gives the end itself."""
    first, last = start["image"].astype(np.float32), end["image"].astype(np.float32)
    mixed = first + (last - first) * share[:, None, None, None]
    return {**end, "image": mixed.round().clip(0, 255).astype(np.uint8)}


def _exchanged(start: Feeds, end: Feeds, share: NDArray[np.floating]) -> Feeds:
    """Texts whose first tokens, a `share` of all places, are the end's and the others the start's."""
    places = np.arange(end["input_ids"].shape[1])
    chosen = places < np.round(share[:, None] * len(places))
    return {name: np.where(chosen, end[name], start[name]) for name in end}


def _at_median(judge: Judge, scores: NDArray[np.float32]) -> Judge:
    """A judge that divides these inputs in halves: by the category that varies most, between its middle scores."""
    table = judge.category_scores(scores)
    guarded = [index for index, category in enumerate(judge.policy.categories) if category.threshold]
    widest = max(guarded, key=lambda index: float(np.std(table[:, index])))
    ordered = np.sort(table[:, widest])
    middle = len(ordered) // 2
    halves = float(np.clip((ordered[middle - 1] + ordered[middle]) / 2, 0, 1))

    categories = list(judge.policy.categories)
    for index in guarded:
        threshold = Threshold(halves if index == widest else 1.0)
        categories[index] = dataclasses.replace(categories[index], threshold=threshold)
    policy: Policy = dataclasses.replace(judge.policy, categories=tuple(categories), rule="each")
    return Judge(judge.card, policy, warn=False)  # the thresholds of 1 are ours


Answers = tuple[NDArray[np.float32], NDArray[np.float32]]


class Reference:
    """A model under a policy, in eager torch, that computes each batch once.

    All engines of one model are compared on much the same inputs, and the eager model is slower than the engines.
    """

    def __init__(self, model: ZooModel, judge: AnyJudge) -> None:
        self.model = model
        self._run = ServedRun(model, text_banks(model, judge)).run
        self._known: dict[bytes, Answers] = {}

    def run(self, feeds: Feeds) -> Answers:
        """Logits and scores `[B, N]` of one batch, not to be written to; the feeds are those of `card.input_names`."""
        key = hashlib.sha256()
        for name, value in sorted(feeds.items()):
            key.update(f"{name} {value.dtype} {value.shape}".encode())
            key.update(np.ascontiguousarray(value).data)
        answers = self._known.get(key.digest())
        if answers is None:
            answers = self._known[key.digest()] = self._run(feeds)
        return answers
