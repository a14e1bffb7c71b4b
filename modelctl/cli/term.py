"""What the terminal gets: escaped text, columns, sizes and ages. Model data is hostile: no escape sequence passes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

# Controls except newline and tab; what reorders text (bidi overrides, isolates); lone surrogates, which break encoding
_HOSTILE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNITS = ("B", "KB", "MB", "GB", "TB")


def safe(text: str) -> str:
    """`text` with everything visible that a terminal would act upon; newlines and tabs stay."""
    return _HOSTILE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def line(text: object) -> str:
    """The same, in one line."""
    return safe(str(text)).replace("\n", "\\n").replace("\t", " ")


def say(text: str = "") -> None:
    print(safe(text))


def note(text: str, *, faint: bool = False) -> None:
    """To stderr, so that it never mixes with output that somebody pipes."""
    print(dim(safe(text), sys.stderr) if faint else safe(text), file=sys.stderr, flush=True)


def error(message: str, hint: str | None) -> None:
    print(bold("Error:", sys.stderr), safe(message), file=sys.stderr)
    if hint:
        print(f"  {safe(hint)}", file=sys.stderr)


def write(text: str) -> None:
    """A piece of an answer, at once."""
    sys.stdout.write(safe(text))
    sys.stdout.flush()


def write_faint(text: str) -> None:
    sys.stdout.write(dim(safe(text)))
    sys.stdout.flush()


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))  # ASCII: nothing in it can reach the terminal


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns, as wide as they need. All numbers of a column read better on the right, so those do."""
    cells = [[line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    print(bold(_row(headers, widths)))
    for row in cells:
        print(_row(row, widths))


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def bold(text: str, stream: TextIO | None = None) -> str:
    return _styled("1", text, stream)


def dim(text: str, stream: TextIO | None = None) -> str:
    return _styled("2", text, stream)


def _styled(code: str, text: str, stream: TextIO | None) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colours(stream or sys.stdout) else text


def colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "", "dumb")


def size(n_bytes: float) -> str:
    """Decimal, as file managers and Ollama show it: 98 MB."""
    for unit in _UNITS:
        if n_bytes < 999.5 or unit == _UNITS[-1]:
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 9.95 else f"{n_bytes:.1f} {unit}"


def duration(seconds: float) -> str:
    """Two units at most: 1.2 s, 4 minutes, 3 hours."""
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        n = int(seconds // length)
        if n:
            return f"{n} {unit}{'s' if n > 1 else ''}"
    return ""


def ago(when: float) -> str:
    """`when` in seconds since the epoch."""
    seconds = time.time() - when
    return "just now" if seconds < 5 else f"{duration(seconds)} ago"


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner, on a terminal only; rich is imported only then."""
    if not colours(sys.stderr):
        yield
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False, markup=False).status(what):
        yield
