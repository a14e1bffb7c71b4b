"""JSON schemas and GBNF grammars, within limits: 20 bytes of GBNF can burn minutes and gigabytes natively."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from modelctl.errors import BadRequest
from modelctl.runner.frames import Sampling
from modelctl.runner.llama import schema_to_gbnf

MAX_SCHEMA = 64 * 1024  # bytes
MAX_GRAMMAR = 256 * 1024
MAX_DEPTH = 32
MAX_ENUM = 1000
MAX_REPEAT = 2000
MAX_NESTED = 200  # parentheses; the native parser recurses

JSON_GRAMMAR = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt/] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""

_REPEAT = re.compile(r"\{\s*(\d+)\s*(?:,\s*(\d*)\s*)?\}")


def of(settings: Sampling) -> str:
    """The GBNF text to sample under, "" for none. Raises `BadRequest`."""
    if settings.json_schema in ("", "{}", "true"):
        text = JSON_GRAMMAR if settings.json_schema else settings.grammar
    else:
        text = _from_schema(settings.json_schema)
    if text:
        _check(text)
    return text


def _from_schema(text: str) -> str:
    if len(text) > MAX_SCHEMA:
        raise BadRequest(f"the JSON schema has {len(text)} bytes; at most {MAX_SCHEMA} are allowed")
    schema = msgspec.json.decode(text)
    _check_schema(schema, 0)
    try:
        return schema_to_gbnf(text)
    except Exception as error:  # the converter leaves by AssertionError, KeyError, RecursionError...
        raise BadRequest(
            f"this JSON schema cannot be turned into a grammar: {error or type(error).__name__}"
        ) from error


def _check_schema(node: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BadRequest(f"the JSON schema is nested deeper than {MAX_DEPTH}")
    if isinstance(node, list):
        for item in node:
            _check_schema(item, depth + 1)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("enum"), list) and len(node["enum"]) > MAX_ENUM:
        raise BadRequest(f"an enum of the JSON schema has {len(node['enum'])} values; at most {MAX_ENUM} are allowed")
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#/"):
        raise BadRequest(f"the JSON schema refers to {reference!r}; only #/ references into itself are followed")
    for low, high in (("minItems", "maxItems"), ("minLength", "maxLength")):
        _check_range(node.get(low), node.get(high), f"{low} and {high}")
    for value in node.values():
        _check_schema(value, depth + 1)


def _check_range(low: Any, high: Any, what: str) -> None:
    bad = [n for n in (low, high) if n is not None and not (isinstance(n, int) and 0 <= n <= MAX_REPEAT)]
    if bad or (isinstance(low, int) and isinstance(high, int) and low > high):
        raise BadRequest(f"{what} must be whole numbers from 0 to {MAX_REPEAT}, the first not above the second")


def _check(text: str) -> None:
    if len(text) > MAX_GRAMMAR:
        raise BadRequest(f"the grammar has {len(text)} bytes; at most {MAX_GRAMMAR} are allowed")
    for match in _REPEAT.finditer(text):
        _check_range(int(match[1]), int(match[2]) if match[2] else None, f"the bounds of {match[0]} in the grammar")
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth > MAX_NESTED:
            raise BadRequest(f"the grammar is nested deeper than {MAX_NESTED}")
