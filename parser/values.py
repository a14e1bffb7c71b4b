"""Where a value begins and ends: the rest of the line, `"…"` or `\"""…\"""`.

A quote is closed by the first one of its kind that nothing but blanks follows on its line, so quotes inside a text need
no escaping; there are no escapes. Quoted texts may span lines and are taken as they stand.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .source import BLANKS, Mistake, Source, line_end, line_number

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
_NAMES = "|".join(NAMES)

# A line inside a quoted text that itself opens a quote after an instruction's name. There the text before it was
# meant to end. Lower-case names do not count: `from "x" …` is English.
_OPENING = {
    quote: re.compile(rf"(?<=[\r\n])[ \t]*(?P<name>{_NAMES})[ \t]+(?:\w+[ \t]+)?{quote}") for quote in ('"""', '"')
}
_INSTRUCTION = re.compile(rf"(?<=[\r\n])[ \t]*(?:{_NAMES})(?=[ \t])")


class Value(NamedTuple):
    text: str
    start: int  # of the value with its quotes
    end: int
    quote: str  # `"` or `\"""`, or empty

    def at(self, start: int, end: int) -> Value:
        """The part [start, end) of an unquoted value."""
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
    return line.at(0, len(line.text.split(None, 1)[0]) if line.text else 0)


def skip_blanks(text: str, pos: int) -> int:
    end = line_end(text, pos)
    return end - len(text[pos:end].lstrip(BLANKS))


def _read_quoted(source: Source, start: int, quote: str, lines: bool) -> Value:
    text, body, eol = source.text, start + len(quote), line_end(source.text, start)
    close = source.closing(quote, body)
    if close is None or close >= eol:
        _check_first_line(text, start, eol, quote)
        close = _closing_line(source, start, eol, quote, close, lines)
    return Value(text[body:close], start, close + len(quote), quote)


def _check_first_line(text: str, start: int, eol: int, quote: str) -> None:
    """Quotes that pair up on the line that opens them, with something after the last: `"hello" world`. Ollama reads
    on into the next lines until some quote ends a line."""
    if text.count(quote, start, eol) % 2:
        return
    last = skip_blanks(text, text.rfind(quote, start, eol) + len(quote))
    end = last + len(text[last:eol].rstrip(BLANKS))
    if text.startswith("#", last):
        hint = "a comment must stand on a line of its own"
    elif quote == '"':
        hint = 'remove it; or, if the quotes belong to the text, put """ around all of it'
    else:
        hint = 'remove it, or move the closing """ behind it'
    raise Mistake(last, end, "text after the closing quote", hint)


def _closing_line(source: Source, start: int, eol: int, quote: str, close: int | None, lines: bool) -> int:
    """The place of the closing quote on a later line; `Mistake` points at the opening one."""
    text, width = source.text, len(quote)
    if not lines:
        raise Mistake(start, start + width, f"this {quote} is never closed", f"put {quote} at the end of the line")
    end = len(text) if close is None else close + width
    if opening := _OPENING[quote].search(text, eol, end):
        line = line_number(text, opening.start("name"))
        hint = f"close it with {quote} before {opening['name']} in line {line}"
        raise Mistake(start, start + width, f"this {quote} is never closed", hint, opening.start())
    if close is None:
        after = _INSTRUCTION.search(text, eol)
        resume = after.start() if after else len(text)
        raise Mistake(start, start + width, f"this {quote} is never closed", f"end the text with {quote}", resume)
    return close
