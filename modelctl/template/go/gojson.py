"""JSON as Go's encoding/json writes it: no spaces, map keys sorted, <, > and & escaped."""

from __future__ import annotations

import re
from typing import Any

from modelctl.template.go.values import Struct, TypeNames, sorted_items, truth

_SPECIAL = re.compile('[\x00-\x1f"\\\\<>&\u2028\u2029\ud800-\udfff]')
_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def encode(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(int(value))
        case float():
            return _float(value)
        case str():
            return _string(value)
        case TypeNames() if len(value) == 1:
            return _string(value[0])
        case list():
            return "[" + ",".join(map(encode, value)) + "]"
        case dict():
            return _object(list(sorted_items(value)))
        case Struct():
            return _struct(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def _struct(value: Struct) -> str:
    pairs = [
        (spec.json, value.values[spec.name])
        for spec in value.kind.fields
        if not spec.omitempty or truth(value.values[spec.name])
    ]
    return _object(pairs + list(value.extra.items()))


def _object(pairs: list[tuple[str, Any]]) -> str:
    return "{" + ",".join(f"{_string(key)}:{encode(item)}" for key, item in pairs) + "}"


def _string(text: str) -> str:
    return '"' + _SPECIAL.sub(_escape, text) + '"'


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    if "\ud800" <= char <= "\udfff":
        return "\\ufffd"
    return _SHORT.get(char) or f"\\u{ord(char):04x}"


def _float(value: float) -> str:
    """Like JavaScript: plain digits from 1e-6 up to 1e21, exponents outside."""
    if value == 0:
        return "-0" if str(value)[0] == "-" else "0"
    if 1e-6 <= abs(value) < 1e21:
        plain = format(value, "f") if value == int(value) else _plain(value)
        return plain.removesuffix(".000000")
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa.removesuffix('.0')}e{exponent[0]}{exponent[1:].lstrip('0')}"


def _plain(value: float) -> str:
    text = repr(value)
    if "e" not in text:
        return text
    mantissa, _, exponent = text.partition("e")
    digits = mantissa.replace(".", "").lstrip("-")
    return f"{'-' if value < 0 else ''}0.{'0' * (-int(exponent) - 1)}{digits}"
