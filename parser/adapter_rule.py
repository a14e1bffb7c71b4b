"""`ADAPTER <path> [AS name] [SCALE x]`: our extension of Ollama's `ADAPTER <path>`.

A path may hold blanks even without quotes; the clauses begin at the first word AS or SCALE. A path that holds such a
word needs quotes, and ends at the first quote that the clauses or the end of the line follow.
"""

from __future__ import annotations

import re

from .literals import number_hint, read_float
from .names import adapter_name, reason_against, valid_name
from .nodes import Adapter, Span
from .paths import check_path
from .source import BLANKS, Mistake, Source, quoted
from .values import COMMENT_HINT, Value, read_line, required

MAX_SCALE = 100.0
EXAMPLE = "ADAPTER ./math.gguf AS math SCALE 0.8"
FILES = (".gguf", ".safetensors", ".bin")

_CLAUSE = re.compile(r"(?:^|(?<=[ \t]))(?:AS|SCALE)(?=[ \t=]|$)", re.IGNORECASE)
_PATH_END = {
    quote: re.compile(rf"{quote}(?=[{BLANKS}]*$|[ \t]+(?:AS|SCALE)(?:[ \t=]|$))", re.IGNORECASE)
    for quote in ('"""', '"')
}


def adapter(source: Source, first: int, pos: int) -> Adapter:
    line = required(source, first, pos, read_line(source, pos), "a path", EXAMPLE)
    path, clauses = _split(line)
    if not path.text.strip():
        raise Mistake(first, line.end, "ADAPTER needs a path", f"for example {EXAMPLE}")
    words = [clauses.part(*match.span()) for match in re.finditer(r"[^ \t]+", clauses.text)]
    name, words = _as(words, path)
    scale, words = _scale(words)
    if words:
        raise _leftover(words, name, scale)
    return Adapter(path.text, name, scale, span=Span(first, path.start, path.end, line.end))


def read_bare(text: str) -> str | None:
    """The path in `text`, if `text` is one path, quoted or not, and nothing more."""
    line = read_line(Source(text, ""), 0)
    try:
        path, clauses = _split(line)
    except Mistake:
        return None
    return path.text if line.text == text and path.text.strip() and not clauses.text else None


def _split(line: Value) -> tuple[Value, Value]:
    """The path, and the clauses behind it."""
    for quote in ('"""', '"'):
        if line.text.startswith(quote):
            return _split_quoted(line, quote)
    clause = _CLAUSE.search(line.text)
    end = clause.start() if clause else len(line.text)
    path = line.part(0, len(line.text[:end].rstrip(BLANKS)))
    check_path(path, "ADAPTER")
    if not clause:
        _refuse_bare_clause(path)
    return path, line.part(end, len(line.text))


def _split_quoted(line: Value, quote: str) -> tuple[Value, Value]:
    body = len(quote)
    if end := _PATH_END[quote].search(line.text, body):
        path = Value(line.text[body : end.start()], line.start, line.start + end.end(), quote)
        return path, line.part(end.end(), len(line.text))
    last = line.text.rfind(quote, body)
    if last < 0:
        raise Mistake(line.start, line.start + body, f"this {quote} is never closed", f"put {quote} after the path")
    rest = line.text[last + body :].strip(BLANKS)
    hint = f"for example {EXAMPLE}"
    if rest.startswith("#"):
        hint = COMMENT_HINT
    elif read_float(rest) is not None:
        hint = f"write SCALE {rest}"
    elif reason_against(rest) is None:
        hint = f"write AS {rest}"
    raise Mistake(line.end - len(rest), line.end, "text after the closing quote", hint)


def _refuse_bare_clause(path: Value) -> None:
    """`./math.gguf 0.5` and `./math.gguf math` look like a scale and a name that lack their words. A folder may well
    be called `lora 2`."""
    words = path.text.rsplit(None, 1)
    if len(words) < 2:
        return
    head, last = words
    is_file = head.lower().endswith(FILES)
    if read_float(last) is not None and (is_file or "." in last):
        word = "SCALE"
    elif is_file and not set("./\\~") & set(last):
        word = "AS"
    else:
        return
    hint = f"write {word} {last}; or, if it belongs to the path, put quotes around the path"
    raise Mistake(path.end - len(last), path.end, f"expected AS or SCALE after the path, not {quoted(last)}", hint)


def _as(words: list[Value], path: Value) -> tuple[str | None, list[Value]]:
    """[AS name]"""
    if not words or words[0].text.upper() != "AS":
        return None, words
    missing = len(words) == 3 and words[1].text.upper() == "SCALE" and read_float(words[2].text) is not None
    if len(words) < 2 or missing:
        hint = f"for example AS {adapter_name(path.text)}"
        raise Mistake(words[0].start, words[0].end, "AS needs a name", hint)
    name = words[1]
    if reason := reason_against(name.text):
        hint = f"for example AS {valid_name(name.text)}"
        raise Mistake(name.start, name.end, f"the adapter name {quoted(name.text)} {reason}", hint)
    return name.text, words[2:]


def _scale(words: list[Value]) -> tuple[float | None, list[Value]]:
    """[SCALE x]"""
    if not words or words[0].text.upper() != "SCALE":
        return None, words
    if len(words) < 2:
        raise Mistake(words[0].start, words[0].end, "SCALE needs a number", "for example SCALE 0.8")
    typed, scale = words[1], read_float(words[1].text)
    if scale is None or abs(scale) > MAX_SCALE:
        hint = number_hint(typed.text, whole=False) if scale is None else None
        shown = quoted(typed.text) if scale is None else typed.text
        message = f"SCALE takes a number from -100 to 100, not {shown}"
        raise Mistake(typed.start, typed.end, message, hint)
    return scale, words[2:]


def _leftover(words: list[Value], name: str | None, scale: float | None) -> Mistake:
    """The mistake in words that no clause took."""
    word, rest = words[0], words[1:]
    clause, sign, value = word.text.partition("=")
    clause = clause.upper() if clause.upper() in ("AS", "SCALE") else ""
    if word.text.startswith("#"):
        return Mistake(word.start, words[-1].end, "expected the end of the line", COMMENT_HINT)
    if clause and sign:
        at = word.start + len(clause)
        return Mistake(at, at + 1, f"expected a space after {clause}, not '='", f"write {clause} {value}".rstrip())
    if clause == "AS" and name is None:
        hint = f"write AS {rest[0].text if rest else 'math'} SCALE {scale!r}"
        return Mistake(word.start, word.end, "AS must stand before SCALE", hint)
    if clause:
        hint = f"if the first {clause} belongs to the path, put quotes around the path"
        return Mistake(word.start, word.end, f"{clause} stands here twice", hint)
    if scale is None and read_float(word.text) is not None:
        return Mistake(word.start, word.end, f"expected SCALE, not {quoted(word.text)}", f"write SCALE {word.text}")
    wanted = "the end of the line" if scale is not None else "SCALE or the end of the line"
    name_hint = None if scale is not None else "a name is one word"
    return Mistake(word.start, words[-1].end, f"expected {wanted}, not {quoted(word.text)}", name_hint)
