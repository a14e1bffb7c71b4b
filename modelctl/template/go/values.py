"""The values templates see: Python's str, bool, int, float, list, dict and None for Go's, and `Struct` for its structs.

Strings are Go's byte strings where that shows (len, index, slice): bytes cut out of the middle of a character are kept
as lone surrogates, as in Python's surrogateescape, until they are printed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class Uint8(int):
    """A byte of a string, which `index` gives; differs from int only in the name of its type."""


class FieldSpec(NamedTuple):
    name: str  # in templates
    json: str  # in JSON
    omitempty: bool = False


class Kind(NamedTuple):
    """A struct type. printed_as_json: {{ . }} prints JSON, as the Go type's String method does."""

    name: str
    fields: tuple[FieldSpec, ...]
    printed_as_json: bool = False


class Struct:
    """A value of a struct type. `extra` holds what a caller sent beyond the known fields; only JSON shows it."""

    __slots__ = ("extra", "kind", "values")

    def __init__(self, kind: Kind, values: dict[str, Any], extra: dict[str, Any] | None = None) -> None:
        self.kind = kind
        self.values = values
        self.extra = extra or {}


class JSONMap(dict[str, Any]):
    """A map that prints as JSON: call arguments and tool properties."""


class OrderedMap(JSONMap):
    """One that keeps its order: the properties inside a property."""


class JSONList(list[Any]):
    """A list that prints as JSON: the tools."""


class TypeNames(list[str]):
    """A JSON schema's "type": one name or several, printed like one where it is one."""


def printed_as_json(value: Any) -> bool:
    return isinstance(value, JSONMap | JSONList) or (isinstance(value, Struct) and value.kind.printed_as_json)


def truth(value: Any) -> bool:
    """Go's: zero, empty and nil are false, any struct is true. Python's agrees on all else."""
    return isinstance(value, Struct) or bool(value)


def type_name(value: Any) -> str:
    """Go's name for the value's type, as errors and %T show it."""
    match value:
        case Struct():
            return value.kind.name
        case bool():
            return "bool"
        case Uint8():
            return "uint8"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case dict():
            return "map[string]interface {}"
        case list():
            return "[]interface {}"
    return "<nil>"


def sorted_items(value: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """In the order Go ranges over, prints and encodes maps."""
    return value.items() if isinstance(value, OrderedMap) else sorted(value.items(), key=lambda item: item[0])


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape" if _only_escapes(text) else "replace")


def to_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _only_escapes(text: str) -> bool:
    """Whether all lone surrogates are bytes in disguise; JSON input can smuggle in others."""
    return not any("\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff" for c in text)


def printable(text: str) -> str:
    """With bytes that came together again as characters, and all others replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return to_bytes(text).decode("utf-8", "replace")
    return text
