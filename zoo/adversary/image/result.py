"""What an attack on images found, image by image and attack by attack."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from zoo.adversary.threat import ImagePart


@dataclass(frozen=True)
class AttackRecord:
    """One attack of a sequence: how many images it was tried on, how many it broke, what it cost.

    `outside` counts images that were misjudged and lay outside the budget, which break nothing (there should be none).
    `forwards` and `backwards` count images, the checks included; `seconds` are wall time.
    """

    attack: str
    attempted: int
    broken: int
    outside: int
    forwards: int
    backwards: int
    seconds: float
    robust_accuracy: float  # after this attack and those before it


@dataclass(frozen=True)
class AttackResult:
    """The outcome for N images.

    `adversarial` `[N, C, H, W]` are misjudged images inside the budget, or the clean ones where none was found.
    `correct` `[N]` tells which clean images are judged right: only those are attacked, and only they can be `broken`
    `[N]`. `blind` `[N]` tells where the model gives no gradient: gradient attacks say nothing there, and Square was
    used instead; `why_blind` is the model's own complaint, if it raised one. `randomised`: two passes gave different
    logits, so that the success of an attack is partly luck.
    """

    threat: ImagePart
    adversarial: Tensor
    correct: Tensor
    broken: Tensor
    blind: Tensor
    why_blind: str
    randomised: bool
    records: tuple[AttackRecord, ...]

    @property
    def clean_accuracy(self) -> float:
        """Share of the N images judged right before any attack."""
        return float(self.correct.double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of the N images still judged right under every attack: an upper bound of the true one."""
        return float((self.correct & ~self.broken).double().mean())

    @property
    def success_rate(self) -> float:
        """Share of the images judged right that an attack broke; 0 where there were none."""
        return int(self.broken.sum()) / max(1, int(self.correct.sum()))

    @property
    def obfuscated(self) -> bool:
        """Whether some attacked image has no gradient at all: the robust accuracy there is Square's alone."""
        return bool(self.blind.any())

    @property
    def forwards(self) -> int:
        """Images that the models judged in the attacks and their checks: of a black-box attack, the queries."""
        return sum(record.forwards for record in self.records)

    @property
    def backwards(self) -> int:
        """Images whose gradient was computed in the attacks."""
        return sum(record.backwards for record in self.records)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data, without the images."""
        return {
            "threat": self.threat.to_dict(),
            "images": len(self.correct),
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "success_rate": self.success_rate,
            "obfuscated": self.obfuscated,
            "blind_share": float(self.blind.double().mean()),
            "why_blind": self.why_blind,
            "randomised": self.randomised,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "records": [asdict(record) for record in self.records],
        }
