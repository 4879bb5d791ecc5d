"""Read a threat model from a file, whichever of the three forms it has: on images, on texts, or on both together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TypeAlias

from zoo.adversary.joint.threat import JointThreat
from zoo.adversary.text.threat import TEXT_ATTACKS, TextThreat
from zoo.adversary.threat import Threat
from zoo.contract import schema
from zoo.errors import BadCardError, close_match

AnyThreat: TypeAlias = Threat | TextThreat | JointThreat

_FORMS: tuple[type[AnyThreat], ...] = (Threat, TextThreat, JointThreat)
_SHAPES = (
    "a threat on images has `norm` and `eps`, one on texts `attacks` on texts and a `budget`, "
    "one on both `image` and `text` with a threat each"
)


def read_threat(path: Path) -> AnyThreat:
    """The threat model in a YAML file, its form told by the fields that only one of the three has.

    Raises BadInputError (missing, not YAML), or BadCardError: for fields of no form or of several, naming all forms;
    and for what the form itself refuses.
    """
    data = schema.read_yaml(path)
    if not isinstance(data, Mapping):
        raise BadCardError(f"{path}: expected a mapping of fields, got {type(data).__name__}; {_SHAPES}")
    own = {form: sorted(_own_fields(form) & set(data)) for form in _FORMS}
    found = [form for form in _FORMS if own[form]]
    if not found and _attacks_texts(data.get("attacks")):
        found = [TextThreat]
    if len(found) > 1:
        mixed = " and ".join(f"{own[form]} of a {form._where}" for form in found)
        raise BadCardError(f"{path}: mixes the fields of several threats, {mixed}; {_SHAPES}")
    if not found:
        known = set().union(*(_own_fields(form) for form in _FORMS))
        common = {field.name for form in _FORMS for field in fields(form)}
        strange = [f'unknown field "{key}"' + close_match(str(key), known) for key in data if key not in common]
        raise BadCardError(f"{path}: " + "; ".join([*strange, f"no threat that can be told apart: {_SHAPES}"]))
    return found[0].from_dict(data, str(path))


def _own_fields(form: type[AnyThreat]) -> set[str]:
    """The fields that this form has, and no other."""
    others = {field.name for other in _FORMS if other is not form for field in fields(other)}
    return {field.name for field in fields(form)} - others


def _attacks_texts(attacks: object) -> bool:
    """Whether these are names of attacks on texts: such a threat may leave its budget to the default."""
    return isinstance(attacks, list) and bool(attacks) and all(name in TEXT_ATTACKS for name in attacks)
