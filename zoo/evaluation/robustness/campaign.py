"""Run each attack of a threat on a set of items by itself, and keep what it did to them."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from zoo.adversary.image.attack import AttackResult, attack
from zoo.adversary.threat import ImagePart, TextPart, Threat
from zoo.evaluation.labelling import Labelling
from zoo.evaluation.robustness.victim import AdversarialExample, AttackedPoint, Items, Victim

if TYPE_CHECKING:
    from zoo.adversary.joint import JointResult
    from zoo.adversary.text.edits import Variants
    from zoo.adversary.text.target import TextModel


@dataclass(frozen=True)
class RobustnessOptions:
    """How a release is attacked. `split` None takes all rows; `limit` draws that many items by `seed`.

    The fixed operating point holds the false positive rate `fpr` on the safe rows of `threshold_split`. `eps` asks for
    a curve over these budgets, by `eps_attacks` (default: the threat's attacks except FAB-T and Square). `keep` keeps
    the examples that succeed, and `say` gets a line for each step. `synonyms` is the folder of a language model whose
    neighbours of words are synonyms (default: those of the attacked model).
    """

    labelling: Labelling = field(default_factory=Labelling)
    split: str | None = "test"
    threshold_split: str = "val"
    fpr: float = 0.05
    points: Literal["policy", "fpr", "both"] = "both"
    direction: Literal["evade", "both"] = "evade"
    eps: tuple[float, ...] = ()
    eps_attacks: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0
    batch_size: int = 64
    keep: bool = False
    progress: bool = False
    command: str = ""
    synonyms: Path | None = None
    say: Callable[[str], None] = print


@dataclass
class Attempt:
    """One attack on N items. `attempted`, `broken` and `blind` `[N]` bool; only attempted items can be broken.

    A `blind` item has no gradient, and the attack goes on without one. `cost` counts the inputs that the model judged
    (`queries`, as a black-box attack has them), those with a gradient (`gradients`), and the successes that a second
    pass did not confirm, which break nothing (`refuted`). `examples` holds the changed items by place; after the attack
    it holds the broken ones, and only where examples are kept.
    """

    attack: str
    attempted: Tensor
    broken: Tensor = field(init=False)
    blind: Tensor = field(init=False)
    why_blind: str = ""
    randomised: bool = False
    cost: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    examples: dict[int, AdversarialExample] = field(default_factory=dict)
    #: The model's logits `[N, K]` of the changed items, and the clean logits of the others.
    logits: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.broken, self.blind = torch.zeros_like(self.attempted), torch.zeros_like(self.attempted)

    @classmethod
    def union(cls, attempts: Sequence[Attempt]) -> Attempt:
        """All attacks as one, with their costs added up: an item is broken if any of them broke it, the worst case."""
        union = cls("worst case", attempts[0].attempted)
        for one in attempts:
            union.broken, union.blind = union.broken | one.broken, union.blind | one.blind
            union.why_blind = union.why_blind or one.why_blind
            union.randomised |= one.randomised
            union.cost.update(one.cost)
            union.seconds += one.seconds
        return union

    def add(self, rows: Tensor, result: AttackResult | JointResult, refuted: int) -> None:
        """Enter the result of an attack on some items."""
        self.broken[rows], self.blind[rows] = result.broken.cpu(), result.blind.cpu()
        self.cost.update(refuted=refuted, queries=result.forwards, gradients=result.backwards)


def towards_clean(attacked: Tensor, clean: Tensor) -> Tensor:
    """Round attacked pixels `[..., S, S]` in [0, 1] to grey levels, uint8, towards the clean ones (uint8).

    No perturbation grows, so an image within a budget stays within it.
    """
    steps = attacked.double() * 255 - clean.double()
    # A step that float32 holds as 3.99999 is a step of 4: 1e-4 grey levels are within every tolerance.
    return (clean.double() + torch.trunc(steps + 1e-4 * steps.sign())).clamp(0, 255).to(torch.uint8)


#: One part of the items holds at most this many pixels: memory holds an attacked image as float32 several times.
PART = 64_000_000


def open_to(items: Items, threat: Threat) -> Tensor:
    """Which items `[N]` hold something that the threat changes."""
    with_text = items.with_text & bool(threat.text)
    return with_text | items.with_image if threat.image else with_text


def synonyms_for(victim: Victim, threat: Threat, folder: Path | None) -> Variants | None:
    """Neighbours of words where the threat asks for them: of the model in a folder, else of the victim."""
    if not any("synonyms" in part.attacks for part in threat.text):
        return None
    from zoo.adversary.text.synonyms import Synonyms
    from zoo.adversary.text.target import input_embedding

    if folder is not None:
        return Synonyms.from_directory(folder)
    return Synonyms.from_embedding(victim.model.codec().json, input_embedding(victim.model).weight.detach().cpu())


@dataclasses.dataclass(frozen=True)
class Campaign:
    """Items under attack at one operating point. `labels` `[N]` are their classes, `clean` `[N, K]` their logits."""

    victim: Victim
    items: Items
    point: AttackedPoint
    clean: Tensor
    options: RobustnessOptions
    synonyms: Variants | None = None

    def run(self, threat: Threat, wanted: Tensor) -> list[Attempt]:
        """Each attack of a threat by itself, on the wanted items `[N]` whose clean answer is right."""
        attempted = self.attackable(threat, wanted)
        attempts = []
        for name, part in _single_attacks(threat):
            begin = time.perf_counter()
            attempt = Attempt(name, attempted)
            if attempted.any():
                self._attack(attempt, part)
            attempt.seconds = time.perf_counter() - begin
            attempt.logits = self._logits(attempt)
            attempt.examples = self._kept(attempt) if self.options.keep else {}
            attempts.append(attempt)
        return attempts

    def attackable(self, threat: Threat, wanted: Tensor) -> Tensor:
        """The wanted items `[N]` whose clean answer is right and that hold an input that the threat changes."""
        correct = self.point.answers(self.clean) == self.items.labels
        return wanted & correct & open_to(self.items, threat)

    def sequence(self, image: ImagePart, wanted: Tensor) -> Tensor:
        """Which of the wanted items `[N]` a sequence of attacks breaks, each attack on what those before it left."""
        threat = Threat(image)
        attempt = Attempt("sequence", self.attackable(threat, wanted))
        self._attack(attempt, threat)
        return attempt.broken

    def _attack(self, attempt: Attempt, threat: Threat) -> None:
        """Attack the attempted items; under a joint threat an item with one input is attacked in that input."""
        image, texts, attempted = threat.image, threat.alternatives, attempt.attempted
        with_text, with_image = self.items.with_text, self.items.with_image
        if image and texts:
            self._attack_both(attempt, threat, (attempted & with_text & with_image).nonzero()[:, 0])
        if image:
            alone = attempted & ~with_text if texts else attempted
            self._attack_images(attempt, image, alone.nonzero()[:, 0])
        for part in texts:
            alone = attempted & ~with_image if image else attempted
            self._attack_texts(attempt, part, (alone & ~attempt.broken).nonzero()[:, 0])

    def _attack_images(self, attempt: Attempt, threat: ImagePart, rows: Tensor) -> None:
        extras = self.victim.extras(self.items)
        for part in self._parts(rows):
            pixels = self._pixels(part)
            result = attack(
                self.point.module,
                pixels,
                self.items.labels[part].to(pixels.device),
                threat,
                extras=[extra[part.to(extra.device)] for extra in extras],
                batch_size=self.options.batch_size,
                progress=self.options.progress,
            )
            attempt.add(part, result, refuted=sum(record.outside for record in result.records))
            attempt.why_blind = attempt.why_blind or result.why_blind
            attempt.randomised |= result.randomised
            for place in result.broken.nonzero()[:, 0].tolist():
                attempt.examples[int(part[place])] = AdversarialExample(pixels=result.adversarial[place].cpu())

    # What attacks texts is imported where it runs: an attack on images loads nothing of it.

    def _attack_texts(self, attempt: Attempt, threat: TextPart, rows: Tensor) -> None:
        from zoo.adversary.text.attack import attack_texts

        for present in (True, False):
            own = rows[self.items.with_image[rows] == present]
            for part in self._parts(own):
                with self._text_model(part, present) as model:
                    results = attack_texts(
                        model,
                        self._texts(part),
                        threat,
                        threshold=0.0,
                        synonyms=self.synonyms,
                        batch_size=self.options.batch_size,
                        progress=self.options.progress,
                    )
                for place, result in zip(part.tolist(), results, strict=True):
                    attempt.broken[place] = result.outcome == "broken"
                    attempt.blind[place] |= result.obfuscated
                    attempt.cost.update(refuted=result.outcome == "refuted", queries=result.queries)
                    attempt.examples[place] = AdversarialExample(text=result.text)

    def _attack_both(self, attempt: Attempt, threat: Threat, rows: Tensor) -> None:
        from zoo.adversary.joint import BothInputs, attack_jointly
        from zoo.adversary.text.target import input_embedding

        for part in self._parts(rows):
            pixels = self._pixels(part)
            result = attack_jointly(
                BothInputs(self.point.module, self.victim.card),
                pixels,
                self._texts(part),
                self.items.labels[part].to(pixels.device),
                threat,
                codec=self.victim.model.codec(),
                embedding=input_embedding(self.victim.model),
                synonyms=self.synonyms,
                batch_size=self.options.batch_size,
                progress=self.options.progress,
            )
            attempt.add(part, result, result.refuted)
            for place, row in enumerate(part.tolist()):
                attempt.examples[row] = AdversarialExample(result.pixels[place].cpu(), result.texts[place])

    @contextmanager
    def _text_model(self, rows: Tensor, present: bool) -> Iterator[TextModel]:
        """The model as a function of the texts of some items with fixed images; all or none have one."""
        from zoo.adversary.joint import BothInputs, fixed_images
        from zoo.adversary.text.target import TextModel, input_embedding

        module, model = self.point.module, self.victim.model
        parts = model.codec(), input_embedding(model), (module,)
        if self.items.pixels is None:
            yield TextModel(lambda ids, mask, places: module(ids, mask)[:, 1], *parts)
            return
        pixels = self._pixels(rows if present else rows[:1])
        both = BothInputs(module, self.victim.card, present=present).eval()
        with fixed_images(both, pixels, self.options.batch_size) as fixed:

            def beside(ids: Tensor, mask: Tensor, places: Tensor) -> Tensor:
                return fixed(places.to(pixels.device) if present else torch.zeros_like(places), ids, mask)[:, 1]

            yield TextModel(beside, *parts)

    def _logits(self, attempt: Attempt) -> Tensor:
        """The model's logits `[N, K]` of the attacked items."""
        logits = self.clean.clone()
        for part in self._parts(torch.tensor(sorted(attempt.examples), dtype=torch.int64)):
            changed = self.items.take(part).changed([attempt.examples[place] for place in part.tolist()])
            logits[part] = self.victim.logits(changed, self.options.batch_size)
        return logits

    def _kept(self, attempt: Attempt) -> dict[int, AdversarialExample]:
        """The examples that broke their item, rounded to grey levels."""
        kept = {}
        for place in attempt.broken.nonzero()[:, 0].tolist():
            example, clean = attempt.examples[place], self.items.pixels
            if example.pixels is not None and clean is not None:
                example = AdversarialExample(towards_clean(example.pixels, clean[place]), example.text)
            kept[place] = example
        return kept

    def _pixels(self, rows: Tensor) -> Tensor:
        assert self.items.pixels is not None  # only items with an image come here
        return self.victim.floats(self.items.pixels[rows])

    def _texts(self, rows: Tensor) -> list[str]:
        return [self.items.items[place].text or "" for place in rows.tolist()]

    def _parts(self, rows: Tensor) -> list[Tensor]:
        size = 1 if self.items.pixels is None else self.items.pixels[0].numel()
        return [part for part in torch.split(rows, max(1, PART // size)) if len(part)]


def _single_attacks(threat: Threat) -> list[tuple[str, Threat]]:
    """The name of each attack of a threat, with a threat of that attack alone."""
    if threat.image and threat.text:
        return [("joint", threat)]
    if threat.image:
        return [(name, Threat(dataclasses.replace(threat.image, attacks=(name,)))) for name in threat.image.attacks]
    attacks = []
    for number, part in enumerate(threat.alternatives, 1):
        names: list[tuple[str, tuple[str, ...]]] = [(name, (name,)) for name in part.attacks]
        if len(part.kinds) > 1:  # by themselves they are weaker than a search that mixes them
            names.append(("characters", part.kinds))
        suffix = f" ({number})" if len(threat.text) > 1 else ""
        attacks += [(f"{n}{suffix}", Threat(text=(dataclasses.replace(part, attacks=own),))) for n, own in names]
    return attacks
