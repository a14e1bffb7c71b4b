"""The functions a template may call: text/template's own and Ollama's four."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote_plus

from modelctl.template.go import gojson
from modelctl.template.go.errors import FunctionError
from modelctl.template.go.format import sprint, sprintf, sprintln
from modelctl.template.go.values import Struct, Uint8, to_bytes, to_text, truth, type_name


class Function(NamedTuple):
    """min_args and max_args count arguments (max None: any number); text_args are those that must be strings."""

    call: Callable[..., Any]
    min_args: int
    max_args: int | None
    text_args: slice = slice(0, 0)


def _index(item: Any, *keys: Any) -> Any:
    if item is None:
        raise FunctionError("index of untyped nil")
    for key in keys:
        item = _item(item, key)
    return item


def _item(item: Any, key: Any) -> Any:
    if isinstance(item, dict):
        if not isinstance(key, str):
            raise FunctionError(f"value has type {type_name(key)}; should be string")
        return item.get(key)
    if isinstance(item, str):
        data = to_bytes(item)
        return Uint8(data[_position(key, len(data) - 1)])
    if isinstance(item, list):
        return item[_position(key, len(item) - 1)]
    if item is None:
        raise FunctionError("index of nil pointer")
    raise FunctionError(f"can't index item of type {type_name(item)}")


def _position(key: Any, last: int) -> int:
    if isinstance(key, bool) or not isinstance(key, int):
        raise FunctionError(f"cannot index slice/array with type {type_name(key)}")
    if not 0 <= key <= last:
        raise FunctionError(f"index out of range: {key}")
    return int(key)


def _slice(item: Any, *bounds: Any) -> Any:
    if item is None:
        raise FunctionError("slice of untyped nil")
    if not isinstance(item, str | list):
        raise FunctionError(f"can't slice item of type {type_name(item)}")
    if isinstance(item, str) and len(bounds) == 3:
        raise FunctionError("cannot 3-index slice a string")
    data: Any = to_bytes(item) if isinstance(item, str) else item
    ends = [_position(bound, len(data)) for bound in bounds]
    start, stop = (ends + [0, len(data)][len(ends) :])[:2]
    if not start <= stop <= (ends[2] if len(ends) == 3 else len(data)):
        raise FunctionError(f"invalid slice index: {start} > {stop}")
    part = data[start:stop]
    return to_text(part) if isinstance(item, str) else part


def _length(item: Any) -> int:
    if isinstance(item, str):
        return len(to_bytes(item))
    if isinstance(item, list | dict):
        return len(item)
    raise FunctionError(f"len of type {type_name(item)}")


def _basic(value: Any) -> str:
    """The family within which values compare; empty for those that don't."""
    match value:
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float"
        case str():
            return "string"
    return ""


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise FunctionError("missing argument for comparison")
    return any(_same(first, other) for other in others)


def _same(a: Any, b: Any) -> bool:
    if type(a) is str and type(b) is str:  # nearly all there is in chat templates
        return a == b
    if a is None or b is None:
        return a is b
    if _basic(a) != _basic(b):
        raise FunctionError(f"incompatible types for comparison: {type_name(a)} and {type_name(b)}")
    if not _basic(a):
        raise FunctionError(f"can't compare values of type {type_name(a)}")
    return bool(a == b)


def _less(a: Any, b: Any) -> bool:
    if _basic(a) in ("", "bool") or _basic(b) in ("", "bool"):
        raise FunctionError(f"can't order values of type {type_name(a)} and {type_name(b)}")
    if _basic(a) != _basic(b):
        raise FunctionError(f"incompatible types for comparison: {type_name(a)} and {type_name(b)}")
    return bool(a < b)


def _less_or_equal(a: Any, b: Any) -> bool:
    return _less(a, b) or _same(a, b)


def _operands(*args: Any) -> str:
    """What html, js and urlquery escape: their arguments printed, nothing for what is missing."""
    return sprint(*("" if arg is None else arg for arg in args))


_HTML = {"\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;"}
_JS = {c: rf"\{c}" for c in "\\'\""} | {c: f"\\u{ord(c):04X}" for c in "<>&=" + "".join(map(chr, range(32)))}


def _html(*args: Any) -> str:
    return re.sub("[\0\"'&<>]", lambda m: _HTML[m[0]], _operands(*args))


def _js(*args: Any) -> str:
    return "".join(_JS.get(c) or (c if _stays(c) else f"\\u{ord(c):04X}") for c in _operands(*args))


def _stays(char: str) -> bool:
    return char < "\x80" or char.isprintable() or "\udc80" <= char <= "\udcff"


def _url(*args: Any) -> str:
    return quote_plus(to_bytes(_operands(*args)))


def _call(function: Any, *_args: Any) -> Any:
    raise FunctionError("call of nil" if function is None else f"non-function of type {type_name(function)}")


def _current_date(*_format: str) -> str:
    return date.today().isoformat()


def _yesterday(*_format: str) -> str:
    return (date.today() - timedelta(days=1)).isoformat()


_TYPESCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


def typescript_type(value: Any) -> str:
    """The TypeScript type of a tool's property; alternatives joined by |, anything unknown is any."""
    if not isinstance(value, Struct) or "AnyOf" not in value.values:
        return "any"
    if value.values["AnyOf"]:
        return " | ".join(map(typescript_type, value.values["AnyOf"]))
    return " | ".join(_TYPESCRIPT.get(name, "any") for name in value.values["Type"]) or "any"


# and and or are not called: they stop at the first argument that decides.
FUNCTIONS = {
    "and": Function(lambda *args: args[-1], 1, None),
    "or": Function(lambda *args: args[-1], 1, None),
    "not": Function(lambda arg: not truth(arg), 1, 1),
    "eq": Function(_equal, 1, None),
    "ne": Function(lambda a, b: not _same(a, b), 2, 2),
    "lt": Function(_less, 2, 2),
    "le": Function(_less_or_equal, 2, 2),
    "gt": Function(lambda a, b: not _less_or_equal(a, b), 2, 2),
    "ge": Function(lambda a, b: not _less(a, b), 2, 2),
    "len": Function(_length, 1, 1),
    "index": Function(_index, 1, None),
    "slice": Function(_slice, 1, 4),
    "print": Function(sprint, 0, None),
    "printf": Function(sprintf, 1, None, slice(0, 1)),
    "println": Function(sprintln, 0, None),
    "html": Function(_html, 0, None),
    "js": Function(_js, 0, None),
    "urlquery": Function(_url, 0, None),
    "call": Function(_call, 1, None),
    "json": Function(gojson.encode, 1, 1),
    "currentDate": Function(_current_date, 0, None, slice(None)),
    "yesterdayDate": Function(_yesterday, 0, None, slice(None)),
    "toTypeScriptType": Function(typescript_type, 1, 1),
}
