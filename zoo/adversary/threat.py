"""The threat as plain data: what an attacker may change, by how much, with what effort; and every attack by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from zoo.adversary.text.edits import KINDS, TextBudget, keeps_protected
from zoo.contract import schema
from zoo.errors import BadCardError, close_match


class AttackSource(NamedTuple):
    """The input that an attack changes, its bound, what it needs from the model, and the paper."""

    kind: Literal["image", "text"]
    bound: str
    needs: str
    paper: str


_NORMS = "Linf, L2"
_EDITS = "characters or words"

#: Every attack: those on images from the cheapest to the dearest, then those on texts.
SOURCES = {
    "fgsm": AttackSource("image", _NORMS, "gradient", "Goodfellow et al. 2015, arXiv 1412.6572"),
    "pgd": AttackSource("image", _NORMS, "gradient", "Madry et al. 2018, arXiv 1706.06083"),
    "apgd-ce": AttackSource("image", _NORMS, "gradient", "Croce & Hein 2020, arXiv 2003.01690"),
    "apgd-t": AttackSource("image", _NORMS, "gradient", "Croce & Hein 2020, arXiv 2003.01690"),
    "fab-t": AttackSource("image", _NORMS, "gradient", "Croce & Hein 2020, arXiv 1907.02044"),
    "square": AttackSource("image", _NORMS, "logits", "Andriushchenko et al. 2020, arXiv 1912.00049"),
    "homoglyphs": AttackSource("text", _EDITS, "scores", "look-alikes of Unicode Technical Standard 39"),
    "zero_width": AttackSource("text", _EDITS, "scores", "Boucher et al. 2022, arXiv 2106.09898"),
    "leetspeak": AttackSource("text", _EDITS, "scores", "searched as Gao et al. 2018, arXiv 1801.04354"),
    "spacing": AttackSource("text", _EDITS, "scores", "searched as Gao et al. 2018, arXiv 1801.04354"),
    "casing": AttackSource("text", _EDITS, "scores", "searched as Gao et al. 2018, arXiv 1801.04354"),
    "misspelling": AttackSource("text", _EDITS, "scores", "Belinkov & Bisk 2018, arXiv 1711.02173"),
    "synonyms": AttackSource("text", _EDITS, "scores, word vectors", "Jin et al. 2020, arXiv 1907.11932"),
    "hotflip": AttackSource("text", _EDITS, "gradient", "Ebrahimi et al. 2018, arXiv 1712.06751"),
    "gcg": AttackSource("text", _EDITS, "gradient", "Zou et al. 2023, arXiv 2307.15043"),
}
ATTACKS = tuple(name for name, source in SOURCES.items() if source.kind == "image")
#: Six attacks on characters, synonyms by embedding, token substitution by gradient.
TEXT_ATTACKS = tuple(name for name, source in SOURCES.items() if source.kind == "text")
#: The attacks on texts that need the model's gradient.
GRADIENT_ATTACKS: tuple[Literal["hotflip", "gcg"], ...] = ("hotflip", "gcg")
#: The attacks of AutoAttack's standard version, in its order (Croce & Hein 2020, arXiv 2003.01690, section 6).
AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")
#: The attacks on images that can take turns with one on texts. A FAB run that fails brings the image no closer to the
#: boundary, so it gives the other side nothing to go on from.
JOINT_IMAGE_ATTACKS = tuple(name for name in ATTACKS if name != "fab-t")


def read_fraction(text: str) -> float:
    """Read `4/255`, `1.5/255` or `0.03` as the number that it stands for. Raises ValueError for anything else."""
    over, slash, under = text.partition("/")
    try:
        return float(over) / float(under) if slash else float(over)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f'expected a number or a fraction such as "4/255", got "{text}"') from None


#: A field that may be a fraction in a file; anything but a text is left to the field's own check.
_Fraction = BeforeValidator(lambda value: read_fraction(value) if isinstance(value, str) else value)


@dataclass(frozen=True, config=schema.STRICT)
class ImagePart(schema.PlainData):
    """Perturbations of norm at most `eps` on pixels in [0, 1], and the attacks to try.

    `steps` are those of each gradient attack (FGSM takes one), `restarts` the runs of each attack from another start
    (FGSM has none), `queries` the forward passes per image and restart of Square, `targets` the classes that the
    targeted attacks try, the likeliest first. `step_size` is PGD's alone, in the unit of `eps`; by default
    2.5 eps / steps (Madry et al. 2018, arXiv 1706.06083). Equal seeds give equal perturbations. In a file, `eps` may
    be a fraction: `eps: 4/255`. The defaults are AutoAttack's standard version.
    """

    _where = "threat on images"

    norm: Literal["Linf", "L2"]
    eps: Annotated[float, _Fraction]
    attacks: tuple[str, ...] = AUTOATTACK
    steps: int = 100
    restarts: int = 1
    queries: int = 5000
    targets: int = 9
    step_size: Annotated[float | None, _Fraction] = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"eps must be above 0, got {self.eps}")
        if self.norm == "Linf" and self.eps > 1:
            raise ValueError(f"eps is on pixels in [0, 1], got {self.eps}; for grey levels write {self.eps:g}/255")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size must be above 0, got {self.step_size}")
        _check_numbers(self, at_least_1=("steps", "restarts", "queries", "targets"), at_least_0=("seed",))
        _check_attacks(self.attacks, ATTACKS, "no attack is called")

    @property
    def pgd_step(self) -> float:
        """How far PGD goes in one step, in the unit of `eps`."""
        return self.step_size if self.step_size is not None else 2.5 * self.eps / self.steps


@dataclass(frozen=True, config=schema.STRICT)
class TextPart(schema.PlainData):
    """Edits of a text within `budget`, and the attacks that look for them.

    `queries` bounds the texts that the model scores for one item in one search. Of the variants of a word at most
    `options` are tried. The gradient attacks take `steps` rounds and try `candidates` exchanges in each: `hotflip` the
    best by first-order estimate, `gcg` random ones among the `top` best of each place, after it has appended `suffix`
    words. `banned` words must not occur in the result, as a word filter finds them (cleaned, any case, also inside
    other words). `protected` words make the label: the attacks that exchange words (`synonyms`, `hotflip`, `gcg`) leave
    them and bring none in, those on characters may disguise them (see `keeps_protected`). Equal seeds give equal
    results.
    """

    _where = "threat on texts"

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

    def __post_init__(self) -> None:
        _check_numbers(
            self, at_least_1=("queries", "options", "steps", "candidates", "top"), at_least_0=("seed", "suffix")
        )
        if any(not word.strip() for word in self.banned):
            raise ValueError(f"a banned word must not be empty, got {list(self.banned)}")
        for word in self.protected:
            if not word or len(word.split()) != 1 or word != word.strip():
                raise ValueError(f'a protected word is one word without blanks, got "{word}"')
        _check_attacks(self.attacks, TEXT_ATTACKS, "no attack on texts is called")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The attacks on characters among `attacks`."""
        return tuple(attack for attack in self.attacks if attack in KINDS)

    def permits(self, original: str, changed: str, *, exchanged: bool) -> bool:
        """Whether a change keeps to the budget and to the protected words; `exchanged`: words, not characters."""
        kept = keeps_protected(original, changed, self.protected, exchanged=exchanged)
        return kept and self.budget.permits(original, changed)


