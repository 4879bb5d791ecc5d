"""Strict reading and writing of the plain-data classes: card, policy, verdict, manifest.

Unknown, missing and mistyped fields are refused by name. A newer schema is refused with the versions.
An older schema is read where the class says that it differs only by fields with defaults.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from zoo.errors import BadArgumentError, BadCardError, BadDataError, close_match, quoted
from zoo.files.writing import write_file

#: For `pydantic.dataclasses.dataclass`: no field that is not declared, and no NaN where a number is wanted.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)

#: `schema_version` of a class whose version 2 adds fields with defaults: version 1 is read and becomes 2, also where
#: the class is part of another one. Set `_reads = (1,)` on that class.
VersionTwo = Annotated[Literal[2], BeforeValidator(lambda version: 2 if version == 1 else version)]

T = TypeVar("T")


def parse(cls: type[T], data: object, where: str, error: type[BadCardError] = BadCardError) -> T:
    """Build `cls` from plain data (as JSON or YAML gives it).

    Raises `error`, which names `where` (such as a file), each wrong field, its value, and the close match.
    """
    if not isinstance(data, Mapping):
        raise error(f"{where}: expected a mapping of fields, got {type(data).__name__}")
    _check_schema(cls, data, where, error)
    try:
        # As JSON, where strict still reads lists into tuples; lax would take `value: yes` for a threshold of 1.
        return TypeAdapter(cls).validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as problem:
        lines = [_explain(cls, dict(entry)) for entry in problem.errors()]
        raise error(f"{where}: " + "; ".join(lines)) from None


class _RepeatedKeyError(yaml.MarkedYAMLError, ValueError):
    """A key that stands twice in one mapping of YAML, or in one object of JSON, which has no mark of the place."""

    def __init__(self, key: str, mark: yaml.Mark | None = None) -> None:
        told = quoted(key).replace('"', "'")
        super().__init__(problem=f"the key {told} stands there twice", problem_mark=mark)


#: The most values of a YAML file, each alias counted as what it stands for.
MAX_VALUES = 1_000_000


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values in a node, each alias counted as what it stands for."""
    if id(node) not in known:
        known[id(node)] = 0  # of a list in itself
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        parts = node.value if isinstance(node, yaml.SequenceNode) else [one for pair in pairs for one in pair]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


class _OneOfEachKey(yaml.SafeLoader):
    """YAML in which no mapping has a key twice: PyYAML would let the last one win without a word.

    Aliases of aliases, of which a few lines can stand for billions of values, are bounded.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and _values(node, {}) > MAX_VALUES:
            raise yaml.MarkedYAMLError(
                None, None, f"aliases stand for more than {MAX_VALUES:,} values", node.start_mark
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # As they are read: `yes` and `true` are one key.
        keys = [str(self.construct_object(key)) for key, _ in node.value if not key.tag.endswith(":merge")]
        if twice := repeated(keys):
            raise _RepeatedKeyError(twice[0], node.start_mark)
        return super().construct_mapping(node, deep)


class PlainData:
    """The dictionary form that every plain-data class has, strict both ways.

    `_where` names the class in messages; `_reads` holds the older schema versions that are read, too.
    """

    _where: ClassVar[str] = "data"
    _error: ClassVar[type[BadCardError]] = BadCardError
    _reads: ClassVar[tuple[int, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data (dict, list, str, numbers) that `from_dict` reads back to an equal value."""
        return dump(self)

    def write_json(self, path: Path, indent: int = 1) -> None:
        """Write a file that `read_json` and `from_dict` read back, in a folder that is made if it does not exist."""
        write_file(path, json.dumps(self.to_dict(), indent=indent, ensure_ascii=False) + "\n")

    @classmethod
    def from_dict(cls, data: object, where: str = "") -> Self:
        """Build it from plain data; raises the class's error naming each unknown, missing or wrong field."""
        return parse(cls, data, where or cls._where, cls._error)


class YamlData(PlainData):
    """Plain data that people write as YAML files."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises BadInputError (missing, not YAML), or what `from_dict` raises."""
        return cls.from_dict(read_yaml(path), str(path))


def dump(value: object) -> dict[str, Any]:
    """Return the plain data (dict, list, str, numbers) that `parse` reads back to an equal value."""
    plain: dict[str, Any] = json.loads(TypeAdapter(type(value)).dump_json(value))
    return plain


def repeated(words: Iterable[str]) -> list[str]:
    """The words that occur more than once, sorted."""
    return sorted(word for word, count in Counter(words).items() if count > 1)


