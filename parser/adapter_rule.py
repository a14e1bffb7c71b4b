"""`ADAPTER <path> [AS name] [SCALE x]`: our extension of Ollama's `ADAPTER <path>`.

A path may hold blanks, unquoted too; the clauses begin at the first word AS or SCALE. A path that holds such a word
needs quotes, and then ends at the first quote that the clauses or the end of the line follow.
"""

from __future__ import annotations

import re

from .expect import refuse_glob, required
from .literals import COMMENT_HINT, number_hint, read_float
from .names import reason_against, valid_name
from .nodes import Adapter, Span
from .source import BLANKS, Mistake, Source, quoted
from .values import Value, read_line

MAX_SCALE = 100.0
EXAMPLE = "ADAPTER ./math.gguf AS math SCALE 0.8"

_CLAUSE = re.compile(r"(?:^|(?<=[ \t]))(?:AS|SCALE)(?=[ \t=]|$)", re.IGNORECASE)
_PATH_END = {q: re.compile(rf"{q}(?=[{BLANKS}]*$|[ \t]+(?:AS|SCALE)(?:[ \t=]|$))", re.IGNORECASE) for q in ('"""', '"')}
_FILE_THEN_WORD = re.compile(r".*\.(?:gguf|safetensors|bin)[ \t]+([^ \t./\\~]+)", re.IGNORECASE)
_THEN_NUMBER = re.compile(
    r"(?:.*\.(?:gguf|safetensors|bin)[ \t]+([+-]?[0-9.]+)|.*[ \t]([+-]?[0-9]*\.[0-9]+))", re.IGNORECASE
)


def adapter(source: Source, first: int, pos: int) -> Adapter:
    line = required(source, first, pos, read_line(source, pos), "a path", EXAMPLE)
    path, clauses = _split(line)
    required(source, first, pos, path, "a path", EXAMPLE)
    refuse_glob(path, "ADAPTER")
    words = [clauses.at(*match.span()) for match in re.finditer(r"[^ \t]+", clauses.text)]
    name, words = _as(words, path)
    scale, words = _scale(words)
    if words:
        raise _leftover(words, path, name, scale)
    return Adapter(path.text, name, scale, span=Span(first, path.start, path.end, line.end))


def split_path(text: str) -> str | None:
    """The path in an ADAPTER line's `text`, if `text` is a path and nothing more."""
    try:
        path, clauses = _split(Value(text, 0, len(text), ""))
        refuse_glob(path, "ADAPTER")
    except Mistake:
        return None
    return None if clauses.text or not path.text.strip() else path.text


def _split(line: Value) -> tuple[Value, Value]:
    """The path and the clauses behind it."""
    for quote in ('"""', '"'):
        if line.text.startswith(quote):
            return _split_quoted(line, quote)
    clause = _CLAUSE.search(line.text)
    end = clause.start() if clause else len(line.text)
    path = line.at(0, len(line.text[:end].rstrip(BLANKS)))
    if not clause:
        _refuse_bare_clause(path)
    return path, line.at(end, len(line.text))


def _split_quoted(line: Value, quote: str) -> tuple[Value, Value]:
    body = len(quote)
    end = _PATH_END[quote].search(line.text, body)
    if end:
        path = Value(line.text[body : end.start()], line.start, line.start + end.end(), quote)
        return path, line.at(end.end(), len(line.text))
    last = line.text.rfind(quote, body)
    if last < 0:
        raise Mistake(line.start, line.start + body, f"this {quote} is never closed", f"put {quote} after the path")
    after = line.at(last + body, len(line.text))
    rest = after.text.strip(BLANKS)
    start = after.end - len(after.text.lstrip(BLANKS))
    hint = f"write SCALE {rest}" if read_float(rest) is not None else f"for example {EXAMPLE}"
    raise Mistake(start, line.end, "text after the closing quote", COMMENT_HINT if rest[0] == "#" else hint)


def _refuse_bare_clause(path: Value) -> None:
    """`./math.gguf 0.5` and `./math.gguf math` look like a scale and a name without their words."""
    if match := _THEN_NUMBER.fullmatch(path.text):
        number = match[1] or match[2]
        hint = f"write SCALE {number}; or, if it belongs to the path, put quotes around the path"
    elif match := _FILE_THEN_WORD.fullmatch(path.text):
        number = match[1]
        hint = f"write AS {number}; or, if it belongs to the path, put quotes around the path"
        hint = COMMENT_HINT if number.startswith("#") else hint
    else:
        return
    start = path.end - len(number)
    raise Mistake(start, path.end, f"expected AS or SCALE after the path, not {quoted(number)}", hint)


def _as(words: list[Value], path: Value) -> tuple[str | None, list[Value]]:
    """[AS name]"""
    if not words or words[0].text.upper() != "AS":
        return None, words
    if len(words) < 2 or words[1].text.upper() == "SCALE":
        raise Mistake(words[0].start, words[0].end, "AS needs a name", f"for example {EXAMPLE}")
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
        raise Mistake(words[0].start, words[0].end, "SCALE needs a number", f"for example {EXAMPLE}")
    typed, scale = words[1], read_float(words[1].text)
    if scale is None or abs(scale) > MAX_SCALE:
        hint = number_hint(typed.text, whole=False) if scale is None else None
        message = f"SCALE takes a number from -100 to 100, not {quoted(typed.text)}"
        raise Mistake(typed.start, typed.end, message, hint)
    return scale, words[2:]


def _leftover(words: list[Value], path: Value, name: str | None, scale: float | None) -> Mistake:
    """Words that no clause took."""
    word = words[0]
    upper, sign, rest = word.text.partition("=")
    upper = upper.upper()
    if word.text.startswith("#"):
        return Mistake(word.start, words[-1].end, "expected the end of the line", COMMENT_HINT)
    if upper in ("AS", "SCALE") and sign:
        at = word.start + len(upper)
        return Mistake(at, at + 1, f"expected a space after {upper}, not '='", f"write {upper} {rest}".rstrip())
    if upper == "AS" and scale is not None and name is None and len(words) > 1:
        hint = f"write AS {words[1].text} SCALE {scale:g}"
        return Mistake(word.start, word.end, "AS must stand before SCALE", hint)
    if upper in ("AS", "SCALE"):
        hint = f"if the first {upper} belongs to the path, put quotes around the path"
        return Mistake(word.start, word.end, f"{upper} stands here twice", hint)
    if scale is None and read_float(word.text) is not None:
        return Mistake(word.start, word.end, f"expected SCALE, not {quoted(word.text)}", f"write SCALE {word.text}")
    wanted = "SCALE or the end of the line" if scale is None else "the end of the line"
    hint = "a name is one word" if scale is None else None
    return Mistake(word.start, words[-1].end, f"expected {wanted}, not {quoted(word.text)}", hint)
