"""A line that begins with no instruction: what was it meant to be?"""

from __future__ import annotations

import re

from .names import nearest
from .parameters import PARAMETERS
from .source import Mistake, clipped, line_end, quoted
from .values import NAMES

_ALIASES = {
    "BASE": "FROM",
    "MODEL": "FROM",
    "LORA": "ADAPTER",
    "OPTION": "PARAMETER",
    "SET": "PARAMETER",
    "PROMPT": "TEMPLATE",
    "ASSISTANT": "MESSAGE assistant",
    "USER": "MESSAGE user",
}
_ALL = "the instructions are " + ", ".join(NAMES)
_STARTS = {
    '"""': 'no """ is open here; was an earlier one meant to stay open?',
    "```": "remove the Markdown around the Modelfile",
    **dict.fromkeys(("//", ";", "--", "/*", "<!--", "%"), "comments begin with #"),
}
_WORD = re.compile(r"[^\s=:\"]*")


class NoInstruction(Mistake):
    """The line looks like none: perhaps it belongs to the text above it."""


def first_word(text: str, pos: int) -> int:
    """Where the word at `pos` ends that is to be an instruction's name."""
    match = _WORD.match(text, pos)
    return match.end() if match else pos


def meant(word: str) -> str | None:
    """The instruction that `word` probably stands for."""
    return _ALIASES.get(word.upper()) or nearest(word.upper(), NAMES)


def unknown(text: str, first: int, end: int) -> Mistake:
    """The mistake in the line at `first`, whose first word ends at `end`."""
    word = text[first:end]
    if not word or not word[0].isalnum():
        return _no_word(text, first)
    message = f"unknown instruction {quoted(word)}"
    if word.lower() in PARAMETERS:
        rest = text[end : line_end(text, end)].lstrip("=: \t").rstrip()
        return Mistake(first, end, message, clipped(f"write PARAMETER {word.lower()} {rest}".rstrip(), 80))
    if instruction := meant(word):
        return Mistake(first, end, message, f"did you mean {instruction}?")
    return NoInstruction(first, end, message, _ALL)


def no_space(text: str, first: int, end: int) -> Mistake:
    """A known name, stuck to what follows: `FROM=llama3.2`."""
    name, rest = text[first:end].upper(), text[end : line_end(text, end)].lstrip("=: \t").rstrip()
    return Mistake(end, end + 1, f"expected a space after {name}, not {text[end]!r}", f"write {name} {rest}".rstrip())


def _no_word(text: str, first: int) -> Mistake:
    for start, hint in _STARTS.items():
        if text.startswith(start, first):
            return Mistake(first, first + len(start), f"expected an instruction, not {start}", hint)
    char = text[first]
    shown = repr(char) if char.isprintable() else f"the invisible character U+{ord(char):04X}"
    hint = "every line begins with an instruction, such as FROM or SYSTEM"
    return NoInstruction(first, first + 1, f"expected an instruction, not {shown}", hint)
