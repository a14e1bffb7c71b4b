"""Go's literals: numbers, characters and strings, as strconv reads them. `ValueError` says what is wrong."""

from __future__ import annotations

import re

_ESCAPE = re.compile(
    r"""\\(?:(?P<simple>[abfnrtv\\"'])|x(?P<hex>[\da-fA-F]{2})|(?P<octal>[0-7]{3})
       |u(?P<u4>[\da-fA-F]{4})|U(?P<u8>[\da-fA-F]{8})|(?P<bad>.))""",
    re.VERBOSE | re.DOTALL,
)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
_INTEGER = re.compile(r"[+-]?(0[xX](_?[\da-fA-F])+|0[oO](_?[0-7])+|0[bB](_?[01])+|0(_?[0-7])*|[1-9](_?\d)*)")


def number(text: str) -> int | float:
    """`12`, `0x1F`, `1_000`, `017` (octal), `1.5e3`, `0x1p-2`. Integers hold 64 bits; there are no complex numbers."""
    if _INTEGER.fullmatch(text):
        value = _integer(text.replace("_", ""))
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"integer overflow: {text}")
        return value
    try:
        real = float.fromhex(text) if "x" in text.lower() else float(text)
    except (ValueError, OverflowError):
        real = float("inf")
    hexadecimal_point = "x" in text.lower() and "p" not in text.lower()
    if abs(real) == float("inf") or hexadecimal_point or not re.search("[.eEpP]", text):
        raise ValueError(f"illegal number syntax: {text}")
    return real


def _integer(text: str) -> int:
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
        return int(text, 8)
    return int(text, 0)


def character(quoted: str) -> int:
    """The code point of 'x'."""
    inner = quoted[1:-1]
    match = _ESCAPE.match(inner)
    if match is None:
        if len(inner) != 1:
            raise ValueError(f"malformed character constant: {quoted}")
        return ord(inner)
    if match.end() != len(inner) or match["simple"] == '"':
        raise ValueError(f"malformed character constant: {quoted}")
    if byte := match["hex"] or match["octal"]:
        return _byte(byte, 16 if match["hex"] else 8, quoted)
    return ord(_unescape(match, "'"))


def string(quoted: str) -> str:
    """The text of "x" or `x`. Bytes that are no UTF-8 become lone surrogates, as in Python's surrogateescape."""
    inner = quoted[1:-1]
    if quoted[0] == "`":
        return inner.replace("\r", "")
    if "\\" not in inner:
        return inner
    text = _ESCAPE.sub(lambda match: _unescape(match, '"'), inner)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def _unescape(match: re.Match[str], quote: str) -> str:
    if simple := match["simple"]:
        if simple in "\"'" and simple != quote:
            raise ValueError(f"invalid escape {match[0]} in a string")
        return _SIMPLE.get(simple, simple)
    if byte := match["hex"] or match["octal"]:
        return bytes([_byte(byte, 16 if match["hex"] else 8, match[0])]).decode("utf-8", "surrogateescape")
    code = int(match["u4"] or match["u8"] or "110000", 16)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise ValueError(f"invalid escape {match[0]} in a string")
    return chr(code)


def _byte(digits: str, base: int, where: str) -> int:
    value = int(digits, base)
    if value > 255:
        raise ValueError(f"{where} is larger than a byte")
    return value
