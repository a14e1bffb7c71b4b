"""The text of a Modelfile, and what can be wrong in it.

Rules work on offsets. A line, a column and a caret exist only once something is reported, so they cannot drift.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

CROP = 100  # characters of a source line that an error shows; a line may hold megabytes


@dataclass(frozen=True)
class Problem:
    """One thing wrong (or worth a warning). `line` and `column` count from 1, `column` and `width` in characters;
    `line` 0 means that it is about no place in the file. `str()` draws the source line with a caret."""

    message: str
    hint: str | None = None
    filename: str = "Modelfile"
    line: int = 0
    column: int = 0
    width: int = 1
    source: str = ""

    def __str__(self) -> str:
        where = f"{self.filename}:{self.line}:{self.column}" if self.line else self.filename
        lines = [f"{where}: {self.message}"]
        if self.line:
            lines += self._picture()
        if self.hint:
            lines.append(f"    hint: {self.hint}")
        return "\n".join(lines)

    def _picture(self) -> list[str]:
        start, end = _window(self.column - 1, len(self.source))
        before = ("…" if start else "") + _printable(self.source[start : self.column - 1])
        rest = _printable(self.source[self.column - 1 : end]) + ("…" if end < len(self.source) else "")
        underlined = rest[: min(self.width, end - self.column + 1)]
        gutter = f"{self.line:>5} | "
        caret = "^" + "~" * (_columns(underlined) - 1)
        return [gutter + before + rest, " " * (len(gutter) - 2) + "| " + " " * _columns(before) + caret]


class ModelfileError(Exception):
    """A Modelfile that cannot be used. `problems` holds all that was found; `str()` shows each with its line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n\n".join(map(str, self.problems)))


class Mistake(Exception):
    """Raised by a rule: text[start:end] is wrong. Parsing goes on at `resume`, the next line unless given."""

    def __init__(self, start: int, end: int, message: str, hint: str | None = None, resume: int | None = None) -> None:
        super().__init__(message)
        self.start, self.end, self.message, self.hint, self.resume = start, end, message, hint, resume


class Source:
    """A text with its name: turns offsets into problems, and finds closing quotes in linear time overall."""

    def __init__(self, text: str, filename: str) -> None:
        self.text, self.filename = text, filename
        self._searched: dict[str, tuple[int, int]] = {}

    def problem(self, start: int, end: int, message: str, hint: str | None = None) -> Problem:
        first = max(self.text.rfind("\n", 0, start), self.text.rfind("\r", 0, start)) + 1
        last = line_end(self.text, start)
        width = max(1, min(end, last) - start)
        line, column = line_number(self.text, start), start - first + 1
        return Problem(message, hint, self.filename, line, column, width, self.text[first:last])

    def closing(self, quote: str, pos: int) -> int | None:
        """Where, at or after `pos`, a `quote` stands that is followed by nothing else on its line. The last answer
        is kept: without it, a file of unclosed quotes would be searched to its end once a line."""
        since, found = self._searched.get(quote, (0, -1))
        if not since <= pos <= found:
            match = CLOSING[quote].search(self.text, pos)
            found = match.start() if match else len(self.text)
            self._searched[quote] = pos, found
        return found if found < len(self.text) else None


# Characters that show as blank or as nothing. Ollama drops them; we drop them around values and after closing quotes.
INVISIBLE = "\f\v\x1c\x1d\x1e\x1f\x85\xa0\xad\u1680" + "".join(map(chr, range(0x2000, 0x200C)))
INVISIBLE += "\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
BLANKS = " \t" + INVISIBLE

CLOSING = {quote: re.compile(rf"{quote}(?=[{BLANKS}]*(?:[\r\n]|\Z))") for quote in ('"""', '"')}
_REST_OF_LINE = re.compile(r"[^\r\n]*")


def line_end(text: str, pos: int) -> int:
    match = _REST_OF_LINE.match(text, pos)
    return match.end() if match else pos


def line_number(text: str, pos: int) -> int:
    """Counts `\\n`, `\\r\\n` and a lone `\\r` as one line end each."""
    crlf = text.count("\r\n", 0, pos)
    return 1 + text.count("\n", 0, pos) + text.count("\r", 0, pos) - crlf


def quoted(text: str) -> str:
    """`text` for a message: in quotes, control characters escaped, long ones cut."""
    return repr(text if len(text) <= 60 else text[:57] + "…")


def _window(column: int, length: int) -> tuple[int, int]:
    """The part of a long line that is shown around `column`."""
    start = 0 if column <= CROP * 3 // 4 else column - CROP // 2
    return start, min(length, start + CROP)


def _printable(text: str) -> str:
    """A Modelfile may come from a stranger: nothing in it may act on the terminal."""
    return "".join(" " if char == "\t" else char if char.isprintable() else "·" for char in text)


def _columns(text: str) -> int:
    """How many cells of a terminal `text` takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
