"""Run each attack of a threat on a set of items by itself, and keep what it did to them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.adversary.image.attack import attack
from zoo.adversary.threat import ImagePart, TextPart, Threat
from zoo.errors import BadArgumentError
from zoo.evaluation.robustness.items import Items
from zoo.evaluation.robustness.victim import AttackedPoint, Victim

if TYPE_CHECKING:
    from zoo.adversary.text.edits import Variants
    from zoo.adversary.text.target import TextModel


@dataclass(frozen=True)
class AdversarialExample:
    """The changed form of an item: its image `[3, S, S]` (float32 in [0, 1], uint8 once kept), its text, or both."""

    pixels: Tensor | None = None
    text: str | None = None


@dataclass
class Attempt:
    """One attack on N items. `attempted`, `broken` and `blind` `[N]` bool; only attempted items can be broken.

    A `blind` item has no gradient, and the attack goes on without one. `refuted` counts successes that a second pass
    did not confirm; they break nothing. `forwards` counts the inputs that the model judged (of a black-box attack, the
    queries), `backwards` those with a gradient. `examples` holds the changed items by place; after the attack it holds
    the broken ones, and only where examples are kept.
    """

    attack: str
    attempted: Tensor
    broken: Tensor
    blind: Tensor
    why_blind: str = ""
    randomised: bool = False
    refuted: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    examples: dict[int, AdversarialExample] = field(default_factory=dict)
    #: The model's logits `[N, K]` of the changed items, and the clean logits of the others.
    logits: Tensor | None = None

    @classmethod
    def start(cls, attack: str, attempted: Tensor) -> Attempt:
        """An attack that has done nothing yet."""
        return cls(attack, attempted, torch.zeros_like(attempted), torch.zeros_like(attempted))


def broken_by_any(attempts: Sequence[Attempt]) -> Tensor:
    """The items `[N]` that at least one attack broke: the worst case."""
    union: Tensor = torch.stack([attempt.broken for attempt in attempts]).any(dim=0)
    return union


def towards_clean(attacked: Tensor, clean: Tensor) -> Tensor:
    """Round attacked pixels `[..., S, S]` in [0, 1] to grey levels, uint8, towards the clean ones (uint8).

    No perturbation grows, so an image within a budget stays within it.
    """
    steps = attacked.double() * 255 - clean.double()
    # A step that float32 holds as 3.99999 is a step of 4: 1e-4 grey levels are within every tolerance.
    return (clean.double() + torch.trunc(steps + 1e-4 * steps.sign())).clamp(0, 255).to(torch.uint8)


#: One part of the items holds at most this many pixels: memory holds an attacked image as float32 several times.
PART = 64_000_000


def check_threat(victim: Victim, threat: Threat) -> None:
    """Raise BadArgumentError for a model that does not read what the threat changes."""
    card = victim.card
    if threat.image and card.image is None:
        raise BadArgumentError(f"{card.name} reads no image, which this threat changes: give a threat on texts")
    if threat.text and not card.reads_text:
        raise BadArgumentError(f"{card.name} judges no text, which this threat changes: give a threat on images")
    if victim.by_label and threat.text:
        raise BadArgumentError("`target` labels goes with a threat on images")


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
    synonyms: Variants | None = None
    batch_size: int = 64
    keep: bool = False
    progress: bool = False

    def run(self, threat: Threat, wanted: Tensor) -> list[Attempt]:
        """Each attack of a threat by itself, on the wanted items `[N]` whose clean answer is right."""
        attempted = self.attackable(threat, wanted)
        attempts = []
        for name, part in _single_attacks(threat):
            begin = time.perf_counter()
            attempt = Attempt.start(name, attempted)
            if attempted.any():
                self._attack(attempt, part)
            attempt.seconds = time.perf_counter() - begin
            attempt.logits = self._logits(attempt)
            attempt.examples = self._kept(attempt) if self.keep else {}
            attempts.append(attempt)
        return attempts

    def attackable(self, threat: Threat, wanted: Tensor) -> Tensor:
        """The wanted items `[N]` whose clean answer is right and that hold an input that the threat changes."""
        correct = self.point.answers(self.clean) == self.items.labels
        return wanted & correct & open_to(self.items, threat)

    def sequence(self, image: ImagePart, wanted: Tensor) -> Tensor:
        """Which of the wanted items `[N]` a sequence of attacks breaks, each attack on what those before it left."""
        threat = Threat(image)
        attempt = Attempt.start("sequence", self.attackable(threat, wanted))
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
            labels = self.items.labels[part].to(pixels.device)
            result = attack(
                self.point.module,
                pixels,
                labels,
                threat,
                extras=[extra[part.to(extra.device)] for extra in extras],
                batch_size=self.batch_size,
                progress=self.progress,
            )
            attempt.broken[part] = result.broken.cpu()
            attempt.blind[part] = result.blind.cpu()
            attempt.why_blind = attempt.why_blind or result.why_blind
            attempt.randomised |= result.randomised
            attempt.refuted += sum(record.outside for record in result.records)
            attempt.forwards += result.forwards
            attempt.backwards += result.backwards
            for place in result.broken.nonzero()[:, 0].tolist():
                attempt.examples[int(part[place])] = AdversarialExample(pixels=result.adversarial[place].cpu())

    # What attacks texts is imported where it runs: an attack on images loads nothing of it.

    def _attack_texts(self, attempt: Attempt, threat: TextPart, rows: Tensor) -> None:
        from zoo.adversary.text.attack import attack_texts

        for present in (True, False):
            own = rows[self.items.with_image[rows] == present]
            for part in self._parts(own):
                texts = [self.items.texts[place] or "" for place in part.tolist()]
                with self._text_model(part, present) as model:
                    results = attack_texts(
                        model,
                        texts,
                        threat,
                        threshold=0.0,
                        synonyms=self.synonyms,
                        batch_size=self.batch_size,
                        progress=self.progress,
                    )
                for place, result in zip(part.tolist(), results, strict=True):
                    attempt.broken[place] = result.outcome == "broken"
                    attempt.refuted += result.outcome == "refuted"
                    attempt.blind[place] |= result.obfuscated
                    attempt.forwards += result.queries
                    attempt.examples[place] = AdversarialExample(text=result.text)

    def _attack_both(self, attempt: Attempt, threat: Threat, rows: Tensor) -> None:
        from zoo.adversary.joint import BothInputs, attack_jointly
        from zoo.adversary.text.target import input_embedding

        for part in self._parts(rows):
            pixels = self._pixels(part)
            result = attack_jointly(
                BothInputs(self.point.module, self.victim.card),
                pixels,
                [self.items.texts[place] or "" for place in part.tolist()],
                self.items.labels[part].to(pixels.device),
                threat,
                codec=self.victim.model.codec(),
                embedding=input_embedding(self.victim.model),
                synonyms=self.synonyms,
                batch_size=self.batch_size,
                progress=self.progress,
            )
            attempt.broken[part] = result.broken.cpu()
            attempt.blind[part] = result.blind.cpu()
            attempt.refuted += result.refuted
            attempt.forwards += result.forwards
            attempt.backwards += result.backwards
            for place, row in enumerate(part.tolist()):
                attempt.examples[row] = AdversarialExample(result.pixels[place].cpu(), result.texts[place])

    @contextmanager
    def _text_model(self, rows: Tensor, present: bool) -> Iterator[TextModel]:
        """The model as a function of the texts of some items with fixed images; all or none have one."""
        from zoo.adversary.joint import BothInputs, fixed_images
        from zoo.adversary.text.target import TextModel, input_embedding

        codec, embedding = self.victim.model.codec(), input_embedding(self.victim.model)
        module = self.point.module
        if self.items.pixels is None:

            def alone(ids: Tensor, mask: Tensor, places: Tensor) -> Tensor:
                logits: Tensor = module(ids, mask)
                return logits[:, 1]

            yield TextModel(alone, codec, embedding, (module,))
            return
        both = BothInputs(module, self.victim.card, present=present)
        pixels = self._pixels(rows) if present else self._pixels(rows[:1])
        both.eval()
        with fixed_images(both, pixels, self.batch_size) as fixed:

            def beside(ids: Tensor, mask: Tensor, places: Tensor) -> Tensor:
                return fixed(places.to(pixels.device) if present else torch.zeros_like(places), ids, mask)[:, 1]

            yield TextModel(beside, codec, embedding, (module,))

    def _logits(self, attempt: Attempt) -> Tensor:
        """The model's logits `[N, K]` of the attacked items."""
        logits = self.clean.clone()
        rows = torch.tensor(sorted(attempt.examples), dtype=torch.int64)
        for part in self._parts(rows):
            examples = [attempt.examples[place] for place in part.tolist()]
            some = self.items.take(part)
            pixels = None
            if self.items.pixels is not None:
                own = self._pixels(part).cpu()
                pixels = torch.stack([own[n] if e.pixels is None else e.pixels for n, e in enumerate(examples)])
            texts = [given if e.text is None else e.text for e, given in zip(examples, some.texts, strict=True)]
            logits[part] = self.victim.logits(some, self.batch_size, pixels=pixels, texts=texts)
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
