"""The threat model of attacks on texts as plain data: what may be changed, by how much, and with what effort."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from zoo.adversary.text.budget import TextBudget
from zoo.adversary.text.edits import KINDS
from zoo.adversary.text.protected import keeps_protected
from zoo.contract import schema
from zoo.errors import close_match

#: The attacks that need the model's gradient.
GRADIENT_ATTACKS = ("hotflip", "gcg")
#: Every attack on texts: six on characters, synonyms by embedding, token substitution by gradient.
TEXT_ATTACKS = (*KINDS, "synonyms", *GRADIENT_ATTACKS)


@dataclass(frozen=True, config=schema.STRICT)
class TextThreat(schema.YamlData):
    """An attacker on texts: edits within `budget`, and the attacks that look for them.

    `queries` bounds the texts that the model scores for one item in one search. Of the variants of a word at most
    `options` are tried. The gradient attacks take `steps` rounds and try `candidates` exchanges in each: `hotflip` the
    best by first-order estimate, `gcg` random ones among the `top` best of each place, after it has appended `suffix`
    words. `banned` words must not occur in the result, as a word filter finds them (cleaned, any case, also inside
    other words). `protected` words make the label: the attacks that exchange words (`synonyms`, `hotflip`, `gcg`) leave
    them and bring none in, those on characters may disguise them (see `keeps_protected`). Equal seeds give equal
    results.
    """

    _where = "text threat"

    attacks: tuple[str, ...] = tuple(KINDS)
    budget: TextBudget = field(default_factory=TextBudget)
    queries: int = 1000
    options: int = 48
    steps: int = 50
    candidates: int = 64
    top: int = 64
    suffix: int = 0
    banned: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()
    seed: int = 0
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        for name in ("queries", "options", "steps", "candidates", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "suffix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if any(not word.strip() for word in self.banned):
            raise ValueError(f"a banned word must not be empty, got {list(self.banned)}")
        for word in self.protected:
            if not word or len(word.split()) != 1 or word != word.strip():
                raise ValueError(f'a protected word is one word without blanks, got "{word}"')
        for attack in self.attacks:
            if attack not in TEXT_ATTACKS:
                raise ValueError(f'no attack on texts is called "{attack}"' + close_match(attack, TEXT_ATTACKS))
        if not self.attacks or len(set(self.attacks)) < len(self.attacks):
            raise ValueError(f"attacks must name at least one attack, and none twice, got {list(self.attacks)}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The attacks on characters among `attacks`."""
        return tuple(attack for attack in self.attacks if attack in KINDS)

    def permits(self, original: str, changed: str, *, exchanged: bool) -> bool:
        """Whether a change keeps to the budget and to the protected words; `exchanged`: words, not characters."""
        kept = keeps_protected(original, changed, self.protected, exchanged=exchanged)
        return kept and self.budget.permits(original, changed)
