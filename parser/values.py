"""Where a value begins and ends: the rest of the line, `"…"` or `\"""…\"""`.

A quote is closed by the first one of its kind that only blanks follow on its line, so quotes inside a text need no
escaping; there are no escapes. Quoted texts may span lines and are taken as they stand.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .source import BLANKS, Mistake, Source, line_end, line_number, skip_blanks, skip_gap

NAMES = (
    "FROM",
    "PARAMETER",
    "TEMPLATE",
    "SYSTEM",
    "ADAPTER",
    "MESSAGE",
    "LICENSE",
    "REQUIRES",
    "RENDERER",
    "PARSER",
    "DRAFT",
    "CAPABILITY",
)
_CLOSING = {quote: re.compile(rf"{quote}(?=[{BLANKS}]*(?:[\r\n]|\Z))") for quote in ('"""', '"')}
COMMENT_HINT = "a comment must stand on a line of its own"

# A line inside a quoted text that itself opens a quote behind an instruction's name: the text before it was meant to
# end, unless it is the closing quote that makes the line look so. Lower-case names do not count, for `from "x" …` is
# English.
_NAMES = "|".join(NAMES)
_OPENING = {
    quote: re.compile(rf"(?<=[\r\n])[ \t]*(?P<name>{_NAMES})[ \t]+(?:\w+[ \t]+)?{quote}") for quote in ('"""', '"')
}
_NAME = re.compile(rf"(?:{_NAMES})(?=[ \t\r\n]|\Z)", re.IGNORECASE)
_INSTRUCTION = re.compile(rf"(?<=[\r\n])[ \t]*(?:{_NAMES})(?=[ \t\r\n]|\Z)", re.IGNORECASE)


class Value(NamedTuple):
    text: str
    start: int  # of the value with its quotes
    end: int
    quote: str  # `"` or `\"""`, or empty

    def part(self, start: int, end: int) -> Value:
        """text[start:end] of an unquoted value."""
        return Value(self.text[start:end], self.start + start, self.start + end, "")


def read_value(source: Source, pos: int, *, lines: bool) -> Value:
    """The value that begins after the blanks at `pos`; `lines` says whether a quoted one may span lines."""
    start = skip_blanks(source.text, pos)
    for quote in ('"""', '"'):
        if source.text.startswith(quote, start):
            return _read_quoted(source, start, quote, lines)
    return _rest_of_line(source.text, start)


def read_line(source: Source, pos: int) -> Value:
    """The rest of the line as it stands, without the blanks around it."""
    return _rest_of_line(source.text, skip_blanks(source.text, pos))


def read_word(source: Source, pos: int) -> Value:
    """Up to the next blank or the end of the line."""
    line = read_line(source, pos)
    return line.part(0, len(line.text.split(None, 1)[0]) if line.text else 0)


def required(source: Source, first: int, pos: int, value: Value, wanted: str, example: str) -> Value:
    """`value`, unless it is empty. The instruction's name stands at [first, pos)."""
    if value.text.strip():
        return value
    name = source.text[first:pos].upper()
    if value.quote:
        raise Mistake(value.start, value.end, f"{name} needs {wanted}", f"for example {example}")
    below = _line_below(source.text, value.end)
    hint = f"put it on the same line: {name} {below.text}" if below.text else f"for example {example}"
    raise Mistake(first, pos, f"{name} needs {wanted}", hint, below.end)


def next_instruction(text: str, pos: int) -> int:
    """Where parsing can go on when the lines after `pos` make no sense: the next that begins with an instruction."""
    match = _INSTRUCTION.search(text, pos)
    return match.start() if match else len(text)


def _rest_of_line(text: str, start: int) -> Value:
    value = text[start : line_end(text, start)].rstrip(BLANKS)
    return Value(value, start, start + len(value), "")


def _line_below(text: str, pos: int) -> Value:
    """The next line, if it is neither instruction nor comment; else nothing."""
    eol = line_end(text, pos)
    below = eol + (2 if text.startswith("\r\n", eol) else 1)
    start, end = skip_blanks(text, below), line_end(text, below)
    if text.startswith("#", start) or _INSTRUCTION.match(text, below):
        return Value("", eol, eol, "")
    return Value(text[start:end].rstrip(BLANKS), start, end, "")


def _read_quoted(source: Source, start: int, quote: str, lines: bool) -> Value:
    body, eol = start + len(quote), line_end(source.text, start)
    found = source.find(_CLOSING[quote], body)
    close = found.start() if found else None
    if close is None or close >= eol:
        _check_first_line(source.text, start, eol, quote, lines)
        close = _on_later_line(source, start, quote, close, lines)
    return Value(source.text[body:close], start, close + len(quote), quote)


def _check_first_line(text: str, start: int, eol: int, quote: str, lines: bool) -> None:
    """Refuses quotes that pair up on their line with something behind: `"hello" world`. Ollama reads on, into the
    next lines, until some quote ends a line. An odd one is open, and may be closed further down."""
    if text.count(quote, start, eol) % 2:
        return
    after = skip_blanks(text, text.rfind(quote, start, eol) + len(quote))
    end = after + len(text[after:eol].rstrip(BLANKS))
    hint = "remove it"
    if text[after] == "#":
        hint = COMMENT_HINT
    elif lines and quote == '"':
        hint = 'remove it; or, if the quotes belong to the text, put """ before and after all of it'
    elif lines:
        hint = 'remove it, or move the closing """ behind it'
    raise Mistake(after, end, "text after the closing quote", hint)


def _on_later_line(source: Source, start: int, quote: str, close: int | None, lines: bool) -> int:
    """The closing quote on a later line. `Mistake` points at the opening one, and says where it was left open."""
    text, body = source.text, start + len(quote)
    never = f"this {quote} is never closed"
    if not lines:
        raise Mistake(start, body, never, f"put {quote} at the end of the line")
    opening = source.find(_OPENING[quote], body)
    if opening and not (close is not None and _closes(text, close + len(quote), opening.end())):
        hint = f"close it with {quote} before {opening['name']} in line {line_number(text, opening.start('name'))}"
        raise Mistake(start, body, never, hint, opening.start())
    if close is None:
        raise Mistake(start, body, never, f"end the text with {quote}", next_instruction(text, body))
    return close


def _closes(text: str, end: int, opened: int) -> bool:
    """Whether the closing quote that ends at `end` comes before the opening one that ends at `opened`. When they are
    one and the same, as in a text whose last line is `TEMPLATE \"""`, the next line tells."""
    if end != opened:
        return end < opened
    after = skip_gap(text, end)
    return after == len(text) or _NAME.match(text, after) is not None
