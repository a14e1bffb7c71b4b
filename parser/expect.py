"""What several rules expect of a value."""

from __future__ import annotations

import re

from .source import Mistake, Source
from .values import Value


def required(source: Source, first: int, pos: int, value: Value, wanted: str, example: str) -> Value:
    """`value`, unless it is empty; then the caret stands under the instruction, or under the empty quotes."""
    if value.text.strip():
        return value
    start, end = (value.start, value.end) if value.quote else (first, pos)
    raise Mistake(start, end, f"{source.text[first:pos].upper()} needs {wanted}", f"for example {example}")


def refuse_glob(value: Value, name: str) -> None:
    match = re.search(r"[*?]", value.text)
    if match and not value.quote:
        start = value.start + match.start()
        hint = (
            f"name each file in a {name.upper()} line of its own; put quotes around a name that really holds {match[0]}"
        )
        raise Mistake(start, start + 1, f"{name.upper()} takes no wildcards", hint)
