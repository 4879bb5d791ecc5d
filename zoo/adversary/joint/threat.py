"""The threat model of the joint attack on image and text, as plain data."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pydantic.dataclasses import dataclass

from zoo.adversary.text.threat import TextThreat
from zoo.adversary.threat import Threat
from zoo.contract import schema
from zoo.errors import close_match

#: The attacks on images that can take turns with one on texts. FAB is none: what it leaves unbroken is no nearer to it.
JOINT_IMAGE_ATTACKS = ("fgsm", "pgd", "apgd-ce", "apgd-t", "square")


@dataclass(frozen=True, config=schema.STRICT)
class JointThreat(schema.YamlData):
    """An attacker on image and text at once, each within a budget of its own.

    The threats of `text` are alternatives ("three words, or a tenth of the characters"): they are tried one after the
    other, and a text must keep to the budget of one of them; the banned words of all are banned, the protected words of
    all are protected. `first` moves first.
    `rounds` 1 is one after the other; more is in turns, each side starting anew from its clean input against the best
    of the other side.
    """

    _where = "joint threat"

    image: Threat
    text: tuple[TextThreat, ...]
    first: Literal["image", "text"] = "image"
    rounds: int = 1
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if not self.text:
            raise ValueError("text must name at least one threat; to leave texts alone, one whose budget has count 0")
        for attack in self.image.attacks:
            if attack not in JOINT_IMAGE_ATTACKS:
                known = close_match(attack, JOINT_IMAGE_ATTACKS)
                raise ValueError(f'the joint attack has no attack "{attack}" on images{known}')

    @property
    def banned(self) -> tuple[str, ...]:
        """The banned words of all threats on the text."""
        return tuple(dict.fromkeys(word for threat in self.text for word in threat.banned))

    @property
    def alternatives(self) -> tuple[TextThreat, ...]:
        """The threats on the text, each with the banned and the protected words of all."""
        protected = tuple(dict.fromkeys(word for threat in self.text for word in threat.protected))
        return tuple(dataclasses.replace(threat, banned=self.banned, protected=protected) for threat in self.text)
