"""Numbers as they are typed: plain decimal, ASCII digits only; and what an almost-number was meant to be."""

from __future__ import annotations

import re

from .values import COMMENT_HINT

# Bounded, for int() and float() of megabytes of digits take minutes.
_INT = re.compile(r"[+-]?[0-9]{1,99}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]{1,99}(?:\.[0-9]{0,99})?|\.[0-9]{1,99})(?:[eE][+-]?[0-9]{1,3})?")


def read_int(text: str) -> int | None:
    return int(text) if _INT.fullmatch(text) else None


def read_float(text: str) -> float | None:
    """None for what is no number, `inf` and `nan` among it. `1e999` is infinite: the caller's range refuses it."""
    return float(text) if _FLOAT.fullmatch(text) else None


def number_hint(text: str, *, whole: bool) -> str | None:
    """What to write instead of `text`, if that can be guessed."""
    if " #" in text:
        return COMMENT_HINT
    meant = _meant_int(text) if whole else _meant_float(text)
    return f"write {meant}" if meant is not None and len(meant) < 20 else None


def _meant_int(text: str) -> str | None:
    """`4k`, `8,192`, `4096.0`, `=4096`."""
    text = text[:40].strip(" \"'=")
    if match := re.fullmatch(r"([0-9]{1,6})[kK]", text):
        return str(int(match[1]) * 1024)
    text = re.sub(r"(?<=[0-9])[,_' ](?=[0-9]{3}(?![0-9]))", "", text)
    text = re.sub(r"\.0*$", "", text)
    return text if _INT.fullmatch(text) else None


def _meant_float(text: str) -> str | None:
    """`0,7`, `70%`, `=0.7`, `0.7f`."""
    text = text[:40].strip(" \"'=")
    if match := re.fullmatch(r"([0-9]{1,3})\s?%", text):
        return f"{int(match[1]) / 100:g}"
    text = text.replace(",", ".").rstrip("fF")
    return text if _FLOAT.fullmatch(text) else None