def check_bounds(value: float, bounds: tuple[float, float] | None, confidence: float | None) -> None:
    """Raise ValueError unless bounds and confidence go together, and the bounds hold the value."""
    if (bounds is None) != (confidence is None):
        raise ValueError(f"bounds and confidence go together, got {bounds} and {confidence}")
    if bounds is not None and not bounds[0] <= value <= bounds[1]:
        raise ValueError(f"bounds must hold the value {value}, got {bounds}")
    if confidence is not None and not 0 < confidence < 1:
        raise ValueError(f"confidence lies in (0, 1), got {confidence}")


def read_yaml(path: Path, content: bytes | None = None) -> object:
    """Read one YAML file, or its `content`. Raises BadInputError when it is missing or is not YAML."""
    return _read(path, content, "YAML", load_yaml)


def load_yaml(text: str) -> object:
    """The plain data of a YAML text. Raises yaml.YAMLError for what is not YAML, or has a key twice."""
    return yaml.load(text, _OneOfEachKey)


def read_json(path: Path, content: bytes | None = None) -> object:
    """Read one JSON file, or its `content`. Raises BadInputError when it is missing or is not JSON."""
    return _read(path, content, "JSON", load_json)


def load_json(text: str | bytes | bytearray) -> Any:
    """The plain data of a JSON text. Raises ValueError for what is not JSON, or has a key twice."""
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    once = dict(pairs)
    if len(once) < len(pairs):
        raise _RepeatedKeyError(repeated(name for name, _ in pairs)[0])
    return once


def _read(path: Path, content: bytes | None, kind: str, load: Callable[[str], object]) -> object:
    try:
        return load((path.read_bytes() if content is None else content).decode("utf-8"))
    except FileNotFoundError:
        raise BadArgumentError(f"{path}: no such file") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as problem:  # RecursionError: nested too deeply
        raise BadDataError(f"{path}: not readable as {kind}: {_reason(problem)}") from None


def _reason(problem: Exception) -> str:
    """What is wrong with a file, without its lines, which PyYAML would quote."""
    if isinstance(problem, yaml.MarkedYAMLError) and (mark := problem.problem_mark or problem.context_mark):
        said = problem.problem or problem.context or ""
        if not isinstance(problem, _RepeatedKeyError):
            said = re.sub("'(?!<)[^']{4,}'", "...", said)  # a character and a <token> are kept
        return f"line {mark.line + 1}, column {mark.column + 1}: {said}"
    if isinstance(problem, (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError)):
        return str(problem)
    return "nested too deeply" if isinstance(problem, RecursionError) else "a value is not what its tag says"


def _check_schema(cls: type, data: Mapping[str, object], where: str, error: type[BadCardError]) -> None:
    supported = {f.name: f.default for f in dataclasses.fields(cls)}.get("schema_version")
    if supported is None:
        return
    version = data.get("schema_version")
    if version is None:
        raise error(f'{where}: missing field "schema_version" (this version of safety-zoo writes {supported})')
    if isinstance(version, int) and isinstance(supported, int) and version > supported:
        raise error(
            f"{where}: schema_version {version} is newer than {supported}, the newest that this safety-zoo reads; "
            "upgrade with `pip install --upgrade safety-zoo`"
        )
    if version != supported and version not in getattr(cls, "_reads", ()):
        raise error(f"{where}: schema_version {_shown(version)}, expected {supported}")


def _explain(cls: type, entry: dict[str, Any]) -> str:
    path = [part for part in entry["loc"] if part != "__root__"]
    name = ".".join(str(part) for part in path)
    kind = entry["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown field {quoted(name)}" + close_match(str(path[-1]), _field_names(cls, path[:-1]))
    if kind in ("missing", "missing_argument"):
        return f'missing field "{name}"'
    message = str(entry["msg"]).removeprefix("Value error, ")
    at = f'field "{name}": ' if name else ""
    return f"{at}{message}" + ("" if kind == "value_error" else f", got {_shown(entry.get('input'))}")


def _shown(value: object) -> str:
    """A wrong value as a message may show it."""
    if isinstance(value, (list, tuple, Mapping)):
        return f"{'a mapping' if isinstance(value, Mapping) else 'a list'} of {len(value)}"
    told = quoted(value) if isinstance(value, str) else ""
    return told if told.startswith("a text") else repr(value)[:80]


def _field_names(cls: type, path: list[Any]) -> list[str]:
    """Names of the fields of the dataclass that stands at `path` inside `cls`; empty for other types."""
    adapter_schema = TypeAdapter(cls).json_schema()
    definitions = adapter_schema.get("$defs", {})
    node: dict[str, Any] = adapter_schema
    if "$ref" in node:  # a class that holds others of its own kind
        node = definitions[node["$ref"].rsplit("/", 1)[-1]]
    for part in path:
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        options = [option for option in node.get("anyOf", [node]) if option.get("type") != "null"]
        node = options[0] if options else {}
        if "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[-1]]
    return list(node.get("properties", {}))
