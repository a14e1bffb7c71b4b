"""fmt's Sprint, Sprintln and Sprintf, for the values that templates see."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from modelctl.template.go import gojson
from modelctl.template.go.values import Struct, TypeNames, printed_as_json, sorted_items, to_bytes, type_name
from modelctl.template.limits import check_size

MAX_WIDTH = 1_000_000  # Go's own limit; larger numbers are no width

_DIRECTIVE = re.compile(
    r"%(?P<flags>[-+# 0]*)(?P<i1>\[[^\]]*\]|\[)?(?P<width>\*|\d+)?"
    r"(?:\.(?=.)(?P<i2>\[[^\]]*\]|\[)?(?P<prec>\*|\d*))?(?P<i3>\[[^\]]*\]|\[)?(?P<verb>.)?",
    re.DOTALL,
)
_INT_BASES = {"v": "d", "d": "d", "b": "b", "o": "o", "O": "o", "x": "x", "X": "X"}
_INT_PREFIX = {"b": "0b", "o": "0", "O": "0o", "x": "0x", "X": "0X"}
_QUOTED = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v", "\\": r"\\"}


@dataclass(frozen=True, slots=True)
class Style:
    """One directive's flags. go_syntax is %#v, names is %+v."""

    verb: str = "v"
    plus: bool = False
    minus: bool = False
    sharp: bool = False
    space: bool = False
    zero: bool = False
    go_syntax: bool = False
    names: bool = False
    width: int | None = None
    prec: int | None = None
    plain: bool = False  # inside an error report: values print bare, not by their methods


PLAIN = Style()


def sprint(*args: Any) -> str:
    """Spaces only between two operands of which neither is a string."""
    spaced = (i and not isinstance(arg, str) and not isinstance(args[i - 1], str) for i, arg in enumerate(args))
    return "".join(_bounded(f" {show(arg)}" if space else show(arg) for arg, space in zip(args, spaced, strict=True)))


def sprintln(*args: Any) -> str:
    return " ".join(_bounded(map(show, args))) + "\n"


def _bounded(parts: Iterable[str]) -> Iterator[str]:
    """The parts, as long as they don't add up to more than a template may make."""
    size = 0
    for part in parts:
        size += len(part)
        check_size(size, "what print makes")
        yield part


def show(value: Any) -> str:
    """%v"""
    if isinstance(value, str):
        return value
    return argument(value, PLAIN)


def sprintf(form: str, *args: Any) -> str:
    return _Printf(form, args).run()


class _Printf:
    """One call of Sprintf: which argument is next, and whether indexes like %[2]d have been used."""

    def __init__(self, form: str, args: tuple[Any, ...]) -> None:
        self.form = form
        self.args = args
        self.next = 0
        self.reordered = False
        self.good = True

    def run(self) -> str:
        out: list[str] = []
        end = size = 0
        for match in _DIRECTIVE.finditer(self.form):
            out += self.form[end : match.start()], self.directive(match)
            size += len(out[-1]) + len(out[-2])
            check_size(size, "what printf makes")
            end = match.end()
        out.append(self.form[end:])
        if not self.reordered and self.next < len(self.args):
            out.append(self.extra())
        return "".join(out)

    def directive(self, match: re.Match[str]) -> str:
        self.good = True
        problems: list[str] = []
        style = _flags(match["flags"])
        self.index(match["i1"])
        style = self.width(match, style, problems)
        if match["prec"] is not None:
            style = self.precision(match, style, problems)
        self.index(match["i3"])
        return "".join(problems) + self.value(match["verb"], style)

    def index(self, text: str | None) -> bool:
        """Apply [n], if there; whether it was."""
        if not text:
            return False
        self.reordered = True
        inner = text[1:-1]
        if text.endswith("]") and inner.isascii() and inner.isdigit() and 1 <= int(inner[:9]) <= len(self.args):
            self.next = int(inner) - 1
        else:
            self.good = False
        return True

    def width(self, match: re.Match[str], style: Style, problems: list[str]) -> Style:
        if match["width"] == "*":
            width = self.star()
            if width is None:
                problems.append("%!(BADWIDTH)")
            if width is not None and width < 0:
                style = replace(style, minus=True, zero=False)
            return replace(style, width=None if width is None else abs(width))
        if match["width"] and match["i1"]:
            self.good = False
        return replace(style, width=_size(match["width"]))

    def precision(self, match: re.Match[str], style: Style, problems: list[str]) -> Style:
        if match["i1"] and match["width"] != "*":
            self.good = False
        indexed = self.index(match["i2"])
        if match["prec"] != "*":
            if indexed and match["prec"]:
                self.good = False
            return replace(style, prec=_size(match["prec"] or "0") or 0)
        prec = self.star()
        if prec is None or prec < 0:
            problems.append("%!(BADPREC)")
            prec = None
        return replace(style, prec=prec)

    def star(self) -> int | None:
        """The next argument as a width; None when it is not a small integer."""
        if self.next >= len(self.args):
            return None
        value = self.args[self.next]
        self.next += 1
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_WIDTH:
            return None
        return int(value)

    def value(self, verb: str | None, style: Style) -> str:
        if verb is None:
            return "%!(NOVERB)"
        if verb == "%":
            return "%"
        if not self.good:
            return f"%!{verb}(BADINDEX)"
        if self.next >= len(self.args):
            return f"%!{verb}(MISSING)"
        if verb == "v":
            style = replace(style, go_syntax=style.sharp, names=style.plus, sharp=False, plus=False)
        self.next += 1
        return argument(self.args[self.next - 1], replace(style, verb=verb))

    def extra(self) -> str:
        rest = [("" if a is None else type_name(a) + "=") + show(a) for a in self.args[self.next :]]
        return f"%!(EXTRA {', '.join(rest)})"