@dataclass(frozen=True, config=schema.STRICT)
class Threat(schema.YamlData):
    """An attacker on images, on texts, or on both together, each within a budget of its own.

    The parts of `text` are alternatives ("three words, or a tenth of the characters"): they are tried one after the
    other, and a text must keep to the budget of one of them; in a joint threat the banned and the protected words of
    one hold for all. There `first` moves first; `rounds` 1 is one after the other, and more is in turns, where each
    side starts again from its clean input against the best of the other side.

    Example:
        >>> Threat(ImagePart("Linf", 4 / 255, ("pgd",), steps=10)).kind
        'image'
    """

    _where = "threat"

    image: ImagePart | None = None
    text: tuple[TextPart, ...] = ()
    first: Literal["image", "text"] = "image"
    rounds: int = 1
    schema_version: Literal[2] = 2

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if self.image is None and not self.text:
            raise ValueError(f"the threat changes nothing; {_PARTS}")
        if self.image and self.text:
            for attack in self.image.attacks:
                if attack not in JOINT_IMAGE_ATTACKS:
                    known = close_match(attack, JOINT_IMAGE_ATTACKS)
                    raise ValueError(f'the joint attack has no attack "{attack}" on images{known}')

    @property
    def kind(self) -> Literal["image", "text", "joint"]:
        """The inputs that it changes."""
        if self.image and self.text:
            return "joint"
        return "image" if self.image else "text"

    @property
    def banned(self) -> tuple[str, ...]:
        """The banned words of all parts on the text."""
        return tuple(dict.fromkeys(word for part in self.text for word in part.banned))

    @property
    def alternatives(self) -> tuple[TextPart, ...]:
        """The parts on the text, each with the banned and the protected words of all."""
        protected = tuple(dict.fromkeys(word for part in self.text for word in part.protected))
        return tuple(dataclasses.replace(part, banned=self.banned, protected=protected) for part in self.text)

    @classmethod
    def from_dict(cls, data: object, where: str = "") -> Self:
        """Build it from plain data; version 1, where the fields of a single part stood at the top, is read, too.

        Raises BadCardError naming each unknown, missing or wrong field, or both forms where neither can be told.
        """
        where = where or cls._where
        if not isinstance(data, Mapping) or data.get("schema_version") not in (1, 2):
            return super().from_dict(data, where)
        data = dict(data)
        if isinstance(data.get("text"), Mapping):
            data["text"] = [data["text"]]
        parts = _OWN_FIELDS.keys() & data.keys()
        if data["schema_version"] == 1:
            if not parts:
                return cls._from_single_part(data, where)
            data = {**data, "schema_version": 2} | {name: _without_version(data[name]) for name in parts}
        misplaced = [f'"{key}"' for key in data if any(key in own for own in _PART_FIELDS.values())]
        if misplaced:
            raise BadCardError(f"{where}: {', '.join(misplaced)} stands outside a part; {_PARTS}")
        return super().from_dict(data, where)

    @classmethod
    def _from_single_part(cls, data: Mapping[str, Any], where: str) -> Self:
        own = {name: sorted(fields & set(data)) for name, fields in _OWN_FIELDS.items()}
        attacks = data.get("attacks")
        on_texts = isinstance(attacks, list) and attacks and all(name in TEXT_ATTACKS for name in attacks)
        if own["image"] and own["text"]:
            raise BadCardError(
                f"{where}: mixes {own['image']} of a threat on images and {own['text']} of one on texts; {_PARTS}"
            )
        if own["image"]:
            return cls(image=ImagePart.from_dict(_without_version(data), where))
        if own["text"] or on_texts:
            return cls(text=(TextPart.from_dict(_without_version(data), where),))
        known = {"schema_version", "image", "text"}.union(*_PART_FIELDS.values())
        strange = [f'unknown field "{key}"' + close_match(str(key), known) for key in data if key not in known]
        raise BadCardError(f"{where}: " + "; ".join([*strange, f"changes neither images nor texts; {_PARTS}"]))


