"""Protobuf's text form, as far as Triton's config.pbtxt needs it: protobuf itself would need Triton's schema."""

from __future__ import annotations

import json
from typing import TypeAlias, Union

Value: TypeAlias = Union[str, int, bool, "Message", list[int], list["Message"]]
#: Fields by name, in order. A string that starts with "@" is the name of an enumeration's value.
Message: TypeAlias = dict[str, Value]


def pbtxt(message: Message, indent: str = "") -> str:
    """The text of a message: one line for each plain field, a block for each message, lists of messages repeated."""
    lines = []
    for name, value in message.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{name} {{\n{pbtxt(value, indent + '  ')}{indent}}}\n")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [pbtxt({name: one}, indent) for one in value if isinstance(one, dict)]
        else:
            lines.append(f"{indent}{name}: {_plain(value)}\n")
    return "".join(lines)


def _plain(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value[1:] if value.startswith("@") else json.dumps(value, ensure_ascii=False)
    return str(value)
