"""Gradient-guided token substitution: HotFlip and greedy coordinate gradient, on real texts.

HotFlip (Ebrahimi et al. 2018, arXiv 1712.06751) estimates the effect of every exchange of a token to first order and
takes the best; here the best few are tried, and the one that is truly best is taken. Greedy coordinate gradient (Zou et
al. 2023, arXiv 2307.15043, algorithm 1; against safety filters with banned words in MMA-Diffusion, arXiv 2311.17516)
tries random ones among the best of each place and continues from the best of those, even if it is worse.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from rich.progress import track
from torch import Tensor

from zoo.adversary.text.edits import count_banned, keeps_protected
from zoo.adversary.text.target import Goal, Outcome, TextModel, TextResult, checked_scores
from zoo.adversary.text.tokens import TokenEditor, TokenText

Method = Literal["hotflip", "gcg"]


def substitute_tokens(
    goal: Goal, model: TextModel, method: Method, texts: Sequence[str], items: Sequence[int], *, progress: bool
) -> list[TextResult]:
    """Attack texts by exchanging tokens, each for one that stands at the same place of a word and is readable.

    Only candidates that are encoded as the meant ids are tried; the others are counted (`unrealisable`). `gcg` first
    appends `threat.suffix` random words, within the budget. Without a gradient the exchanges are drawn at random, and
    the result says so (`obfuscated`). `items` are the texts' places in the attacked set.
    """
    editor = TokenEditor(model.codec)
    attacks = (_Attack(goal, model, editor, method, *pair) for pair in zip(texts, items, strict=True))
    shown = track(attacks, f"{method}: attacking texts", total=len(texts), disable=not progress, transient=True)
    return goal.confirmed([attack.run() for attack in shown], items)


@dataclass
class _Attack:
    """One text under attack: its present state, and the best so far."""

    goal: Goal
    model: TextModel
    editor: TokenEditor
    method: Method
    original: str
    item: int
    queries: int = 0
    unrealisable: int = 0
    obfuscated: bool = False

    def __post_init__(self) -> None:
        self.threat = self.goal.threat
        seed = zlib.crc32(f"{self.threat.seed} {self.original}".encode("utf-8", "surrogatepass"))
        self.random = torch.Generator().manual_seed(seed)
        self.before = self._scores([self.original])[0]
        #: Banned words, score and text: the best so far, and where the search stands.
        self.best = self.now = (count_banned(self.original, self.threat.banned), self.before, self.original)

    def run(self) -> TextResult:
        missed = self._hidden()
        if not missed and self.method == "gcg":
            self._append_words()
        steps = 0
        while not self._hidden() and steps < self.threat.steps and self._step():
            steps += 1
        _, score, text = self.best
        outcome: Outcome = "missed" if missed else "broken" if self._hidden() else "held"
        costs = self.queries, self.unrealisable, self.obfuscated
        return TextResult(self.original, text, outcome, self.before, score, 0, *costs, exchanged=True)

    def _hidden(self) -> bool:
        return self.goal.reached(*self.best[:2])

    def _scores(self, texts: list[str]) -> list[float]:
        self.queries += len(texts)
        scores: list[float] = checked_scores(self.model.score(texts, [self.item] * len(texts)), len(texts)).tolist()
        return scores

    def _append_words(self) -> None:
        """Start with random words after the text; the later steps exchange them as any other."""
        words = self.editor.pieces.whole_words()
        count = min(self.threat.suffix, self.threat.budget.allowed(self.original))
        if not count or not words:
            return
        drawn = torch.randint(len(words), (count,), generator=self.random).tolist()
        text = " ".join([self.original.rstrip(), *(self.editor.pieces.surface[words[place]] for place in drawn)])
        banned = count_banned(text, self.threat.banned)
        if banned <= self.now[0] and self.threat.permits(self.original, text, exchanged=True):
            self.now = (banned, self._scores([text])[0], text)
            self.best = min(self.best, self.now)

    def _step(self) -> bool:
        """Try exchanges and continue from the best; false if no exchange is left, or for HotFlip if none is better."""
        at = self.editor.read(self.now[2])
        trials = self._candidates(at, self._proposals(at))
        trials = trials[: max(self.threat.queries - self.queries, 0)]
        if not trials:
            return False
        scores = self._scores([text for _, text in trials])
        chosen = min((banned, score, text) for (banned, text), score in zip(trials, scores, strict=True))
        improved = chosen[:2] < self.best[:2]
        self.best = min(self.best, chosen)
        self.now = chosen
        return improved or self.method == "gcg"

    def _proposals(self, at: TokenText) -> list[tuple[int, int]]:
        """Exchanges (place, token) in the order in which they are to be tried, a few times as many as are tried."""
        places = self._open(at)
        if not places:
            return []
        table = self._estimates(at, places)
        tried = 4 * self.threat.candidates
        best = self.threat.top if self.method == "gcg" else -(-tried // len(places))
        values, tokens = table.topk(min(best, table.shape[1]), dim=1, largest=False)
        flat = torch.arange(len(places))[:, None] * table.shape[1] + tokens
        good = flat[values.isfinite()]
        if self.method == "hotflip":
            chosen = good[values[values.isfinite()].argsort(stable=True)]
        else:
            chosen = good[torch.randperm(len(good), generator=self.random)[:tried]]
        return [(places[place // table.shape[1]], place % table.shape[1]) for place in chosen.tolist()]

    def _open(self, at: TokenText) -> list[int]:
        """The places where an exchange keeps to the threat, and those of banned words alone while there are some."""
        blanked = {place: self.editor.exchange_text(at, place, "_") for place in at.places}
        kept = self.threat.protected
        blanked = {p: text for p, text in blanked.items() if keeps_protected(at.text, text, kept, exchanged=True)}
        if self.threat.budget.unit == "words":
            blanked = {p: text for p, text in blanked.items() if self.threat.budget.permits(self.original, text)}
        banned = [p for p, text in blanked.items() if count_banned(text, self.threat.banned) < self.now[0]]
        return banned or list(blanked)

    def _estimates(self, at: TokenText, places: list[int]) -> Tensor:
        """First-order change of the score `[P, V]` for each exchange; infinite where the exchange is not allowed."""
        ids = torch.from_numpy(at.ids)
        gradient = self.model.token_gradient(ids, torch.from_numpy(at.mask), self.item)[places].cpu()
        weight = self.model.embedding.weight.detach().float().cpu()
        count = min(len(weight), len(self.editor.usable))
        if gradient.count_nonzero():
            table = gradient @ weight[:count].T
            table -= (gradient * weight[ids[places]]).sum(dim=1, keepdim=True)
        else:
            self.obfuscated = True
            table = torch.rand(len(places), count, generator=self.random)
        kinds = torch.from_numpy(self.editor.pieces.kind)
        allowed = torch.from_numpy(self.editor.usable)[:count] & (kinds[:count] == kinds[ids[places]][:, None])
        allowed[torch.arange(len(places)), ids[places]] = False
        return table.masked_fill(~allowed, torch.inf)

    def _candidates(self, at: TokenText, proposals: list[tuple[int, int]]) -> list[tuple[int, str]]:
        """Banned words and text of the proposals that keep to the budget and are encoded as meant."""
        kept: list[tuple[int, str]] = []
        swaps: list[tuple[int, int]] = []
        for place, token in proposals:
            text = self.editor.exchange(at, place, token)
            banned = count_banned(text, self.threat.banned)
            if banned <= self.now[0] and self.threat.permits(self.original, text, exchanged=True):
                swaps.append((place, token))
                kept.append((banned, text))
            if len(swaps) == 2 * self.threat.candidates:
                break
        real = self.editor.realisable(at, swaps, [text for _, text in kept])
        self.unrealisable += int((~real).sum())
        return [trial for trial, good in zip(kept, real, strict=True) if good][: self.threat.candidates]
