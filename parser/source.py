"""The text of a Modelfile, and what can be wrong in it.

Rules work on offsets. A line, a column and a caret exist only once something is reported, so they cannot drift.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

CROP = 100  # characters of a source line that an error shows; a line may hold megabytes

# Characters that show as blank or not at all. Ollama drops them everywhere; here they are dropped around values and
# after closing quotes, and kept inside texts.
INVISIBLE = "\f\v\x1c\x1d\x1e\x1f\x85\xa0\xad\u1680\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
INVISIBLE += "".join(map(chr, range(0x2000, 0x200C)))
BLANKS = " \t" + INVISIBLE

_REST_OF_LINE = re.compile(r"[^\r\n]*")
_BLANKS = re.compile(f"[{BLANKS}]*+")
_GAP = re.compile(rf"(?:[{BLANKS}\r\n]++|#[^\r\n]*+)*+")


@dataclass(frozen=True)
class Problem:
    """One thing wrong, or worth a warning. `line` and `column` count from 1, `column` and `width` in characters;
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
        lines = [_printable(f"{where}: {self.message}")]
        if self.line:
            lines += self._picture()
        if self.hint:
            lines.append(_printable(f"    hint: {self.hint}"))
        return "\n".join(lines)

    def _picture(self) -> tuple[str, str]:
        at = self.column - 1
        start = 0 if at <= CROP * 3 // 4 else at - CROP // 2
        before = ("…" if start else "") + _printable(self.source[start:at])
        rest = _printable(self.source[at : start + CROP])
        more = "…" if len(self.source) > start + CROP else ""
        gutter = f"{self.line:>5} | "
        caret = "^" + "~" * (_cells(rest[: self.width]) - 1)
        return gutter + before + rest + more, " " * (len(gutter) - 2) + "| " + " " * _cells(before) + caret


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
    """A text with its name: turns offsets into problems, and finds things in linear time overall."""

    def __init__(self, text: str, filename: str) -> None:
        self.text, self.filename = text, filename
        self._found: dict[re.Pattern[str], tuple[int, re.Match[str] | None]] = {}

    def problem(self, start: int, end: int, message: str, hint: str | None = None) -> Problem:
        first = max(self.text.rfind("\n", 0, start), self.text.rfind("\r", 0, start)) + 1
        last = line_end(self.text, start)
        width = max(1, min(end, last) - start)
        line = line_number(self.text, start)
        hint = clipped(hint, 200) if hint else None
        return Problem(message, hint, self.filename, line, start - first + 1, width, self.text[first:last])

    def find(self, pattern: re.Pattern[str], pos: int) -> re.Match[str] | None:
        """The first match at or after `pos`. It is remembered: a file of unclosed quotes would otherwise be searched
        to its end for every one of them."""
        since, found = self._found.get(pattern, (len(self.text) + 1, None))
        if pos < since or (found and pos > found.start()):
            found = pattern.search(self.text, pos)
            self._found[pattern] = pos, found
        return found


def line_end(text: str, pos: int) -> int:
    match = _REST_OF_LINE.match(text, pos)
    return match.end() if match else pos


def line_number(text: str, pos: int) -> int:
    """Counts `\\n`, `\\r\\n` and a lone `\\r` as one line end each."""
    return 1 + text.count("\n", 0, pos) + text.count("\r", 0, pos) - text.count("\r\n", 0, pos)


def skip_blanks(text: str, pos: int) -> int:
    match = _BLANKS.match(text, pos)
    return match.end() if match else pos


def skip_gap(text: str, pos: int) -> int:
    """Past blank lines and comments."""
    match = _GAP.match(text, pos)
    return match.end() if match else pos


def quoted(text: str) -> str:
    """`text` for a message: in quotes, control characters escaped, cut when it is long."""
    return repr(clipped(text, 60))


def clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _printable(text: str) -> str:
    """A Modelfile may come from a stranger: nothing in it may act on the terminal."""
    return "".join(char if char.isprintable() else " " if char == "\t" else "·" for char in text)


def _cells(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