def _flags(flags: str) -> Style:
    minus = "-" in flags
    return Style(
        plus="+" in flags, minus=minus, sharp="#" in flags, space=" " in flags, zero="0" in flags and not minus
    )


def _size(digits: str | None) -> int | None:
    return int(digits) if digits and len(digits) < 8 and int(digits) <= MAX_WIDTH else None


def argument(value: Any, style: Style) -> str:
    """One operand, formatted by its verb; a verb that does not fit gives Go's %!d(string=x)."""
    if value is None:
        return _pad("<nil>", style) if style.verb in "vT" else f"%!{style.verb}(<nil>)"
    if style.verb == "T":
        return _string(type_name(value), replace(style, verb="s"))
    return _value(value, style)


def _value(value: Any, style: Style) -> str:
    if not style.plain and not style.go_syntax and style.verb in "vsxXq":
        if printed_as_json(value):
            return _string(gojson.encode(value), style)
        if isinstance(value, TypeNames) and len(value) < 2:
            return _string("".join(value), style)
    match value:
        case None:
            return "interface {}(nil)" if style.go_syntax else "<nil>"
        case bool():
            return _pad("true" if value else "false", style) if style.verb in "tv" else _bad(value, style)
        case int():
            return _integer(value, style)
        case float():
            return _float(value, style)
        case str():
            return _string(value, style)
    return _composite(value, style)


def _bad(value: Any, style: Style) -> str:
    shown = _value(value, replace(style, verb="v", plain=True))
    return f"%!{style.verb}({type_name(value)}={shown})"


def _composite(value: Any, style: Style) -> str:
    """[a b], map[k:v], {x y}; with %#v as Go source, with %+v with field names."""
    between = ", " if style.go_syntax else " "
    if isinstance(value, Struct):
        named = style.names or style.go_syntax
        parts = [(f"{name}:" if named else "") + _value(item, style) for name, item in value.values.items()]
        brackets = "{}"
    elif isinstance(value, dict):
        parts = [_value(key, style) + ":" + _value(item, style) for key, item in sorted_items(value)]
        brackets = "{}" if style.go_syntax else "[]"
    else:
        parts = [_value(item, style) for item in value]
        brackets = "{}" if style.go_syntax else "[]"
    head = type_name(value) if style.go_syntax else "map" if isinstance(value, dict) else ""
    return head + brackets[0] + between.join(parts) + brackets[1]


def _pad(text: str, style: Style) -> str:
    if not style.width:
        return text
    if style.minus:
        return text.ljust(style.width)
    return text.rjust(style.width, "0" if style.zero else " ")


def _string(value: str, style: Style) -> str:
    verb = style.verb
    cut = value if style.prec is None else value[: style.prec]
    if verb == "s" or (verb == "v" and not style.go_syntax):
        return _pad(cut, style)
    if verb == "q" or verb == "v":
        return _pad(_raw_or_quoted(cut, style), style)
    if verb in "xX":
        return _hex(value, style)
    return _bad(value, style)


