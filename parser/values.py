"""Where a value begins and ends: the rest of the line, `"…"` or `\"""…\"""`.

A quote is closed by the first one of its kind that only blanks follow on its line, so quotes inside a text need no
escaping; there are no escapes. Quoted texts may span lines and are taken as they stand.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .source import BLANKS, Mistake, Source, line_end, line_number, skip_blanks

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
COMMENT_HINT = "a comment must stand on a line of its own"

# A line inside a quoted text that itself opens a quote behind an instruction's name: the text before it was meant to
# end. Lower-case names do not count, for `from "x" …` is English.
_NAMES = "|".join(NAMES)
_OPENING = {
    quote: re.compile(rf"(?<=[\r\n])[ \t]*(?P<name>{_NAMES})[ \t]+(?:\w+[ \t]+)?{quote}") for quote in ('"""', '"')
}
_INSTRUCTION = re.compile(rf"(?<=[\r\n])[ \t]*(?:{_NAMES})(?=[ \t])", re.IGNORECASE)


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
    return read_line(source, start)


def read_line(source: Source, pos: int) -> Value:
    """The rest of the line as it stands, without the blanks around it."""
    start = skip_blanks(source.text, pos)
    text = source.text[start : line_end(source.text, start)].rstrip(BLANKS)
    return Value(text, start, start + len(text), "")


def read_word(source: Source, pos: int) -> Value:
    """Up to the next blank or the end of the line."""
    line = read_line(source, pos)
    return line.part(0, len(line.text.split(None, 1)[0]) if line.text else 0)


def required(source: Source, first: int, pos: int, value: Value, wanted: str, example: str) -> Value:
    """`value`, unless it is empty. The instruction's name stands at [first, pos)."""
    if value.text.strip():
        return value
    start, end = (value.start, value.end) if value.quote else (first, pos)
    raise Mistake(start, end, f"{source.text[first:pos].upper()} needs {wanted}", f"for example {example}")


def next_instruction(text: str, pos: int) -> int:
    """Where parsing can go on when the lines after `pos` make no sense: the next that begins with an instruction."""
    match = _INSTRUCTION.search(text, pos)
    return match.start() if match else len(text)


def _read_quoted(source: Source, start: int, quote: str, lines: bool) -> Value:
    body, eol = start + len(quote), line_end(source.text, start)
    close = source.closing(quote, body)
    if close is None or close >= eol:
        _check_first_line(source.text, start, eol, quote)
        close = _on_later_line(source, start, quote, close, lines)
    return Value(source.text[body:close], start, close + len(quote), quote)


def _check_first_line(text: str, start: int, eol: int, quote: str) -> None:
    """Refuses quotes that pair up on their line with something behind: `"hello" world`. Ollama reads on, into the
    next lines, until some quote ends a line. An odd one is open, and may be closed further down."""
    if text.count(quote, start, eol) % 2:
        return
    after = skip_blanks(text, text.rfind(quote, start, eol) + len(quote))
    end = after + len(text[after:eol].rstrip(BLANKS))
    hint = 'remove it, or move the closing """ behind it'
    if quote == '"':
        hint = 'remove it; or, if the quotes belong to the text, put """ before and after all of it'
    raise Mistake(after, end, "text after the closing quote", COMMENT_HINT if text[after] == "#" else hint)


def _on_later_line(source: Source, start: int, quote: str, close: int | None, lines: bool) -> int:
    """The closing quote on a later line. `Mistake` points at the opening one, and says where it was left open."""
    text, body = source.text, start + len(quote)
    never = f"this {quote} is never closed"
    if not lines:
        raise Mistake(start, body, never, f"put {quote} at the end of the line")
    until = len(text) if close is None else close + len(quote)
    if opening := _OPENING[quote].search(text, body, until):
        hint = f"close it with {quote} before {opening['name']} in line {line_number(text, opening.start('name'))}"
        raise Mistake(start, body, never, hint, opening.start())
    if close is None:
        raise Mistake(start, body, never, f"end the text with {quote}", next_instruction(text, body))
    return close
