"""Paths in FROM, ADAPTER and DRAFT. What they lead to is not the parser's business."""

from __future__ import annotations

import re

from .source import Mistake, Source, clipped
from .values import COMMENT_HINT, Value, read_value, required

_WILDCARD = re.compile(r"[*?]")
_COMMENT = re.compile(r"[ \t]#(?:[ \t]|$)|(?<=\.gguf)[ \t]+#", re.IGNORECASE)


def read_path(source: Source, first: int, pos: int, wanted: str, example: str) -> Value:
    value = required(source, first, pos, read_value(source, pos, lines=False), wanted, example)
    check_path(value, source.text[first:pos].upper())
    return value


def check_path(value: Value, name: str) -> None:
    """Refuses, outside quotes, wildcards and what looks like a comment. In quotes, both belong to the path."""
    if value.quote:
        return
    if match := _COMMENT.search(value.text):
        at = value.start + match.end() - len(match[0].lstrip(" \t"))
        hint = f'if it belongs to the path, put quotes around all of it: {name} "{clipped(value.text, 60)}"'
        raise Mistake(at, value.end, COMMENT_HINT, hint)
    if match := _WILDCARD.search(value.text):
        at = value.start + match.start()
        hint = (
            f"write one {name} line for each file; or, if {match[0]} belongs to the path, put quotes around all of it"
        )
        raise Mistake(at, at + 1, f"{name} takes no wildcards", hint)