def _raw_or_quoted(text: str, style: Style) -> str:
    if style.sharp and not re.search("[\x00-\x08\x0a-\x1f`\x7f\ufeff\ud800-\udfff]", text):
        return f"`{text}`"
    return quote(text, style.plus)


def quote(text: str, ascii_only: bool = False, mark: str = '"') -> str:
    """A Go string literal, or with mark ' the inside of a character literal too."""
    return mark + "".join(_quoted(char, ascii_only, mark) for char in text) + mark


def _quoted(char: str, ascii_only: bool, mark: str) -> str:
    code = ord(char)
    if char == mark:
        return "\\" + mark
    if char in _QUOTED:
        return _QUOTED[char]
    if (code < 0x80 and char.isprintable()) or (code >= 0x80 and char.isprintable() and not ascii_only):
        return char
    if code < 0x80:
        return f"\\x{code:02x}"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _hex(value: str, style: Style) -> str:
    data = to_bytes(value)[: style.prec]
    digits = data.hex().upper() if style.verb == "X" else data.hex()
    prefix = f"0{style.verb}" if style.sharp and digits else ""
    if style.space:
        between = " " + prefix
        digits = between.join(digits[i : i + 2] for i in range(0, len(digits), 2))
    return _pad(prefix + digits, style)


def _integer(value: int, style: Style) -> str:
    verb = style.verb
    if verb in "cqU":
        return _character(value, style)
    if verb not in _INT_BASES:
        return _bad(value, style)
    digits = format(abs(value), _INT_BASES[verb])
    sign = "-" if value < 0 else "+" if style.plus else " " if style.space else ""
    if style.prec is not None:
        digits = "" if style.prec == 0 and value == 0 else digits.rjust(style.prec, "0")
        if not digits:
            return " " * (style.width or 0)
    elif style.zero and style.width:
        digits = digits.rjust(style.width - len(sign), "0")
    if verb == "O" or (style.sharp and verb in _INT_PREFIX and not (verb == "o" and digits[0] == "0")):
        digits = _INT_PREFIX[verb] + digits
    return _pad(sign + digits, replace(style, zero=False))


def _character(value: int, style: Style) -> str:
    known = 0 <= value <= 0x10FFFF and not 0xD800 <= value < 0xE000
    char = chr(value) if known else "\ufffd"
    if style.verb == "c":
        return _pad(char, style)
    if style.verb == "q":
        return _pad(quote(char, style.plus, "'"), style)
    digits = format(value % (1 << 64), "X").rjust(max(4, style.prec or 0), "0")
    shown = f" '{char}'" if style.sharp and known and char.isprintable() else ""
    return _pad(f"U+{digits}{shown}", replace(style, zero=False))


def _float(value: float, style: Style) -> str:
    verb = "g" if style.verb == "v" else "f" if style.verb == "F" else style.verb
    if verb not in "eEfgG":
        return _bad(value, style)
    if verb in "gG" and style.prec is None:
        number = _six_digits(_shortest(value)) if style.sharp else _shortest(value)
        number = number.upper() if verb == "G" else number
    else:
        number = format(value, f"{'#' if style.sharp else ''}.{6 if style.prec is None else style.prec}{verb}")
    sign = "-" if number[0] == "-" else "+" if style.plus else " " if style.space else ""
    digits = number.lstrip("-")
    if style.zero and style.width:
        digits = digits.rjust(style.width - len(sign), "0")
    return _pad(sign + digits, replace(style, zero=False))


def _shortest(value: float) -> str:
    """The fewest digits that read back as the same number; an exponent below 1e-4 and from a million on."""
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    point = len(digits) + int(exponent) if any(digits) else 1
    text = "".join(map(str, digits))
    minus = "-" if sign else ""
    if -4 <= point - 1 < 6:
        return minus + _place_point(text, point)
    fraction = "." + text[1:] if text[1:] else ""
    return f"{minus}{text[0]}{fraction}e{point - 1:+03d}"


def _six_digits(number: str) -> str:
    """With a point, and zeros up to six significant digits: what # asks for."""
    mantissa, e, exponent = number.partition("e")
    significant = mantissa.lstrip("-0.") if mantissa.strip("-0.") else "0"
    point = "" if "." in mantissa else "."
    return mantissa + point + "0" * (6 - len(significant.replace(".", ""))) + e + exponent


def _place_point(digits: str, point: int) -> str:
    if point <= 0:
        return "0." + "0" * -point + digits
    if point >= len(digits):
        return digits.ljust(point, "0")
    return digits[:point] + "." + digits[point:]