_PARTS = (
    "a threat on images has `norm` and `eps` under `image`, one on texts `attacks` on texts and a `budget` under "
    "`text`, a joint one both"
)
_PART_FIELDS = {
    name: {one.name for one in dataclasses.fields(part)} for name, part in (("image", ImagePart), ("text", TextPart))
}
#: The fields that only one of the two parts has.
_OWN_FIELDS = {
    "image": _PART_FIELDS["image"] - _PART_FIELDS["text"],
    "text": _PART_FIELDS["text"] - _PART_FIELDS["image"],
}


def _without_version(part: Any) -> Any:
    """A part of version 1, which had a version of its own, without it."""
    if isinstance(part, list):
        return [_without_version(one) for one in part]
    if not isinstance(part, Mapping) or part.get("schema_version", 1) != 1:
        return part
    return {key: value for key, value in part.items() if key != "schema_version"}


def _check_numbers(part: object, *, at_least_1: tuple[str, ...], at_least_0: tuple[str, ...]) -> None:
    for name in at_least_1:
        if getattr(part, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(part, name)}")
    for name in at_least_0:
        if getattr(part, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(part, name)}")


def _check_attacks(attacks: tuple[str, ...], known: tuple[str, ...], unknown: str) -> None:
    for attack in attacks:
        if attack not in known:
            raise ValueError(f'{unknown} "{attack}"' + close_match(attack, known))
    if not attacks or len(set(attacks)) < len(attacks):
        raise ValueError(f"attacks must name at least one attack, and none twice, got {list(attacks)}")
